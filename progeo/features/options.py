"""Options of extracting features: batch size and workers, images, and the cache; no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from progeo.cores import default_workers
from progeo.image_files import Orientation
from progeo.models.options import Preprocessing


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Options of running a network over images."""

    batch_size: PositiveInt = 64
    """Number of images per batch; fewer if the images have more pixels than the encoder's image size."""
    num_workers: NonNegativeInt = field(default_factory=default_workers)
    """Number of processes that decode images, for each process of a training. The default is the number of cores that
    this process may use, at most 16; several processes on a machine share them."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of the images that an encoder gets."""

    image_size: int | tuple[int, int] | None = None
    """Size in pixels that images are resized to: one side of a square, or height and width. null takes the encoder's
    image size."""
    database_preprocessing: Preprocessing = "hard_resize"
    """Preprocessing of database images. hard_resize resizes to image_size and ignores the aspect ratio; single_query
    resizes the shorter side to the shorter side of image_size and keeps the aspect ratio; larger_query resizes the
    shorter side to the longer side of image_size; central_crop resizes to cover image_size and crops the center;
    five_crops averages the descriptors of five square crops; native keeps the image as it is."""
    orientation: Orientation = "exif"
    """Orientation of photos. exif rotates photos upright by their EXIF orientation; ignore takes the pixels as stored,
    as most published code does."""
    fast_decode: bool = False
    """Decode JPEG files at a half, a quarter or an eighth of their size where the images that a network gets are no
    larger than that. Faster for large photos, with slightly different pixels, of which the cache keeps descriptors of
    their own."""


@dataclass(frozen=True, kw_only=True)
class ClassOptions:
    """Classes whose mean descriptors are taken."""

    cell_side_m: PositiveInt | None = None
    """Side of a cell in meters. null takes that of the encoder's training, or 20 if it was trained without cells."""
    heading_bin_deg: PositiveInt | None = None
    """Width of a heading bin in degrees. null takes that of the encoder's training, or 360, a single bin."""
    min_images_per_class: PositiveInt | None = None
    """Minimum number of images per class; classes with fewer are excluded. null takes that of the encoder's training,
    or 1."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of caching descriptors on disk."""

    descriptor_cache: Path = Path("runs/descriptor_cache")
    """Cache folder for descriptors, which are reused when the same encoder runs on the same images again."""
    keep_as: Literal["float32", "float16"] = "float32"
    """Precision of the cached descriptors."""
    max_unreadable_fraction: ClosedUnitInterval = 0.01
    """Maximum fraction of unreadable images in a folder, from 0 to 1; at least one is allowed. Unreadable images are
    reported and skipped; above this fraction the command stops. 0 allows none."""


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the files of features, such as that of a task of a job array."""

    number: int
    """1 to `count`."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, shards: range) -> range:
        """Return the shards of this share."""
        return shards[self.number - 1 :: self.count]


def parse_share(text: str) -> Share:
    """Parse a share such as `3/64`, the third of 64.

    Raises:
        ValueError: it is no share.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(
            f"`share` must be a number from 1 on and how many there are, such as 3/64, got {text!r}. In a job array, "
            f"number the tasks from 1."
        )
    return Share(int(number), int(count))
