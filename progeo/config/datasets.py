"""Settings of creating, importing and checking data sets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from progeo.config.training import CellSettings


@dataclass(frozen=True)
class ToyCitySettings:
    """Settings of rendering a toy city."""

    out: Path
    """Output folder for the toy city."""
    seed: NonNegativeInt = 0
    """Random seed of the streets, houses and weather."""
    num_images: PositiveInt = 2000
    """Total number of images in train, val and test."""
    image_size: int = 128
    """Side of each square image in pixels."""


@dataclass(frozen=True)
class DatasetIndexSettings:
    """Settings of indexing the file names of an image folder."""

    folder: Path
    """Folder of images. Its catalogue is written next to it, as <folder>.arrow."""
    out: Path | None = None
    """Other location for the catalogue, for a folder on a read-only disk: the catalogue is written as <out>.arrow, and
    every command then accepts <out> as an image folder. null writes <folder>.arrow."""


@dataclass(frozen=True)
class DatasetTableSettings:
    """Settings of importing a table of images."""

    table: Path
    """.csv, .tsv, .parquet or .geojson file with the columns path, latitude and longitude (or UTM east and north), and
    heading."""
    out: Path
    """Output name: the catalogue is written as <out>.arrow, and every command then accepts <out> as an image folder."""
    images: Path | None = None
    """Folder that the paths in the table are relative to. null takes the folder of the table."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns that are called differently in the table: --columns path=photo latitude=y longitude=x."""
    path: str | None = None
    """Template that builds each path from columns, such as '{city}/{place_id:07d}.jpg'. null takes the column path."""
    link: bool = False
    """Also create the folder <out> of symbolic links with the standard file names, for other tools."""


@dataclass(frozen=True)
class DatasetPhotosSettings:
    """Settings of importing photos with EXIF GPS positions."""

    folder: Path
    """Folder of photos with GPS positions in their EXIF metadata."""
    out: Path
    """Output name: the catalogue is written as <out>.arrow, and every command then accepts <out> as an image folder."""
    link: bool = False
    """Also create the folder <out> of symbolic links with the standard file names, for other tools."""


@dataclass(frozen=True)
class DatasetStructSettings:
    """Settings of importing a dbStruct .mat file."""

    file: Path
    """dbStruct file, such as pitts30k_test.mat, pitts250k_train.mat, tokyo247.mat or tokyoTM_val.mat."""
    images: Path
    """Folder that the names of database images are relative to."""
    out: Path
    """Output folder for database.arrow and queries.arrow, for evaluate.py --folder or data.val_folder."""
    query_images: Path | None = None
    """Folder that the names of query images are relative to. null takes images."""
    link: bool = False
    """Also create the folders database and queries of symbolic links with the standard file names, for other tools."""


@dataclass(frozen=True)
class DatasetArraysSettings:
    """Settings of importing the ground-truth arrays of other programs."""

    folder: Path
    """Folder with the ground truth, each file name with any prefix: dbImages.npy, qImages.npy and gt.npy or gt_25m.npy
    (OpenVPRLab, GSV-Cities), or qIdx.npy and pIdx.npy in place of the last (MSLS val of 740 queries);
    imageNames_index.txt, imageNames_query.txt and an .npz (Patch-NetVLAD); ground_truth_new.npy (VPR-Bench)."""
    images: Path
    """Folder that the image names are relative to; for VPR-Bench the folder that holds query and ref."""
    out: Path
    """Output folder for database.arrow and queries.arrow, for evaluate.py --folder."""
    name: str | None = None
    """Prefix of the file names, such as pitts30k_val. Required if the folder holds several data sets; null takes the
    only one."""


@dataclass(frozen=True)
class DatasetMslsSettings:
    """Settings of importing Mapillary Street-Level Sequences as downloaded."""

    folder: Path
    """Folder of one city with database and query, of several cities, or a folder that holds train_val."""
    out: Path
    """Output folder for database.arrow and queries.arrow, for evaluate.py --folder or data.val_folder."""
    cities: tuple[str, ...] = ()
    """Cities to import, such as [cph, sf] for the validation set. [] imports all cities in the folder."""
    subtask: Literal["all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d"] | None = "all"
    """Subtask of the benchmark whose images are imported: all, s2w (summer to winter), o2n (old to new), d2n (day to
    night), or the reverse w2s, n2o, n2d. null imports every image."""
    positive_radius_m: PositiveFloat | None = 25.0
    """Queries without a database image within this many meters are excluded, as in the benchmark. null keeps them."""


@dataclass(frozen=True)
class DatasetViewsSettings:
    """Settings of cutting panoramas into perspective views."""

    panoramas: Path
    """Folder or catalogue of equirectangular panoramas with positions, twice as wide as high. The heading of a panorama
    is that of its center column."""
    out: Path
    """Output folder for the views, which get the standard file names. Views that exist already are skipped."""
    headings: PositiveInt = 12
    """Number of views per panorama, in equal steps clockwise, starting at north."""
    fov: PositiveFloat = 90.0
    """Horizontal and vertical field of view in degrees, below 180."""
    size: PositiveInt = 512
    """Side of each square view in pixels."""


@dataclass(frozen=True)
class DatasetCheckSettings:
    """Settings of checking a data set."""

    folder: Path
    """Folder of training images, or a folder that holds the database and the queries."""
    out: Path | None = None
    """Output folder for check.json and check.html, a page with a map and a histogram. null writes neither."""
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
    cells: CellSettings = field(default_factory=CellSettings)


@dataclass(frozen=True)
class DatasetGroupsSettings:
    """Settings of counting the classes and images of every group."""

    folder: Path
    """Folder of training images."""
    cells: CellSettings = field(default_factory=CellSettings)
