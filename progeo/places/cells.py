"""Places as classes: images -> cells and heading bins -> groups of classes that never touch (CosPlace, CVPR 2022)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m

_ROWS_AT_ONCE = 2**16


class NoClass(ValueError):
    """No class has enough images."""


@dataclass(frozen=True)
class Group:
    """The classes of one group and their images. The label of a class is its place in `class_ids`."""

    class_ids: np.ndarray
    """Sorted, int64 (C, 3): east and north of the cell's south-west corner in meters, start of the heading bin."""
    rows: np.ndarray
    """Rows of the catalogue, class by class, int64 (n,)."""
    offsets: np.ndarray
    """Images of label c are `rows[offsets[c]:offsets[c + 1]]`, int64 (C + 1,)."""

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_ids)

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of each image of `rows`, int64 (n,)."""
        return np.repeat(np.arange(self.num_classes), np.diff(self.offsets))


@dataclass(frozen=True)
class Partition:
    """A catalogue cut into groups of classes, with the settings that made it."""

    settings: Mapping[str, int]
    groups: tuple[Group, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the settings and of every class id: equal when labels mean the same places."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode())
        for group in self.groups:
            digest.update(group.class_ids.astype("<i8").tobytes())
            digest.update(b"|")
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What is stored beside anything learned per class, for `check_same_partition`."""
        return {
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "classes_per_group": [group.num_classes for group in self.groups],
        }


def class_ids(
    east: np.ndarray, north: np.ndarray, heading: np.ndarray, *, cell_side_m: int, heading_bin_deg: int
) -> np.ndarray:
    """The class of each image: its square cell and its heading bin.

    Args:
        east, north: UTM meters, (N,).
        heading: degrees clockwise from north, (N,); NaN, an unknown heading, falls into bin 0.
        cell_side_m: side of a cell, M in the paper.
        heading_bin_deg: width of a heading bin, alpha in the paper; must divide 360.

    Returns:
        int64 (N, 3): each coordinate rounded down to a multiple of the cell's side or of the bin's width.
    """
    _check_cells(cell_side_m, heading_bin_deg)
    indices = _class_indices(east, north, heading, cell_side_m, heading_bin_deg)
    return np.stack(indices, axis=1) * np.array([cell_side_m, cell_side_m, heading_bin_deg])


def group_ids(
    class_ids: np.ndarray, *, cell_side_m: int, heading_bin_deg: int, groups_per_side: int, groups_per_heading: int
) -> np.ndarray:
    """The group of each class: classes of one group are N cells or L heading bins apart.

    Args:
        class_ids: int64 (N, 3), as `class_ids` gives them.
        cell_side_m, heading_bin_deg: as given to `class_ids`.
        groups_per_side: N in the paper, cells between two classes of a group.
        groups_per_heading: L in the paper, heading bins between two classes of a group; must divide their number.

    Returns:
        int64 (N, 3): cell column modulo N, cell row modulo N, heading bin modulo L.
    """
    _check_groups(heading_bin_deg, groups_per_side, groups_per_heading)
    indices = np.asarray(class_ids, np.int64) // np.array([cell_side_m, cell_side_m, heading_bin_deg])
    return indices % np.array([groups_per_side, groups_per_side, groups_per_heading])


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
    """Cut a catalogue into classes and keep the first `num_groups` groups, in the order of their ids; None keeps all.

    Raises:
        ValueError: settings that do not fit together, headings known for some images only, no class with enough
            images, or more groups asked for than there are.
    """
    _check_cells(cell_side_m, heading_bin_deg)
    (positions,) = positions_m(catalogue)
    _check_positions(catalogue, positions)
    _check_headings(catalogue, heading_bin_deg)
    columns = (positions[:, 0], positions[:, 1], catalogue.heading)
    order, starts, ends = _classes(_class_numbers(*columns, cell_side_m, heading_bin_deg), min_images_per_class)
    ids = class_ids(
        *(column[order[starts]] for column in columns), cell_side_m=cell_side_m, heading_bin_deg=heading_bin_deg
    )
    group_of_class = group_ids(
        ids,
        cell_side_m=cell_side_m,
        heading_bin_deg=heading_bin_deg,
        groups_per_side=groups_per_side,
        groups_per_heading=groups_per_heading,
    )
    # As one number each, in the order of the ids.
    numbers = group_of_class @ np.array([groups_per_side * groups_per_heading, groups_per_heading, 1])
    present, group_of_class = np.unique(numbers, return_inverse=True)
    num_groups = len(present) if num_groups is None else num_groups
    if num_groups < 1 or num_groups > len(present):
        raise ValueError(
            f"cells.num_groups is {num_groups}, but there are {len(present)} groups with classes of at least "
            f"{min_images_per_class} images: choose from 1 to {len(present)}."
        )
    groups = []
    for index in range(num_groups):
        members = np.flatnonzero(group_of_class == index)
        groups.append(_group(ids[members], order, starts[members], ends[members]))
    settings = {
        "cell_side_m": cell_side_m,
        "heading_bin_deg": heading_bin_deg,
        "groups_per_side": groups_per_side,
        "groups_per_heading": groups_per_heading,
        "min_images_per_class": min_images_per_class,
        "num_groups": num_groups,
    }
    return Partition(settings, tuple(groups))


def _group(ids: np.ndarray, order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Group:
    """The group of classes (C, 3) whose images stand from `starts` to `ends` in `order`."""
    sizes = ends - starts
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
    return Group(ids, order[places], offsets)


def check_same_partition(stored: Mapping[str, Any], partition: Partition, source: str) -> None:
    """Stop when something learned per class belongs to other classes.

    Args:
        stored: what `Partition.describe` gave when it was learned.
        partition: the partition it is to be used with.
        source: where `stored` comes from, for the error.

    Raises:
        ValueError: with what differs.
    """
    current = partition.describe()
    if stored["fingerprint"] == current["fingerprint"]:
        return
    for name, value in current["settings"].items():
        if stored["settings"].get(name) != value:
            raise ValueError(
                f"{source} was made with cells.{name} = {stored['settings'].get(name)}, now it is {value}."
            )
    if stored["classes_per_group"] != current["classes_per_group"]:
        raise ValueError(
            f"{source} was made for {stored['classes_per_group']} classes per group, the images now give "
            f"{current['classes_per_group']}: the training images changed."
        )
    raise ValueError(f"{source} was made for as many classes in other places: the training images changed.")


def _class_indices(
    east: np.ndarray, north: np.ndarray, heading: np.ndarray, cell_side_m: int, heading_bin_deg: int
) -> list[np.ndarray]:
    """Column and row of each image's cell, and its heading bin, int64 (N,) each."""
    turned = np.nan_to_num(heading) % 360
    turned = np.where(turned == 360, 0, turned)  # what is least below zero
    steps = ((east, cell_side_m), (north, cell_side_m), (turned, heading_bin_deg))
    return [np.floor(np.asarray(values, np.float64) / step).astype(np.int64) for values, step in steps]


def _class_numbers(
    east: np.ndarray, north: np.ndarray, heading: np.ndarray, cell_side_m: int, heading_bin_deg: int
) -> np.ndarray:
    """One number for each image's class, in the order of class ids, int64 (N,): an eighth of the memory of the ids."""
    numbers = np.empty(len(east), np.int64)
    easts, norths = (np.array([values.min(), values.max()]) for values in (east, north))
    (first_column, _), (first_row, last_row), _ = _class_indices(
        easts, norths, np.zeros(2), cell_side_m, heading_bin_deg
    )
    rows, bins = last_row - first_row + 1, 360 // heading_bin_deg
    for start in range(0, len(numbers), _ROWS_AT_ONCE):  # no other columns of millions are made
        part = slice(start, start + _ROWS_AT_ONCE)
        column, row, bin_ = _class_indices(east[part], north[part], heading[part], cell_side_m, heading_bin_deg)
        numbers[part] = ((column - first_column) * rows + row - first_row) * bins + bin_
    return numbers


def _classes(numbers: np.ndarray, min_images_per_class: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows ordered by class, and where each class with enough images starts and ends in that order."""
    order, numbers = _sorted_with_rows(numbers)
    changes = np.flatnonzero(np.diff(numbers)) + 1
    starts, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(numbers)]])
    enough = ends - starts >= min_images_per_class
    if not enough.any():
        raise NoClass(
            f"No class has cells.min_images_per_class = {min_images_per_class} images: {len(numbers)} images fell into "
            f"{len(starts)} classes, the largest with {int((ends - starts).max())}. Lower it, or use larger cells."
        )
    return order, starts[enough], ends[enough]


def _sorted_with_rows(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows in the order of their numbers, equal ones in their own order; the numbers are sorted in place."""
    bits = len(numbers).bit_length()
    if int(numbers.max()).bit_length() + bits > 63:
        order = np.argsort(numbers, kind="stable")
        return order, numbers[order]
    # Both in one number: sorting numbers is several times faster than sorting their places.
    numbers <<= bits
    numbers |= np.arange(len(numbers))
    numbers.sort()
    order = numbers & ((1 << bits) - 1)
    numbers >>= bits
    return order, numbers


def _check_cells(cell_side_m: int, heading_bin_deg: int) -> None:
    if cell_side_m < 1:
        raise ValueError(f"cells.cell_side_m must be at least 1, got {cell_side_m}.")
    if heading_bin_deg < 1 or 360 % heading_bin_deg:
        raise ValueError(f"cells.heading_bin_deg must divide 360, got {heading_bin_deg}. Use for example 30.")


def _check_groups(heading_bin_deg: int, groups_per_side: int, groups_per_heading: int) -> None:
    if groups_per_side < 1:
        raise ValueError(f"cells.groups_per_side must be at least 1, got {groups_per_side}.")
    bins = 360 // heading_bin_deg
    if groups_per_heading < 1 or bins % groups_per_heading:
        raise ValueError(
            f"cells.groups_per_heading must divide the number of heading bins, {bins}, so that bins of one group do "
            f"not meet across north; got {groups_per_heading}."
        )


def _check_positions(catalogue: Catalogue, positions: np.ndarray) -> None:
    nowhere = int((~np.isfinite(positions)).any(axis=1).sum())
    if nowhere:
        raise ValueError(
            f"{nowhere} of {len(catalogue)} images of {catalogue.folder} have no coordinates: they can be evaluated "
            f"with, not trained on."
        )


def _check_headings(catalogue: Catalogue, heading_bin_deg: int) -> None:
    unknown = int(np.isnan(catalogue.heading).sum())
    if heading_bin_deg < 360 and 0 < unknown < len(catalogue):
        raise ValueError(
            f"{unknown} of {len(catalogue)} images in {catalogue.folder} have no heading. "
            f"Set cells.heading_bin_deg to 360 and cells.groups_per_heading to 1 to use cells alone."
        )
