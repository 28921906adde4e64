"""Classes on the map of a page, each as the part of its cell that its images look to, with a color for each group."""

from dataclasses import dataclass

import numpy as np

from progeo.pages.maps import MapFrame, Polygons
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Partition, class_centers
from progeo.places.class_shapes import class_outlines
from progeo.places.geographic import frame_of

MAX_CLASSES = 3000
"""Maximum number of drawn classes."""
NUM_COLORS = 8
"""Maximum number of groups with a color of their own; the others are gray."""


@dataclass(frozen=True)
class ClassMap:
    """Classes on the map of a page."""

    layers: tuple[Polygons, ...]
    """The classes of each group; those of groups without a color of their own are together."""
    num_drawn: int
    num_classes: int


def class_map(catalogue: Catalogue, partition: Partition, frame: MapFrame, *, num_groups: int | None) -> ClassMap:
    """Lay out the classes of a catalogue, or if there are too many, those around the middle.

    Args:
        frame: the positions of the catalogue on the map.
        num_groups: number of groups that training uses; None uses all. They have a color each if there are enough.
    """
    ids = np.concatenate([group.class_ids for group in partition.groups])
    sizes = np.concatenate([np.diff(group.offsets) for group in partition.groups])
    groups = np.repeat(np.arange(len(partition.groups)), [group.num_classes for group in partition.groups])
    centers = class_centers(ids, cell_side_m=partition.settings["cell_side_m"])
    away = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
    drawn = np.sort(np.argsort(away, kind="stable")[:MAX_CLASSES])
    corners = _corners(catalogue, partition, frame, ids[drawn])
    num_own = min(len(partition.groups), num_groups or NUM_COLORS, NUM_COLORS)
    layers = []
    for color in range(num_own + 1):
        rows = np.flatnonzero(np.minimum(groups[drawn], num_own) == color)
        if len(rows):
            name = f"group {color + 1}" if color < num_own else f"{len(partition.groups) - num_own} more"
            name = f"classes of {name}, {sizes[drawn[rows]].sum():,} images:"
            of_these = zip(groups[drawn[rows]], ids[drawn[rows], 2], sizes[drawn[rows]], strict=True)
            labels = [_label(*values, partition.settings["heading_bin_deg"]) for values in of_these]
            layers.append(Polygons(name, color if color < num_own else None, corners[rows], labels))
    return ClassMap(tuple(layers), len(drawn), len(ids))


def _corners(catalogue: Catalogue, partition: Partition, frame: MapFrame, ids: np.ndarray) -> np.ndarray:
    """Compute the corners of classes (C, 3) in the unit of the map, (C, 4, 2)."""
    sides = {name: partition.settings[name] for name in ("cell_side_m", "heading_bin_deg")}
    corners = class_outlines(ids, **sides)
    if frame.unit == "meters":
        return corners[..., ::-1]
    meters = frame_of(catalogue)
    if meters.hemisphere is None:  # images that lie in no class contradict the others
        meters = frame_of(catalogue.take(np.concatenate([group.rows for group in partition.groups])))
    columns = meters.columns(corners)
    middle = np.nanmedian(frame.positions[0][:, 1])
    longitude = columns["longitude"] + 360 * np.round((middle - columns["longitude"]) / 360)
    return np.stack([columns["latitude"], longitude], axis=1).reshape(-1, 4, 2)


def _label(group: int, heading_deg: int, num_images: int, bin_deg: int) -> str:
    looking = "" if bin_deg == 360 else f", looking {heading_deg} to {heading_deg + bin_deg} degrees"
    return f"{num_images:,} images{looking}, group {group + 1}"
