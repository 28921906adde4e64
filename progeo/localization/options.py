"""Options of building a place index and of localizing with it; no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from progeo.models.options import Preprocessing

IndexOf = Literal["images", "classes", "means"]
"""What the rows of an index are."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """The rows of a place index, and how they are searched."""

    of: IndexOf = "images"
    """Rows of the index. images has one per image of folder; classes one per class of the encoder's classifier, without
    a folder; means one per class of the images of folder, its mean descriptor."""
    query_preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of the photos to localize. Takes the values of database_preprocessing."""
    faiss: str | None = None
    """faiss factory string of the descriptor index. Flat is exact; IVF1024,Flat is faster to search; IVF1024,RaBitQ and
    OPQ32,IVF1024,PQ32 are faster and smaller. cells has a list for each class of classifier: a photo is compared with
    the images of its most likely map cells only. null takes Flat below 200,000 rows, else RaBitQ in inverted lists."""
    probes: PositiveInt | None = None
    """Number of inverted lists that a search visits (faiss nprobe). Only an IVF index or one of cells uses it. null is
    a quarter of the lists that faiss null chooses, and 16 of others; calibrate --max_loss finds how few suffice."""
    refine: PositiveInt | None = None
    """Number of best rows of a search that are compared exactly, with float16 descriptors on disk; at least as many as
    are returned. null takes 200 for a kind that stores codes, and none for one that stores descriptors as they are."""
    part_rows: PositiveInt = 1_000_000
    """Maximum number of rows of a part of the index; a part is written in memory for itself, and searched alone."""
    verify: bool = False
    """Store local features of the images, at most 1,000 or about 100 kB of each, for localize to verify matches with
    and without the images."""
    classifier: str | None = None
    """Folder of an encoder with the classifier whose cells faiss cells searches; it may be another network. null takes
    encoder."""


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """Photos that are the frames of a drive or a walk."""

    sequence: bool = False
    """Localize the photos, or the frames of one video, as a sequence: the most likely track through the matches of all
    frames, so that a frame is also localized by those before and after it. Requires a calibrated index."""
    sequence_fps: PositiveFloat | None = None
    """Number of frames per second of a sequence: at most so many of a video are localized, and photos in the order
    of their names were taken at this rate. null takes 1 for a video, and orders photos by the times in their EXIF."""
    max_speed_mps: PositiveFloat = 20.0
    """Maximum speed along a sequence in meters per second: 2 for a walk, 15 for a drive through a city."""


@dataclass(frozen=True, kw_only=True)
class ProgramOptions:
    """Files that other programs read."""

    pairs: Path | None = None
    """Text file to write the pairs of each photo and its matches to, as hloc and COLMAP read them. null writes none."""
    pairs_folder: Path | None = None
    """Folder that the names in pairs are relative to: that of the images of hloc or COLMAP. null takes the deepest
    folder that holds all photos and their matches."""
    write_exif: Path | None = None
    """Folder to write copies of the photos to, JPEG, PNG or WebP, with their positions in EXIF and the same pixels:
    only those whose confidence reaches threshold, and that have no position yet. Requires a calibrated index. null
    writes none."""
