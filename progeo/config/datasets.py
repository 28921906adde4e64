"""Settings of making and checking sets of images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from progeo.config.training import CellSettings


@dataclass(frozen=True)
class ToyCitySettings:
    """Settings of a toy city."""

    out: Path
    """Folder to make."""
    seed: NonNegativeInt = 0
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
    columns: dict[str, str] = field(default_factory=dict)
    """What columns are called that have other names: --columns path=photo latitude=y longitude=x."""
    path: str | None = None
    """Template that puts paths together from columns, such as '{city}/{place_id:07d}.jpg'; null takes the column."""
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
    """Settings of reading ground truth of other programs."""

    folder: Path
    """Holds, whatever their names begin with: dbImages.npy, qImages.npy and gt.npy or gt_25m.npy (OpenVPRLab,
    GSV-Cities), or qIdx.npy and pIdx.npy instead (MSLS val of 740 queries); imageNames_index.txt, imageNames_query.txt
    and an .npz (Patch-NetVLAD); ground_truth_new.npy (VPR-Bench)."""
    images: Path
    """Folder that the names in them are relative to; for VPR-Bench that with query and ref."""
    out: Path
    """Folder for database.arrow and queries.arrow, for evaluate.py --folder."""
    name: str | None = None
    """What the names of the files begin with, such as pitts30k_val, where there are those of several sets."""


@dataclass(frozen=True)
class DatasetMslsSettings:
    """Settings of reading Mapillary Street-Level Sequences as it is downloaded."""

    folder: Path
    """Folder of a city with database and query, of several cities, or one with train_val."""
    out: Path
    """Folder for database.arrow and queries.arrow, for evaluate.py --folder or data.val_folder."""
    cities: tuple[str, ...] = ()
    """Such as [cph, sf], the validation's; [] takes all that are there."""
    subtask: Literal["all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d"] | None = "all"
    """Images of a subtask of the benchmark: all, summer to winter, old to new, day to night, or the way back; null
    takes every image."""
    positive_radius_m: PositiveFloat | None = 25.0
    """Queries without a database image within this many meters are left out, as the benchmark does; null keeps them."""


@dataclass(frozen=True)
class DatasetViewsSettings:
    """Settings of cutting panoramas into views."""

    panoramas: Path
    """Folder or catalogue of equirectangular panoramas, twice as wide as high, with positions; their heading is that of
    the center column."""
    out: Path
    """Folder for the views, with the standard names; views that it holds already are not cut again."""
    headings: PositiveInt = 12
    """Views of a panorama, the first to the north, the others clockwise in equal steps."""
    fov: PositiveFloat = 90.0
    """Horizontal and vertical field of view in degrees, below 180."""
    size: PositiveInt = 512
    """Side of a view in pixels."""


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
    """A database image within this many meters of a query is right for it."""
    positive_angle_deg: PositiveFloat | None = None
    """It is correct only where its heading differs from the query's by at most this many degrees, too; null looks at no
    heading."""
    min_side_px: PositiveInt = 64
    """Images with a shorter side are called tiny."""
    cells: CellSettings = field(default_factory=CellSettings)


@dataclass(frozen=True)
class DatasetGroupsSettings:
    """Settings of a plan of groups."""

    folder: Path
    """Folder of training images."""
    cells: CellSettings = field(default_factory=CellSettings)
