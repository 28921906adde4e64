"""Where the descriptors of a place index are stored and searched: in its folder, or in an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np

from progeo.evaluation.cell_index import Cells, cell_neighbors
from progeo.evaluation.row_search import RowSearch
from progeo.evaluation.search import Neighbors, index_neighbors
from progeo.features.store import Rows
from progeo.places.catalogue import Catalogue
from progeo.places.cell_order import CellOrder, build_cell_order
from progeo.places.nearby import HeadingRange, Near, check_known, looks_toward


@dataclass(frozen=True)
class Restriction:
    """What all rows that a search may find have in common."""

    near: Near | None = None
    """They lie within this circle, inclusive; None for anywhere. Rows without a position lie in no circle."""
    heading: HeadingRange | None = None
    """They look in one of these directions, inclusive, or their heading is unknown; None for any."""


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
    """Where the descriptors of new parts are stored, and those of removed rows forgotten."""

    def add(self, part: str, rows: Rows, images: Catalogue) -> None:
        """Store the rows of a part, before a generation names it; a second time after a command that was killed.

        Args:
            part: identifier of the part: the same for the same encoder and images.
            rows: descriptors (n, D), which may be larger than memory.
            images: the n images, as `index_images` returns them.
        """

    def remove(self, rows: Mapping[str, np.ndarray]) -> None:
        """Forget rows, once a generation has marked them as removed: int64 (r,) by the identifier of their part."""


@dataclass(frozen=True, eq=False)
class LocalStore:
    """Descriptors in the folder of a place index."""

    index: faiss.Index
    catalogue: Catalogue
    folder: Path
    cells: Cells | None = None
    """The cells that are its lists; None if its lists are no cells."""

    @cached_property
    def num_lists(self) -> int:
        """Number of inverted lists; 0 if there are none."""
        return getattr(faiss.try_extract_index_ivf(self.index), "nlist", 0)

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
        count = min(count, len(self.catalogue))
        if isinstance(among, Restriction):
            return self._row_search.neighbors_among(self.rows_of(among), queries, count)
        if among is not None:
            pairs = zip(map(self.rows_of, among), queries, strict=True)
            found = [self._row_search.neighbors_among(rows, query[None], count) for rows, query in pairs]
            both = ((one.rows, one.distances) for one in found)
            return Neighbors(*(np.concatenate(each) for each in zip(*both, strict=True)))
        if self.cells is not None:
            return cell_neighbors(
                self.index,
                queries,
                count,
                probes=probes,
                quantizer=self.cells.quantizer,
                quantizer_queries=cell_queries,
            ).neighbors
        if self.num_lists:
            faiss.extract_index_ivf(self.index).nprobe = probes
        return index_neighbors(self.index, queries, count)

    def count(self, among: Restriction | None = None) -> int:
        """Return the number of rows that a search can find."""
        return len(self.catalogue) if among is None else len(self.rows_of(among))

    def rows_of(self, among: Restriction) -> np.ndarray:
        """Find the rows that a restriction allows: sorted, int64 (n,)."""
        rows = np.arange(len(self.catalogue)) if among.near is None else self._cell_order.rows_within(among.near)
        if among.heading is None:
            return rows
        headings = self.catalogue.heading
        check_known(headings, "heading", self.folder, name="heading")
        return rows[looks_toward(headings[rows], among.heading)]

    @cached_property
    def _cell_order(self) -> CellOrder:
        degrees = self.catalogue.table["latitude"], self.catalogue.table["longitude"]
        check_known(degrees[0].to_numpy(), "latitude and longitude", self.folder, name="near")
        return build_cell_order(*degrees)

    @cached_property
    def _row_search(self) -> RowSearch:
        return RowSearch(self.index)
