"""Classes from positions: images -> cells and heading bins -> groups of non-adjacent classes (CosPlace, CVPR 2022)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np

from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m
from progeo.printable import counted
from progeo.progress import phase

_ROWS_AT_ONCE = 2**16


class NoClass(ValueError):
    """Error raised if no class has enough images."""


@dataclass(frozen=True)
class Group:
    """The classes of one group and their images. The label of a class is its index in `class_ids`."""

    class_ids: np.ndarray
    """Sorted, int64 (C, 3): east and north of the cell's south-west corner in meters, lower edge of the heading bin."""
    rows: np.ndarray
    """Catalogue rows of the images, sorted by class, int64 (n,)."""
    offsets: np.ndarray
    """The images of label c are `rows[offsets[c]:offsets[c + 1]]`, int64 (C + 1,)."""

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.class_ids)

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of each image in `rows`, int64 (n,)."""
        return np.repeat(np.arange(self.num_classes), np.diff(self.offsets))


class DescribedPartition(TypedDict):
    """What is stored with anything learned per class."""

    fingerprint: str
    settings: dict[str, int]
    classes_per_group: list[int]


@dataclass(frozen=True)
class Partition:
    """The groups of classes that a catalogue is divided into, with the settings used."""

    settings: Mapping[str, int]
    groups: tuple[Group, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the settings and all class ids: if it is equal, labels stand for the same classes."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode())
        for group in self.groups:
            digest.update(group.class_ids.astype("<i8").tobytes())
            digest.update(b"|")
        return digest.hexdigest()[:16]

    def describe(self) -> DescribedPartition:
        """Return the metadata to store with anything learned per class, for `check_same_partition`."""
        return {
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "classes_per_group": [group.num_classes for group in self.groups],
        }


def class_ids(
    east: np.ndarray, north: np.ndarray, heading: np.ndarray, *, cell_side_m: int, heading_bin_deg: int
) -> np.ndarray:
    """Compute the class id of each image: its square cell and its heading bin.

    Args:
        east: UTM meters, (N,).
        north: UTM meters, (N,).
        heading: degrees clockwise from north, (N,); NaN (unknown) falls into bin 0.
        cell_side_m: side of a cell, M in the paper.
        heading_bin_deg: width of a heading bin, alpha in the paper; must divide 360.

    Returns:
        int64 (N, 3): east and north rounded down to multiples of the cell side, heading to a multiple of the bin width.
    """
    _check_cells(cell_side_m, heading_bin_deg)
    indices = _class_indices(east, north, heading, cell_side_m, heading_bin_deg)
    return np.stack(indices, axis=1) * np.array([cell_side_m, cell_side_m, heading_bin_deg])


def class_centers(class_ids: np.ndarray, *, cell_side_m: int) -> np.ndarray:
    """Compute the center of each class's cell, float64 (C, 2): east and north in meters.

    Args:
        class_ids: int64 (C, 3), as returned by `class_ids`; a third column is ignored.
        cell_side_m: as passed to `class_ids`; half an odd side is half a meter more than a whole number.
    """
    return np.asarray(class_ids, np.float64)[:, :2] + cell_side_m / 2


def group_ids(
    class_ids: np.ndarray, *, cell_side_m: int, heading_bin_deg: int, groups_per_side: int, groups_per_heading: int
) -> np.ndarray:
    """Compute the group of each class; classes of one group are at least N cells or L heading bins apart.

    Args:
        class_ids: int64 (N, 3), as returned by `class_ids`.
        cell_side_m: as passed to `class_ids`.
        heading_bin_deg: as passed to `class_ids`.
        groups_per_side: N in the paper, distance in cells between neighboring classes of a group.
        groups_per_heading: L in the paper, distance in heading bins between neighboring classes of a group; must divide
            the number of bins.

    Returns:
        int64 (N, 3): cell column modulo N, cell row modulo N, heading bin modulo L.
    """
    _check_groups(heading_bin_deg, groups_per_side, groups_per_heading)
    indices = np.asarray(class_ids, np.int64) // np.array([cell_side_m, cell_side_m, heading_bin_deg])
    return indices % np.array([groups_per_side, groups_per_side, groups_per_heading])


@phase("dividing images into classes")
def build_partition(
    catalogue: Catalogue,
    *,
    cell_side_m: int,
    heading_bin_deg: int,
    groups_per_side: int,
    groups_per_heading: int,
    min_images_per_class: int,
    num_groups: int | None,
) -> Partition:
    """Divide a catalogue into classes and groups, and keep the first `num_groups` groups in the order of their ids.

    Args:
        num_groups: None keeps all groups.

    Raises:
        ValueError: settings are inconsistent, an image has no position, only some images have a heading, no class has
            enough images, or `num_groups` exceeds the number of groups.
    """
    _check_cells(cell_side_m, heading_bin_deg)
    (positions,) = positions_m(catalogue)
    check_positions(catalogue, positions)
    _check_headings(catalogue, heading_bin_deg)
    columns = (positions[:, 0], positions[:, 1], catalogue.heading)
    order, starts, ends = _classes(_class_numbers(*columns, cell_side_m, heading_bin_deg), min_images_per_class)
    cells = {"cell_side_m": cell_side_m, "heading_bin_deg": heading_bin_deg}
    spacing = {"groups_per_side": groups_per_side, "groups_per_heading": groups_per_heading}
    east, north, heading = (column[order[starts]] for column in columns)
    ids = class_ids(east, north, heading, **cells)
    # Encode each group id as one number that sorts like the id.
    weights = np.array([groups_per_side * groups_per_heading, groups_per_heading, 1])
    numbers = group_ids(ids, **cells, **spacing) @ weights
    present, group_of_class = np.unique(numbers, return_inverse=True)
    num_groups = len(present) if num_groups is None else num_groups
    if num_groups < 1 or num_groups > len(present):
        raise ValueError(
            f"`num_groups` is {num_groups}, but the images form {counted(len(present), 'group')} with classes of "
            f"at least {min_images_per_class} images: choose from 1 to {len(present)}."
        )
    groups = []
    for index in range(num_groups):
        members = np.flatnonzero(group_of_class == index)
        groups.append(_group(ids[members], order, starts[members], ends[members]))
    settings = {**cells, **spacing, "min_images_per_class": min_images_per_class, "num_groups": num_groups}
    return Partition(settings, tuple(groups))


def _group(ids: np.ndarray, order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Group:
    """Build the group of classes (C, 3) whose images are `order[starts[c]:ends[c]]`."""
    sizes = ends - starts
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
    return Group(ids, order[indices], offsets)


def check_positions(catalogue: Catalogue, positions: np.ndarray) -> None:
    """Check that all images have positions, (N, 2), to be trained on.

    Raises:
        ValueError: some have none.
    """
    nowhere = int((~np.isfinite(positions)).any(axis=1).sum())
    if nowhere:
        raise ValueError(
            f"{nowhere} of {len(catalogue)} images of {catalogue.folder} have no coordinates: they can be evaluated "
            f"with, not trained on."
        )


def check_same_partition(stored: DescribedPartition, partition: Partition, source: str) -> None:
    """Check that something learned per class belongs to the classes of a partition.

    Args:
        stored: result of `Partition.describe` when it was learned.
        partition: the partition it is to be used with.
        source: what `stored` was read from, for the error message.

    Raises:
        ValueError: the partitions differ; the message names the difference.
    """
    current = partition.describe()
    if stored["fingerprint"] == current["fingerprint"]:
        return
    counts = zip(stored["classes_per_group"], current["classes_per_group"], strict=False)
    same_groups = all(before == now for before, now in counts)
    for name, value in current["settings"].items():
        # Without a number of groups, that of the groups found is recorded: it can also differ because images changed.
        if stored["settings"].get(name) != value and (name != "num_groups" or same_groups):
            raise ValueError(f"{source} was made with `{name}` = {stored['settings'].get(name)}, now it is {value}.")
    if stored["classes_per_group"] != current["classes_per_group"]:
        raise ValueError(
            f"{source} was made for {stored['classes_per_group']} classes per group, the images now give "
            f"{current['classes_per_group']}: the training images changed."
        )
    raise ValueError(f"{source} was made for as many classes in other places: the training images changed.")


def _class_indices(
    east: np.ndarray, north: np.ndarray, heading: np.ndarray, cell_side_m: int, heading_bin_deg: int
) -> list[np.ndarray]:
    """Compute the column and row of each image's cell and its heading bin, int64 (N,) each."""
    turned = np.nan_to_num(heading) % 360
    turned = np.where(turned == 360, 0, turned)  # the remainder of a tiny negative number rounds to 360
    steps = ((east, cell_side_m), (north, cell_side_m), (turned, heading_bin_deg))
    return [np.floor(np.asarray(values, np.float64) / step).astype(np.int64) for values, step in steps]


def _class_numbers(
    east: np.ndarray, north: np.ndarray, heading: np.ndarray, cell_side_m: int, heading_bin_deg: int
) -> np.ndarray:
    """Encode each image's class as one number that sorts like its class id, int64 (N,), to save memory."""
    numbers = np.empty(len(east), np.int64)
    easts, norths = (np.array([values.min(), values.max()]) for values in (east, north))
    (first_column, _), (first_row, last_row), _ = _class_indices(
        easts, norths, np.zeros(2), cell_side_m, heading_bin_deg
    )
    rows, bins = last_row - first_row + 1, 360 // heading_bin_deg
    for start in range(0, len(numbers), _ROWS_AT_ONCE):  # chunks keep temporary arrays small
        part = slice(start, start + _ROWS_AT_ONCE)
        column, row, bin_ = _class_indices(east[part], north[part], heading[part], cell_side_m, heading_bin_deg)
        numbers[part] = ((column - first_column) * rows + row - first_row) * bins + bin_
    return numbers


def _classes(numbers: np.ndarray, min_images_per_class: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort rows by class, and return the start and end of each class with enough images in that order."""
    order, numbers = _sorted_with_rows(numbers)
    changes = np.flatnonzero(np.diff(numbers)) + 1
    starts, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(numbers)]])
    enough = ends - starts >= min_images_per_class
    if not enough.any():
        raise NoClass(
            f"No class has `min_images_per_class` = {min_images_per_class} images: {len(numbers)} images fell into "
            f"{len(starts)} classes, the largest with {int((ends - starts).max())}. Lower it, or use larger cells."
        )
    return order, starts[enough], ends[enough]


def _sorted_with_rows(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows sorted stably by their numbers, and the sorted numbers; `numbers` may be overwritten."""
    bits = len(numbers).bit_length()
    if int(numbers.max()).bit_length() + bits > 63:
        order = np.argsort(numbers, kind="stable")
        return order, numbers[order]
    # Pack number and row into one integer: sorting integers is several times faster than argsort.
    numbers <<= bits
    numbers |= np.arange(len(numbers))
    numbers.sort()
    order = numbers & ((1 << bits) - 1)
    numbers >>= bits
    return order, numbers


def _check_cells(cell_side_m: int, heading_bin_deg: int) -> None:
    if cell_side_m < 1:
        raise ValueError(f"`cell_side_m` must be at least 1, got {cell_side_m}.")
    if heading_bin_deg < 1 or 360 % heading_bin_deg:
        raise ValueError(f"`heading_bin_deg` must divide 360, got {heading_bin_deg}. Use for example 30.")


def _check_groups(heading_bin_deg: int, groups_per_side: int, groups_per_heading: int) -> None:
    if groups_per_side < 1:
        raise ValueError(f"`groups_per_side` must be at least 1, got {groups_per_side}.")
    bins = 360 // heading_bin_deg
    if groups_per_heading < 1 or bins % groups_per_heading:
        raise ValueError(
            f"`groups_per_heading` must divide the number of heading bins, {bins}, so that bins of one group do "
            f"not meet across north; got {groups_per_heading}."
        )


def _check_headings(catalogue: Catalogue, heading_bin_deg: int) -> None:
    unknown = int(np.isnan(catalogue.heading).sum())
    if heading_bin_deg < 360 and 0 < unknown < len(catalogue):
        raise ValueError(
            f"{unknown} of {len(catalogue)} images in {catalogue.folder} have no heading. "
            f"Set `heading_bin_deg` to 360 and `groups_per_heading` to 1 to use cells alone."
        )
