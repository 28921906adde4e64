"""The classes of an encoder: a vector for each, where it is, and what it was learned from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from progeo.places.catalogue import Catalogue
from progeo.places.cells import class_centers
from progeo.places.geographic import Frame

MEANS = "means"
"""The kind of a classifier whose vectors are the mean descriptors of the classes' images."""


@dataclass(frozen=True)
class Classifier:
    """Vectors of C classes, those of all groups one group after the other."""

    kind: str
    """Kind of the head that learned the vectors (`HeadKind`), or `means`."""
    class_ids: np.ndarray
    """int64 (C, 3), see `progeo.places.cells.class_ids`; sorted within each group."""
    weight: np.ndarray
    """Vectors of the classes in the space of the descriptors, float32 (C, D)."""
    bias: np.ndarray | None
    """Added to the dot products of a linear head, float32 (C,); None for other kinds."""
    num_images: np.ndarray
    """Number of images of each class, int64 (C,)."""
    classes_per_group: tuple[int, ...]
    scale: float
    """Factor of the cosines in training; 1 for a linear head."""
    cells: Mapping[str, int]
    """Settings of the cells: `cell_side_m`, `heading_bin_deg` ..."""
    fingerprint: str
    """Fingerprint of the partition, see `progeo.places.cells.Partition`."""
    frame: Frame
    """What the meters of the class ids are."""
    encoder: str = ""
    """Digest of the weights of the encoder whose descriptors the vectors are for; empty if unknown."""

    def __len__(self) -> int:
        return len(self.class_ids)

    @property
    def cell_side_m(self) -> int:
        """Side of a cell in meters."""
        return self.cells["cell_side_m"]

    @property
    def heading_bin_deg(self) -> int:
        """Width of a heading bin in degrees; 360 if classes have no heading."""
        return self.cells["heading_bin_deg"]

    @property
    def cosine_scale(self) -> float:
        """Factor of the cosines before a softmax: `scale`, or for a linear head the mean length of its vectors."""
        return self.scale if self.kind != "linear" else float(np.linalg.norm(self.weight, axis=1).mean())

    @cached_property
    def centers_m(self) -> np.ndarray:
        """Centers of the cells, float64 (C, 2), in meters of the frame."""
        return class_centers(self.class_ids, cell_side_m=self.cell_side_m)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The classes as a catalogue of their centers, with latitude and longitude, NaN where unknown.

        Their paths are names such as `cell 549120 4180920`, with the heading bin if there are several.
        """
        has_heading = self.heading_bin_deg < 360
        names = ["cell " + " ".join(map(str, ids if has_heading else ids[:2])) for ids in self.class_ids.tolist()]
        middle = self.class_ids[:, 2] + self.heading_bin_deg / 2
        columns = self.frame.columns(self.centers_m)
        degrees = {name: columns.pop(name) for name in ("latitude", "longitude")}
        heading = middle if has_heading else np.full(len(self), np.nan)
        table = pa.table({"path": pa.array(names, pa.large_string()), **columns, "heading": heading, **degrees})
        return Catalogue(Path(), table)
