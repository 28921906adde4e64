"""An index whose inverted lists are map cells: the images of the K cells that score highest are searched exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import faiss
import numpy as np

from progeo.evaluation.classification import class_means
from progeo.evaluation.search import Neighbors
from progeo.features.store import Rows
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue
from progeo.places.cells import class_ids
from progeo.places.geographic import positions_m
from progeo.progress import followed

_TURN = 1e-3
"""Radius of the circle of headings in cell sides: headings decide between classes only where positions do not."""
_INWARD = 0.999
"""Factor of the distance between a heading and the middle of its bin."""
_SAME_CELL = 1e-2
"""Distance in cell sides within which two class centers are those of one cell."""


@dataclass(frozen=True)
class Cells:
    """A classifier that chooses the cells whose images are searched."""

    classifier: Classifier
    encoder: Encoder | None = None
    """Encoder of the classifier; None if it is that of the images."""

    @cached_property
    def quantizer(self) -> faiss.Index | None:
        """Index of the vectors of the classifier of another encoder."""
        return None if self.encoder is None else class_quantizer(self.classifier.weight)


class CellNeighbors(NamedTuple):
    """Result of a search in the best cells for Q queries."""

    neighbors: Neighbors
    """Nearest images in these cells."""
    rows_read: np.ndarray
    """Number of images that each query was compared with, int64 (Q,)."""


def cells_of_catalogue(catalogue: Catalogue, classifier: Classifier) -> np.ndarray:
    """Assign each image of a catalogue to a class, see `cell_of_images`; -1 where its position is unknown, int64 (N,).

    Raises:
        ValueError: images without a zone although the others lie in several.
    """
    rows = np.full(len(catalogue), -1, np.int64)
    known = np.flatnonzero(np.isfinite(catalogue.east) & np.isfinite(catalogue.north))
    images = catalogue.take(known)
    if len(known):
        centers_m, images_m = positions_m(classifier.catalogue, images)
        rows[known] = cell_of_images(images_m, images.heading, classifier, centers_m=centers_m)
    return rows


def cells_of_database(database: Catalogue, cells: Cells) -> np.ndarray:
    """Assign each image of a database to a class, see `cells_of_catalogue`.

    Raises:
        ValueError: positions are unknown although another network ranks the classes; see also `cells_of_catalogue`.
    """
    labels = cells_of_catalogue(database, cells.classifier)
    if cells.encoder is not None:
        _check_known(labels)
    return labels


def cell_of_images(
    positions_m: np.ndarray, headings: np.ndarray, classifier: Classifier, *, centers_m: np.ndarray | None = None
) -> np.ndarray:
    """Assign images to classes by their positions: the class of its cell and heading bin, else the nearest class.

    Every image gets a class, the one whose cell is nearest; of those in one cell that with the nearest heading.

    Args:
        positions_m: east and north in meters, (N, 2).
        headings: degrees, (N,); NaN, unknown, counts as 0, as in `class_ids`.
        centers_m: centers of the classes in the frame of the positions, (C, 2); None if it is that of the classifier.

    Returns:
        Rows of the classifier, int64 (N,).
    """
    from scipy.spatial import cKDTree  # commands that search no positions start without it

    side, bin_deg = classifier.cell_side_m, classifier.heading_bin_deg
    headings = np.nan_to_num(np.asarray(headings, np.float64)) % 360
    east, north = np.transpose(positions_m)
    ids = class_ids(east, north, headings, cell_side_m=side, heading_bin_deg=bin_deg)
    centers_m = classifier.centers_m if centers_m is None else centers_m
    tree = cKDTree(_on_circle(centers_m, classifier.class_ids[:, 2] + bin_deg / 2, side))
    # At the border of two cells or bins both are equally near: move each image toward the center of its own.
    middles = ids[:, 2] + bin_deg / 2
    headings = middles + _INWARD * (headings - middles)
    own = _on_circle(ids[:, :2] + side / 2, headings, side)
    rows = tree.query(own, distance_upper_bound=_SAME_CELL * side)[1]
    others = np.flatnonzero(rows == len(classifier))
    rows[others] = tree.query(_on_circle(np.asarray(positions_m)[others], headings[others], side))[1]
    return rows.astype(np.int64)


def build_cell_index(
    descriptors: Rows, labels: np.ndarray, vectors: np.ndarray | None, *, num_classes: int | None = None
) -> faiss.IndexIVFFlat:
    """Build an index of all images, whose list c holds the images of class c; arguments as of `empty_cell_index`."""
    index, start = empty_cell_index(descriptors, labels, vectors, num_classes=num_classes), 0
    for part in followed(descriptors.parts(), "adding to the index", total=len(descriptors), size=len, unit="rows"):
        add_to_cells(index, np.ascontiguousarray(part, np.float32), labels[start : start + len(part)])
        start += len(part)
    return index


def empty_cell_index(
    descriptors: Rows, labels: np.ndarray, vectors: np.ndarray | None, *, num_classes: int | None = None
) -> faiss.IndexIVFFlat:
    """Build an index without images, whose list c is to hold the images of class c.

    Args:
        descriptors: (N, D).
        labels: class of each image, int64 (N,), see `cell_of_images`; -1 assigns it by its descriptor.
        vectors: a vector for each class, (C, D); None takes class means, if another network ranks the classes.
        num_classes: C; only needed without vectors.

    Raises:
        ValueError: a label is -1 and there are no vectors.
    """
    if vectors is None:
        _check_known(labels)
        vectors = class_means(descriptors.parts(), labels, num_classes or int(labels.max()) + 1)
    quantizer: Any = class_quantizer(vectors)
    index = faiss.IndexIVFFlat(quantizer, descriptors.width, len(vectors))
    index.own_fields, index.is_trained = True, True
    quantizer.this.disown()
    return index


def add_to_cells(index: Any, values: np.ndarray, labels: np.ndarray) -> None:
    """Add images to an index of cells.

    Args:
        values: descriptors, float32 (n, D).
        labels: class of each, int64 (n,); -1 assigns it by its descriptor.
    """
    lists = np.array(labels, np.int64)
    if (lists < 0).any():
        lists[lists < 0] = index.quantizer.search(values[lists < 0], 1)[1][:, 0]
    index.add_core(len(values), faiss.swig_ptr(values), None, faiss.swig_ptr(lists))


def class_quantizer(vectors: np.ndarray) -> faiss.IndexFlatL2:
    """Build a faiss index of class vectors (C, D), made unit length: the nearest has the highest cosine."""
    vectors = np.array(vectors, np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    quantizer = faiss.IndexFlatL2(vectors.shape[1])
    quantizer.add(vectors)
    return quantizer


def cell_neighbors(
    index: Any,
    queries: np.ndarray,
    count: int,
    *,
    probes: int,
    quantizer: faiss.Index | None = None,
    quantizer_queries: np.ndarray | None = None,
) -> CellNeighbors:
    """Search the images of the cells with the highest cosines; cells without images are skipped.

    Args:
        index: result of `build_cell_index`, also from a file.
        queries: descriptors, float32 (Q, D).
        count: neighbors per query; -1 where the cells have fewer images.
        probes: number of cells to search, K.
        quantizer: class vectors of another network, see `class_quantizer`; None takes those of the index.
        quantizer_queries: descriptors of the queries from that other network, (Q, E).
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if quantizer is None or quantizer_queries is None:
        quantizer, quantizer_queries = index.quantizer, queries
    cells, sizes = best_cells([index], quantizer, quantizer_queries, probes)
    squared, rows = _search_lists(index, queries, min(count, index.ntotal), cells)
    return CellNeighbors(Neighbors(rows, np.sqrt(np.maximum(squared, 0))), sizes.sum(axis=1))


def _search_lists(index: Any, queries: np.ndarray, count: int, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Search these lists of an index, (Q, K); returns squared distances and rows (Q, count).

    The method for arrays that faiss offers would change the index, so that threads could not search side by side.
    """
    squared, rows = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
    given = [faiss.swig_ptr(each) for each in (queries, lists, np.zeros(lists.shape, np.float32), squared, rows)]
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = lists.shape[1]
    index.search_preassigned_c(len(queries), given[0], count, *given[1:], False, parameters)
    return squared, rows


def best_cells(
    indexes: Sequence[Any], quantizer: faiss.Index, queries: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest classes that have images, best first, and their numbers of images, int64 (Q, K) each.

    Args:
        indexes: indexes of the same cells, in which the images are.
        quantizer: class vectors, see `class_quantizer`.
        queries: descriptors that are compared with them, (Q, E).
        count: K.
    """
    num_lists, queries = indexes[0].nlist, np.ascontiguousarray(queries, np.float32)
    count = depth = min(count, num_lists)
    while True:
        cells = quantizer.search(queries, depth)[1]
        found, inverse = np.unique(cells, return_inverse=True)
        sizes = np.array([sum(index.invlists.list_size(cell) for index in indexes) for cell in found.tolist()])
        sizes = sizes[inverse.reshape(cells.shape)]
        if depth == num_lists or ((sizes > 0).sum(axis=1) >= count).all():
            break
        depth = min(2 * depth, num_lists)
    order = np.argsort(sizes == 0, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(cells, order, axis=1), np.take_along_axis(sizes, order, axis=1)


def _check_known(labels: np.ndarray) -> None:
    if (labels < 0).any():
        raise ValueError(
            f"{int((labels < 0).sum()):,} of {len(labels):,} images have no known position, so that no cell of "
            f"another encoder's `classifier` is theirs: use the encoder's own, or leave them out."
        )


def _on_circle(positions_m: np.ndarray, headings: np.ndarray, cell_side_m: int) -> np.ndarray:
    """Append to positions (N, 2) the points of their headings on a circle far smaller than a cell, (N, 4)."""
    radians, radius_m = np.radians(headings), _TURN * cell_side_m
    return np.column_stack([positions_m, radius_m * np.cos(radians), radius_m * np.sin(radians)])
