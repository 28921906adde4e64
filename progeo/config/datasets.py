"""Settings of looking at a data set before it is trained or evaluated on."""

from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from progeo.places.options import CellOptions


@dataclass(frozen=True, kw_only=True)
class TrainImages:
    """Training images."""

    train_folder: Path
    """Folder of training images."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of planning groups."""

    data: TrainImages
    cells: CellOptions = field(default_factory=CellOptions)


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of checking a data set."""

    database: str = "database"
    """Name of the database folder inside folder."""
    queries: str = "queries"
    """Name of the query folder inside folder."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many meters of a query is a positive (a correct match)."""
    positive_angle_deg: PositiveFloat | None = None
    """Maximum heading difference in degrees between a query and its positives, in addition to positive_radius_m. null
    ignores headings."""
    min_side_px: PositiveInt = 64
    """Images with a shorter side below this many pixels are reported as tiny."""
    sample: PositiveInt | None = None
    """Number of images of each set that are read, spread evenly, to estimate how many images are unreadable or tiny.
    null reads all images. Positions, names and classes are always checked of all."""
    cells: CellOptions = field(default_factory=CellOptions)


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Settings of holding photos of known places out of a training set."""

    every: PositiveInt | None = None
    """Hold out all images of every n-th position in the order of their names: the 4th, the 8th and so on for 4."""
    per_class: PositiveInt | None = None
    """Hold out the last n images by name of every class that has more, see cells."""
    seed: NonNegativeInt | None = None
    """Hold out as many positions, or images of each class, at random. null takes them in the order of names."""
    cells: CellOptions = field(default_factory=CellOptions)


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Settings of merging data sets."""

    cells: CellOptions = field(default_factory=CellOptions)
