"""Settings of describing images with encoders, and of measuring what is found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from progeo.features.options import CacheSettings, WorkSettings
from progeo.models.preprocessing import Preprocessing, QueryPreprocessing
from progeo.pixels import Orientation


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(CacheSettings):
    """How an encoder describes images."""

    image_size: int | tuple[int, int] | None = None
    """Pixels that images are resized to: one side, or height and width; null takes the encoder's own."""
    database_preprocessing: Preprocessing = "hard_resize"
    """hard_resize to image_size; single_query to its shorter side, aspect kept; central_crop of it; five_crops of its
    shorter side, the mean of their descriptors; native leaves images as they are."""
    orientation: Orientation = "exif"
    """exif turns photos upright as their files say; ignore takes the pixels as they are stored, as most published
    programs do."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(ExtractSettings):
    """What is evaluated on what, and what counts."""

    folder: Path
    """Folder with the database and the queries."""
    out: Path
    """Folder for results."""
    protocol: str | None = None
    """Such as pitts30k_test, of progeo/evaluation/protocols: sets database, queries, positive_radius_m and
    one_per_panorama, and refuses a folder with other counts."""
    database: str = "database"
    """Name of the database's folder."""
    queries: str = "queries"
    """Name of the queries' folder, such as queries_v1."""
    query_preprocessing: QueryPreprocessing = "hard_resize"
    """As database_preprocessing; also nearest_crop, of which every one of the five searches on its own, and maj_voting,
    in which they vote."""
    positive_radius_m: PositiveFloat = 25.0
    """A database image within this many meters of a query is right for it."""
    positive_angle_deg: PositiveFloat | None = None
    """It is correct only where its heading differs from the query's by at most this many degrees, too; null looks at no
    heading."""
    radii_m: tuple[PositiveFloat, ...] = (5.0, 25.0, 100.0)
    """Recalls are given for these radii too."""
    without_positive: Literal["missed", "left_out"] = "missed"
    """Queries without any right database image: missed, as in the field's benchmarks, or left out."""
    one_per_panorama: bool = False
    """Of the parts of a panorama only the nearest is a prediction, as usual for Tokyo 24/7."""
    recall_ns: tuple[PositiveInt, ...] = (1, 5, 10, 20)
    """The Ns of recall@N."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(BenchmarkSettings):
    """Settings of an evaluation."""

    encoder: str
    """Folder of an exported encoder or of a run of stage 2; open_clip:ARCHITECTURE:WEIGHTS or
    torchvision:ARCHITECTURE:WEIGHTS; thumbnail; or a folder with another program's database_descriptors.npy and
    queries_descriptors.npy, rows in the order of the sorted paths."""
    index: str | None = None
    """Evaluate the search of a compressed index, as faiss writes its kind: IVF1024,Flat, OPQ32,IVF1024,PQ32, HNSW32,
    SQ8, PCA128,Flat; the report says what that loses and saves. null searches exactly."""
    probes: PositiveInt = 16
    """Of an IVF index, how many of its lists a search looks through."""
    no_labels: bool = False
    """Show what is found for queries of which nobody knows where they were taken: a report and predictions, no recalls.
    Names may be any."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings(BenchmarkSettings):
    """Settings of a comparison."""

    encoders: tuple[str, ...]
    """What `progeo evaluate --encoder` takes, any number; each gets a folder in out."""


@dataclass(frozen=True, kw_only=True)
class ReduceSettings(ExtractSettings):
    """Settings of reducing an encoder."""

    encoder: str
    """Folder of an exported encoder or of a run of stage 2."""
    folder: Path
    """Folder of images whose descriptors the components are fitted to, such as the training images."""
    to: Path
    """Folder for the encoder that gives fewer dimensions."""
    dim: PositiveInt
    """Dimensions to keep."""
    whiten: bool = False
    """Give each dimension the same spread."""
    sample: PositiveInt = 20_000
    """Images that are described, spread evenly over the folder; all where there are fewer."""


@dataclass(frozen=True, kw_only=True)
class IndexBuildSettings(ExtractSettings):
    """Settings of building a place index."""

    folder: Path
    """Folder of images whose places are known; those whose names say no position are found without one."""
    encoder: str
    """Folder of an exported encoder or of a run of stage 2."""
    out: Path
    """Folder of the place index."""
    query_preprocessing: Preprocessing = "hard_resize"
    """Of the photos that will be localized; as database_preprocessing."""
    index: str = "Flat"
    """How descriptors are kept, as faiss writes it: Flat exactly; IVF1024,Flat is searched faster; OPQ32,IVF1024,PQ32
    is small, too."""
    probes: PositiveInt = 16
    """Of an IVF index, how many of its lists a search looks through."""


@dataclass(frozen=True, kw_only=True)
class IndexAddSettings(CacheSettings):
    """Settings of adding to a place index."""

    index: Path
    """Folder of the place index."""
    folder: Path
    """Folder of images whose places are known; those that are in the index already stay as they are."""


@dataclass(frozen=True, kw_only=True)
class IndexCalibrateSettings(CacheSettings):
    """Settings of calibrating the confidence of a place index."""

    index: Path
    """Folder of the place index."""
    folder: Path
    """Folder of photos whose places are known, taken where and how later ones will be, some perhaps outside of what is
    in the index; those that are images of the index themselves are skipped."""
    radius_m: PositiveFloat = 25.0
    """Confidence is the probability that a position is right within this many meters."""


@dataclass(frozen=True, kw_only=True)
class LocalizeSettings(WorkSettings):
    """Settings of localizing photos."""

    photos: tuple[Path, ...] = ()
    """Files, and folders with photos at any depth."""
    index: Path
    """Folder of the place index."""
    text: str | None = None
    """Search by a sentence instead, where the encoder shares CLIP's text space."""
    top: PositiveInt = 5
    """Matches shown for each photo."""
    threshold: ClosedUnitInterval = 0.5
    """Below this confidence a position is called unknown."""
    out: Path | None = None
    """.csv, .geojson or .json to write."""
