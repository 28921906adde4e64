"""Options of a benchmark; no torch."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from progeo.models.options import QueryPreprocessing

CELLS = "cells"
"""Name of an index whose inverted lists are map cells, among the factory strings of faiss."""


@dataclass(frozen=True, kw_only=True)
class CriterionOptions:
    """Options of a benchmark: the data set, the criterion for a correct prediction, and the recalls to report."""

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
    radii_m: tuple[PositiveFloat, ...] | None = None
    """Additional radii in meters for which recall is reported. null is 5, 25 and 100 m; for a set wider than 100 km
    whose latitudes and longitudes are all known 1, 25, 200, 750 and 2500 km along great circles."""
    without_positive: Literal["missed", "excluded"] = "missed"
    """Handling of queries without any positive in the database: missed counts them as misses, as common benchmarks do;
    excluded removes them from recall."""
    one_per_panorama: bool = False
    """Count only the nearest prediction of each panorama, as is usual for Tokyo 24/7."""
    recall_ns: tuple[PositiveInt, ...] = (1, 5, 10, 20)
    """The values of N in recall@N."""
    spreadsheet_safe: bool = False
    """Write an apostrophe in front of texts in CSV files, also in those that a page lets download, that a spreadsheet
    would run as a formula: those that begin with =, +, -, @, a tab or a line break and are no numbers."""
    show_paths: bool = False
    """Show whole paths of folders and encoders in pages. By default they show the last two parts of an absolute
    path."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(CriterionOptions):
    """Options of a benchmark: the data set, the criterion for a correct prediction, and the recalls to report."""

    protocol: str | None = None
    """Name of a protocol in progeo/evaluation/protocols, such as pitts30k_test. It sets database, queries,
    positive_radius_m and one_per_panorama, and a folder with other image counts is refused. null uses those settings as
    given."""


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """Options of what queries are compared with."""

    by: Literal["images", "classes"] = "images"
    """What queries are compared with. images retrieves images of the database; classes ranks the places of the
    encoder's classifier, which training with head.weight above 0 and progeo classes write, and needs no database:
    localization recall LR@N counts queries with the center of one of their first N classes within the radius."""
    near: str | None = None
    """Search only images near a rough position. RADIUS_M or RADIUS_M,ERROR_M, such as 500,50: within RADIUS_M meters of
    the position of each query, displaced to the east and to the north by Gaussian errors with a standard deviation of
    ERROR_M meters (0 if omitted), which depend on the name of the query only. LAT,LON,RADIUS_M: of one position for all
    queries. What is correct does not change, so that a query without a positive in its region is missed. null searches
    all. Only used by images that are searched exactly."""
    heading: PositiveFloat | None = None
    """Search only images whose heading differs by at most this many degrees, up to 180, from that of the query, and
    images whose heading is unknown; a query without a heading searches all. null allows all. Only used by images that
    are searched exactly."""
    raw_scores: bool = False
    """Rank classes by dot products with the classifier's vectors as they are, plus the bias of a linear head, as
    published for Divide&Classify, instead of by cosines. Only used by classes."""
    temperature: PositiveFloat | None = None
    """Temperature of the probabilities of classes, as progeo index calibrate fits it for an index of these classes (of
    which the 1,000 best share all probability). null leaves them uncalibrated. Only used by classes."""
    rerank: Literal["k_reciprocal", "matching"] | None = None
    """Re-rank the database: k_reciprocal compares the nearest images of each query with those of the database images
    (Zhong et al., CVPR 2017), all queries together; time grows with the square of the number of images. matching sorts
    the first images of each query by the number of points that match, with one geometry. null does not re-rank. Only
    used by images that are searched exactly."""
    rerank_top: PositiveInt = 20
    """Number of first images of each query that rerank matching matches."""
    rerank_matcher: str = "sift"
    """How rerank matching matches two images: sift needs no weights; vismatch:NAME, such as vismatch:loftr or
    vismatch:superpoint-lightglue, is a matcher of the library vismatch, which pip install 'progeo[match]' installs."""
    rerank_k1: PositiveInt = 20
    """Number of nearest images that rerank k_reciprocal compares: 20 in the paper, 25 in the test of OpenIBL."""
    rerank_k2: PositiveInt = 1
    """Number of nearest images over which rerank k_reciprocal averages what an image has as neighbors: 6 in the paper,
    1 (none but the image) in the test of OpenIBL."""
    rerank_weight: ClosedUnitInterval = 0.1
    """Weight of the descriptor distance in rerank k_reciprocal, 0 to 1, beside the distance between neighbors: 0.3 in
    the paper, 0 in the test of OpenIBL."""


RERANK_OPTIONS = MappingProxyType(
    {"k_reciprocal": ("rerank_k1", "rerank_k2", "rerank_weight"), "matching": ("rerank_top", "rerank_matcher")}
)
"""Names of the options of each kind of re-ranking."""
