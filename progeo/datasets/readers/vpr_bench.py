"""VPR-Bench's ground truth: folders `query` and `ref` of numbered images, and the correct images of each query."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from progeo.datasets.readers.ground_truth import build_sides
from progeo.datasets.readers.numpy_files import integers_of, load_array
from progeo.places.catalogue import Catalogue
from progeo.places.paths import find_paths


def read_vpr_bench(files: Mapping[str, Path], images: Path) -> dict[str, Catalogue]:
    """Read database and queries, sorted by the numbers in their names.

    Args:
        files: `truth`, an array of objects (Q, 2): the index of a query, from 0 in sorted order, and the indices of the
            images of `ref` that are correct for it.
        images: folder with query/0000000.jpg and ref/0000000.jpg.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: names are not consecutive numbers, or the ground truth does not match the images.
    """
    names = {side: _numbered(images, folder) for side, folder in (("database", "ref"), ("queries", "query"))}
    positives = _positives(files["truth"], len(names["database"]), len(names["queries"]))
    return build_sides(images, names, positives=positives)


def _numbered(images: Path, side: str) -> list[str]:
    """List the images of a folder, sorted by number."""
    by_number: dict[int, str] = {}
    for name in (name for batch in find_paths(images / side).batches for name in batch.to_pylist()):
        stem = Path(name).stem
        if not (stem.isascii() and stem.isdigit()) or int(stem) in by_number:
            raise ValueError(f"{images / side / name}: its name must be a number of its own, such as 0000000.jpg.")
        by_number[int(stem)] = name
    first, last = min(by_number), max(by_number)
    if last - first + 1 != len(by_number):
        missing = next(number for number in range(first, last) if number not in by_number)
        raise ValueError(
            f"{images / side} has images with the numbers {first} to {last}, but none with {missing}: the ground truth "
            f"counts them in their order. Complete the folder."
        )
    return [f"{side}/{by_number[number]}" for number in sorted(by_number)]


def _positives(file: Path, num_database: int, num_queries: int) -> list[np.ndarray]:
    """Read the correct database rows of each query.

    Raises:
        ValueError: the array has another shape, or names images that do not exist.
    """
    truth = load_array(file)
    if truth.ndim != 2 or truth.shape[1] != 2:
        raise ValueError(f"{file} must be an array of the shape (queries, 2), it has {truth.shape}.")
    numbers = integers_of(truth[:, 0])
    if numbers is None or not np.array_equal(np.sort(numbers), np.arange(num_queries)):
        raise ValueError(
            f"{file} must have {num_queries} lines with the numbers of the queries, from 0; it has {len(truth)}."
        )
    positives = [np.empty(0, np.int64)] * num_queries
    for number, value in zip(numbers.tolist(), truth[:, 1], strict=True):
        rows = integers_of(value)
        if rows is None or (len(rows) and not (rows.min() >= 0 and rows.max() < num_database)):
            raise ValueError(
                f"{file} must give numbers from 0 to {num_database - 1} of images of ref; for query {number} it gives "
                f"{str(value)[:80]}."
            )
        positives[number] = rows.astype(np.int64)
    return positives
