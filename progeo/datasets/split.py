"""Hold photos of known places out of a training set, to evaluate with."""

import numpy as np
import pyarrow.compute as pc

from progeo.places.catalogue import Catalogue
from progeo.places.cells import NoClass, build_partition
from progeo.places.options import CellOptions


def every_nth_position(catalogue: Catalogue, every: int, *, seed: int | None = None) -> np.ndarray:
    """Choose all images of every n-th position, such as all headings of a panorama.

    Args:
        every: n; positions are counted in the order of the sorted names of their first images.
        seed: choose as many positions at random instead.

    Returns:
        Sorted rows, int64 (n,).

    Raises:
        ValueError: n is 1 or above the number of positions, or an image has no position.
    """
    by_name = np.argsort(_ranks_of_names(catalogue))
    columns = np.stack([catalogue.zone, catalogue.east, catalogue.north], axis=1)[by_name]
    if nowhere := int((~np.isfinite(columns)).any(axis=1).sum()):
        raise ValueError(f"{nowhere} of {len(catalogue)} images of {catalogue.folder} have no position.")
    _, first, position = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    count = len(first)
    if not 2 <= every <= count:
        raise ValueError(f"`every` must be from 2 to {count}, the positions in {catalogue.folder}, got {every}.")
    numbers = np.empty(count, np.int64)
    numbers[np.argsort(first) if seed is None else np.random.default_rng(seed).permutation(count)] = np.arange(count)
    held_out = numbers % every == every - 1
    return np.sort(by_name[held_out[position.reshape(-1)]])


def last_of_each_class(
    catalogue: Catalogue, per_class: int, cells: CellOptions, *, seed: int | None = None
) -> np.ndarray:
    """Choose the last images by sorted name of each class that has more of them, and enough to be a class.

    Args:
        seed: choose as many images of each class at random instead.

    Returns:
        Sorted rows, int64 (n,).

    Raises:
        ValueError: no class has enough images, or see `build_partition`; all groups count, whatever `num_groups` is.
    """
    min_images = max(cells.min_images_per_class, per_class + 1)
    settings = {**vars(cells), "min_images_per_class": min_images, "num_groups": None}
    ranks = _ranks_of_names(catalogue)
    if seed is not None:
        ranks = np.random.default_rng(seed).permutation(ranks)
    try:
        partition = build_partition(catalogue, **settings)
    except NoClass:
        raise ValueError(
            f"No class has more than `per_class` = {per_class} images and at least `min_images_per_class` = "
            f"{cells.min_images_per_class}: hold out fewer, or use larger cells."
        ) from None
    chosen = []
    for group in partition.groups:
        rows = group.rows[np.lexsort((ranks[group.rows], group.labels))]
        following = group.offsets[group.labels + 1] - np.arange(len(rows))
        chosen.append(rows[following <= per_class])
    return np.sort(np.concatenate(chosen))


def _ranks_of_names(catalogue: Catalogue) -> np.ndarray:
    """Return the index of each image in the sorted names, int64 (N,)."""
    ranks = np.empty(len(catalogue), np.int64)
    ranks[pc.sort_indices(catalogue.table["path"]).to_numpy()] = np.arange(len(catalogue))
    return ranks
