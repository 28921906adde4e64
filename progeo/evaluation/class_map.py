"""Classes on the map of a page, each as the part of its cell that its images look to, with a color for each group."""

from dataclasses import dataclass

import numpy as np

from progeo.pages.maps import Polygons
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


def class_map(catalogue: Catalogue, partition: Partition, *, num_groups: int | None, in_degrees: bool) -> ClassMap:
    """Lay out the classes of a catalogue, or if there are too many, those around the middle.

    Args:
        num_groups: number of groups that training uses; None uses all. They have a color each if there are enough.
        in_degrees: whether corners are latitude and longitude; otherwise they are north and east in meters.
    """
    cells = {name: partition.settings[name] for name in ("cell_side_m", "heading_bin_deg")}
    ids = np.concatenate([group.class_ids for group in partition.groups])
    sizes = np.concatenate([np.diff(group.offsets) for group in partition.groups])
    groups = np.repeat(np.arange(len(partition.groups)), [group.num_classes for group in partition.groups])
    centers = class_centers(ids, cell_side_m=cells["cell_side_m"])
    away = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
    drawn = np.sort(np.argsort(away, kind="stable")[:MAX_CLASSES])
    corners = class_outlines(ids[drawn], **cells)
    if in_degrees:
        frame = frame_of(catalogue)
        if frame.hemisphere is None:  # contradicted by images that lie in no class
            frame = frame_of(catalogue.take(np.concatenate([group.rows for group in partition.groups])))
        columns = frame.columns(corners)
        corners = np.stack([columns["latitude"], columns["longitude"]], axis=1).reshape(-1, 4, 2)
    else:
        corners = corners[..., ::-1]
    labels = [
        _label(group, heading, count, cells["heading_bin_deg"])
        for group, heading, count in zip(groups[drawn], ids[drawn, 2], sizes[drawn], strict=True)
    ]
    num_own = min(len(partition.groups), num_groups or NUM_COLORS, NUM_COLORS)
    colors = np.minimum(groups, num_own)
    layers = []
    for color in np.unique(colors).tolist():
        rows = np.flatnonzero(colors[drawn] == color)
        is_own = color < num_own
        name = f"group {color + 1}" if is_own else f"{len(partition.groups) - num_own} more"
        name = f"classes of {name}, {sizes[drawn][rows].sum():,} images:"
        layers.append(Polygons(name, color if is_own else None, corners[rows], [labels[row] for row in rows.tolist()]))
    return ClassMap(tuple(layers), len(drawn), len(ids))


def _label(group: int, heading_deg: int, num_images: int, bin_deg: int) -> str:
    looking = "" if bin_deg == 360 else f", looking {heading_deg} to {heading_deg + bin_deg} degrees"
    return f"{num_images:,} images{looking}, group {group + 1}"
