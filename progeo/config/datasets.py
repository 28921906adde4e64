"""Settings of making and checking sets of images."""

from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import PositiveFloat, PositiveInt

from progeo.config.training import CellSettings


@dataclass(frozen=True)
class ToyCitySettings:
    """Settings of a toy city."""

    out: Path
    """Folder to make."""
    seed: int = 0
    """Of the streets, the houses and the weather."""
    num_images: PositiveInt = 2000
    """Images in all, over train, val and test."""
    image_size: int = 128
    """Side of an image in pixels."""


@dataclass(frozen=True)
class DatasetIndexSettings:
    """Settings of an index."""

    folder: Path
    """Folder of images; its index is written beside it, as <folder>.arrow."""
    out: Path | None = None
    """For a folder on a disk that cannot be written to: the index is written as <out>.arrow; <out> then stands for a
    folder of images in every command."""


@dataclass(frozen=True)
class DatasetTableSettings:
    """Settings of reading a table of images."""

    table: Path
    """.csv, .tsv, .parquet or .geojson with a column path, latitude and longitude (or UTM east and north), heading."""
    out: Path
    """The catalogue is written as <out>.arrow; <out> then stands for a folder of images in every command."""
    images: Path | None = None
    """Folder that the paths are relative to; null takes the table's."""
    link: bool = False
    """Make the folder <out> too, of symbolic links with the standard names, for other tools."""


@dataclass(frozen=True)
class DatasetPhotosSettings:
    """Settings of reading photos that say where they were taken."""

    folder: Path
    """Folder of photos with GPS positions in their EXIF."""
    out: Path
    """The catalogue is written as <out>.arrow; <out> then stands for a folder of images in every command."""
    link: bool = False
    """Make the folder <out> too, of symbolic links with the standard names, for other tools."""


@dataclass(frozen=True)
class DatasetStructSettings:
    """Settings of reading a dbStruct."""

    file: Path
    """Such as pitts30k_test.mat, pitts250k_train.mat, tokyo247.mat or tokyoTM_val.mat."""
    images: Path
    """Folder that the names of database images are relative to."""
    out: Path
    """Folder for database.arrow and queries.arrow, for evaluate.py --folder or data.val_folder."""
    query_images: Path | None = None
    """The same of queries; null takes images."""
    link: bool = False
    """Make the folders database and queries too, of symbolic links with the standard names, for other tools."""


@dataclass(frozen=True)
class DatasetArraysSettings:
    """Settings of reading ground truth as NumPy arrays."""

    folder: Path
    """Holds dbImages.npy, qImages.npy and gt.npy, whatever their names begin with."""
    images: Path
    """Folder that the names in them are relative to."""
    out: Path
    """Folder for database.arrow and queries.arrow, for evaluate.py --folder."""


@dataclass(frozen=True)
class DatasetCheckSettings:
    """Settings of a check."""

    folder: Path
    """Folder of training images, or one with database and queries."""
    out: Path | None = None
    """Folder for check.json and check.html, a page with a map and a histogram; null writes nothing."""
    database: str = "database"
    """Name of the database's folder."""
    queries: str = "queries"
    """Name of the queries' folder."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many metres of a query is right for it."""
    min_side_px: PositiveInt = 64
    """Images with a shorter side are called tiny."""
    cells: CellSettings = field(default_factory=CellSettings)


@dataclass(frozen=True)
class DatasetGroupsSettings:
    """Settings of a plan of groups."""

    folder: Path
    """Folder of training images."""
    cells: CellSettings = field(default_factory=CellSettings)
