"""Where the descriptors of a place index are stored and searched: in its folder, or in an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from progeo.evaluation.cell_index import Cells, best_cells
from progeo.evaluation.parts import Part, Parts
from progeo.evaluation.search import Neighbors, joined
from progeo.features.store import Rows
from progeo.localization.part_files import OpenedPart
from progeo.localization.restriction import Restriction
from progeo.places.catalogue import Catalogue


class DescriptorStore(Protocol):
    """The descriptors of an opened place index; several threads may search at the same time."""

    @property
    def num_lists(self) -> int:
        """Number of inverted lists, of which a search visits some; 0 if there are none."""

    def search(
        self,
        queries: np.ndarray,
        count: int,
        *,
        probes: int,
        refine: int,
        among: Restriction | Sequence[Restriction] | None = None,
        cell_queries: np.ndarray | None = None,
    ) -> Neighbors:
        """Search by Euclidean distance between the stored descriptors.

        Args:
            queries: descriptors, float32 (Q, D).
            count: maximum number of neighbors of each query, K. Rows are those of the catalogue of the index, and -1
                with an infinite distance where there are fewer; those that are removed or not committed are not found.
            probes: number of inverted lists that are visited, if there are any.
            refine: number of best rows of a compressed index that are compared exactly.
            among: restriction of all queries, or of each; all rows that it allows are compared.
            cell_queries: descriptors (Q, E) of the other network that ranks the cells of an index of cells; None for
                any other index.

        Raises:
            ValueError: no position or heading is known in the index.
        """

    def count(self, among: Restriction | None = None) -> int:
        """Return the number of rows that a search can find."""


class DescriptorWriter(Protocol):
    """Where the descriptors of new parts are stored, if their folders do not hold them."""

    @property
    def place(self) -> str:
        """Where they are stored, in words."""

    def add(self, part: str, rows: Rows, images: Catalogue) -> None:
        """Store the rows of a part, before a generation names it; a second time after a command that was killed.

        Args:
            part: identifier of the part: the same for the same encoder, images and descriptors.
            rows: descriptors (n, D), which may be larger than memory.
            images: the n images, as `index_images` returns them.
        """

    def tidy(self, folder: Path) -> None:
        """Forget removed rows of the index in a folder and parts that killed commands did not commit, and clean up."""


@dataclass(frozen=True, eq=False)
class LocalStore:
    """Descriptors in the folder of a place index, in parts."""

    parts: Sequence[OpenedPart]
    removed: np.ndarray
    """Rows that are not found, sorted, int64 (r,)."""
    folder: Path
    cells: Cells | None = None
    """The cells that are its lists; None if its lists are no cells."""

    @cached_property
    def num_lists(self) -> int:
        """Number of inverted lists; 0 if there are none."""
        index = self.parts[0].index
        return 0 if index is None else getattr(faiss.try_extract_index_ivf(index), "nlist", 0)

    def search(
        self,
        queries: np.ndarray,
        count: int,
        *,
        probes: int,
        refine: int,
        among: Restriction | Sequence[Restriction] | None = None,
        cell_queries: np.ndarray | None = None,
    ) -> Neighbors:
        """Search as `DescriptorStore.search` says."""
        queries, count = np.ascontiguousarray(queries, np.float32), min(count, self.count() or 1)
        if isinstance(among, Restriction):
            return self._rows.neighbors_among(self.rows_of(among), queries, count)
        if among is not None:
            pairs = zip(map(self.rows_of, among), queries, strict=True)
            return joined(self._rows.neighbors_among(rows, query[None], count) for rows, query in pairs)
        lists = None if self.cells is None else self._best_cells(queries, cell_queries, probes)
        return self._rows.neighbors(queries, count, probes=probes, refine=refine, lists=lists)

    def count(self, among: Restriction | None = None) -> int:
        """Return the number of rows that a search can find."""
        if among is None:
            return len(self._rows) - len(self.removed)
        return int((~np.isin(self.rows_of(among), self.removed)).sum())

    def rows_of(self, among: Restriction) -> np.ndarray:
        """Find the rows that a restriction allows, with those that are removed: sorted, int64 (n,).

        Raises:
            ValueError: no position or heading is known in the index.
        """
        among.check_known([part.metadata for part in self.parts], self.folder)
        starts = self._rows.starts.tolist()
        found = [part.rows_of(among) + start for part, start in zip(self.parts, starts, strict=False)]
        return np.concatenate(found)

    def _best_cells(self, queries: np.ndarray, cell_queries: np.ndarray | None, probes: int) -> np.ndarray:
        """Choose the cells that have images in any part, int64 (Q, probes)."""
        assert self.cells is not None
        indexes: list[Any] = [part.index for part in self.parts]
        if self.cells.quantizer is None or cell_queries is None:
            return best_cells(indexes, indexes[0].quantizer, queries, probes)[0]
        return best_cells(indexes, self.cells.quantizer, cell_queries, probes)[0]

    @cached_property
    def _rows(self) -> Parts:
        starts = np.cumsum([0, *(part.metadata.rows for part in self.parts)])
        bounds = np.searchsorted(self.removed, starts).tolist()
        ranges = zip(pairwise(bounds), starts.tolist(), strict=False)
        removed = [self.removed[slice(*each)] - start for each, start in ranges]
        return Parts([Part(part.descriptors, part.index, gone) for part, gone in zip(self.parts, removed, strict=True)])
