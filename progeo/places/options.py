"""Options of dividing the map into classes and groups."""

from dataclasses import dataclass

from jsonargparse.typing import PositiveInt


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """Division of the map into classes and groups (CosPlace)."""

    cell_side_m: PositiveInt = 10
    """Side of a cell in meters, M in the paper."""
    heading_bin_deg: int = 30
    """Width of a heading bin in degrees, alpha in the paper. Use 360 for images without heading."""
    groups_per_side: PositiveInt = 5
    """Spacing of the cells of a group along east and north, in cells; N in the paper."""
    groups_per_heading: PositiveInt = 2
    """Spacing of the headings of a group, in heading bins; L in the paper."""
    min_images_per_class: PositiveInt = 10
    """Minimum number of images per class. Classes with fewer images are excluded."""
    num_groups: PositiveInt | None = 8
    """Number of groups to train on. Epoch e of stage 2 trains on group e modulo this number. null takes all groups that
    have a class."""
