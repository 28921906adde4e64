"""Settings of the commands that extract descriptors, evaluate encoders, and build and query place indexes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from progeo.features.options import CacheSettings, WorkSettings
from progeo.image_files import Orientation
from progeo.models.options import Preprocessing, QueryPreprocessing


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(CacheSettings):
    """Settings of extracting descriptors with an encoder."""

    image_size: int | tuple[int, int] | None = None
    """Size in pixels that images are resized to: one side of a square, or height and width. null takes the encoder's
    image size."""
    database_preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of database images. hard_resize resizes to image_size and ignores the aspect ratio; single_query
    resizes the shorter side to the shorter side of image_size and keeps the aspect ratio; central_crop resizes to cover
    image_size and crops the center; five_crops averages the descriptors of five square crops; native keeps the image as
    it is."""
    orientation: Orientation = "exif"
    """Orientation of photos. exif rotates photos upright by their EXIF orientation; ignore takes the pixels as stored,
    as most published code does."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(ExtractSettings):
    """Settings of a benchmark: the data set, the criterion for a correct prediction, and the recalls to report."""

    folder: Path
    """Folder that holds the database and the queries."""
    out: Path
    """Output folder for the results."""
    protocol: str | None = None
    """Name of a protocol in progeo/evaluation/protocols, such as pitts30k_test. It sets database, queries,
    positive_radius_m and one_per_panorama, and a folder with other image counts is refused. null uses those settings as
    given."""
    database: str = "database"
    """Name of the database folder inside folder."""
    queries: str = "queries"
    """Name of the query folder inside folder, such as queries_v1."""
    query_preprocessing: QueryPreprocessing = "hard_resize"
    """Preprocessing of queries. Takes the values of database_preprocessing, and also nearest_crop (each of the five
    crops is searched separately and the nearest matches win) and maj_voting (the five crops vote)."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many meters of a query is a positive (a correct match)."""
    positive_angle_deg: PositiveFloat | None = None
    """Maximum heading difference in degrees between a query and its positives, in addition to positive_radius_m. null
    ignores headings."""
    radii_m: tuple[PositiveFloat, ...] = (5.0, 25.0, 100.0)
    """Additional radii in meters for which recall is reported."""
    without_positive: Literal["missed", "excluded"] = "missed"
    """Handling of queries without any positive in the database: missed counts them as misses, as common benchmarks do;
    excluded removes them from recall."""
    one_per_panorama: bool = False
    """Count only the nearest prediction of each panorama, as is usual for Tokyo 24/7."""
    recall_ns: tuple[PositiveInt, ...] = (1, 5, 10, 20)
    """The values of N in recall@N."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(BenchmarkSettings):
    """Settings of evaluating one encoder."""

    encoder: str
    """Encoder to evaluate: the folder of an exported encoder or of a stage 2 run; open_clip:ARCHITECTURE:WEIGHTS or
    torchvision:ARCHITECTURE:WEIGHTS; thumbnail; or a folder with database_descriptors.npy and queries_descriptors.npy
    of another program, rows in the order of the sorted paths."""
    index: str | None = None
    """faiss factory string of a compressed index to evaluate, such as IVF1024,Flat, OPQ32,IVF1024,PQ32, HNSW32, SQ8 or
    PCA128,Flat. The report then also gives the recall lost and the memory saved. null searches exactly."""
    probes: PositiveInt = 16
    """Number of inverted lists that a search visits (faiss nprobe). Only an IVF index uses it."""
    no_labels: bool = False
    """Evaluate queries without known positions: write a report and the predictions, but no recalls. Any file names are
    accepted."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings(BenchmarkSettings):
    """Settings of comparing several encoders."""

    encoders: tuple[str, ...]
    """Encoders to compare, each in the form that `progeo evaluate --encoder` takes. The results of each go to a
    subfolder of out."""


@dataclass(frozen=True, kw_only=True)
class ReduceSettings(ExtractSettings):
    """Settings of reducing the descriptor dimension of an encoder with PCA."""

    encoder: str
    """Folder of an exported encoder or of a stage 2 run."""
    folder: Path
    """Folder of images whose descriptors the PCA is fitted to, such as the training images."""
    to: Path
    """Output folder for the encoder with the PCA appended."""
    dim: PositiveInt
    """Number of descriptor dimensions to keep."""
    whiten: bool = False
    """Whiten the descriptors: scale every dimension to the same variance."""
    sample: PositiveInt = 20_000
    """Number of images to fit the PCA to, evenly sampled from folder. All images are used if there are fewer."""


@dataclass(frozen=True, kw_only=True)
class IndexBuildSettings(ExtractSettings):
    """Settings of building a place index."""

    folder: Path
    """Folder of images with known positions. An image whose name has no position is still retrieved, but as a match
    without a position."""
    encoder: str
    """Folder of an exported encoder or of a stage 2 run."""
    out: Path
    """Output folder for the place index."""
    query_preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of the photos to localize. Takes the values of database_preprocessing."""
    index: str = "Flat"
    """faiss factory string of the descriptor index. Flat is exact; IVF1024,Flat is faster to search; OPQ32,IVF1024,PQ32
    is faster and smaller."""
    probes: PositiveInt = 16
    """Number of inverted lists that a search visits (faiss nprobe). Only an IVF index uses it."""


@dataclass(frozen=True, kw_only=True)
class IndexAddSettings(CacheSettings):
    """Settings of adding images to a place index."""

    index: Path
    """Folder of the place index."""
    folder: Path
    """Folder of images with known positions to add. Images that the index already holds are not added again."""


@dataclass(frozen=True, kw_only=True)
class IndexCalibrateSettings(CacheSettings):
    """Settings of calibrating the confidence of a place index."""

    index: Path
    """Folder of the place index."""
    folder: Path
    """Folder of photos with known positions, taken where and how later queries will be; some may lie outside the area
    of the index. Photos that are in the index themselves are skipped."""
    radius_m: PositiveFloat = 25.0
    """A localization within this many meters of the true position is correct. The confidence estimates the probability
    of that."""


@dataclass(frozen=True, kw_only=True)
class LocalizeSettings(WorkSettings):
    """Settings of localizing photos."""

    photos: tuple[Path, ...] = ()
    """Photos to localize: image files, and folders that are searched recursively."""
    index: Path
    """Folder of the place index."""
    text: str | None = None
    """Sentence to search the index with instead of photos. Requires an encoder that shares CLIP's text space. null
    searches with photos."""
    top: PositiveInt = 5
    """Number of matches to show for each query."""
    threshold: ClosedUnitInterval = 0.5
    """Minimum confidence, from 0 to 1. A position with a lower confidence is reported as unknown."""
    out: Path | None = None
    """File to write the localizations to, ending in .csv, .geojson or .json. null writes none."""
