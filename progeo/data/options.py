"""Options of reading and augmenting training images."""

from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt

from progeo.cores import default_workers
from progeo.image_files import Orientation


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Training images, and how images are read."""

    train_folder: Path
    """Folder of training images. <folder>_images_paths.txt next to it may list them."""
    license: str | None = None
    """License of the training images, which `progeo export` writes to the model card. null is unknown."""
    num_workers: NonNegativeInt = field(default_factory=default_workers)
    """Number of processes that decode images, for each process of a training. The default is the number of cores that
    this process may use, at most 16; several processes on a machine share them."""
    eval_batch_size: PositiveInt = 64
    """Number of images per batch for extracting features, where nothing is trained."""
    orientation: Orientation = "exif"
    """Orientation of photos. exif rotates photos upright by their EXIF orientation; ignore takes the pixels as stored,
    as most published code does."""
    fast_decode: bool = False
    """Decode JPEG files at a half, a quarter or an eighth of their size where the images that a network gets are no
    larger than that. Faster for large photos, with slightly different pixels. Validation and the final test decode all
    pixels."""
    max_unreadable_fraction: ClosedUnitInterval = 0.01
    """Maximum fraction of unreadable images, from 0 to 1; at least one is allowed. Stage 1 skips unreadable images and
    stage 2 replaces them by another image of the class; above this fraction both stop. 0 allows none."""


@dataclass(frozen=True)
class Augmentation:
    """The strength of the augmentation of training images."""

    brightness: float = 0.7
    """Brightness is multiplied by a random factor between 1 minus and 1 plus this value; 0 leaves it unchanged."""
    contrast: float = 0.7
    """Contrast is multiplied by a random factor between 1 minus and 1 plus this value; 0 leaves it unchanged."""
    saturation: float = 0.7
    """Saturation is multiplied by a random factor between 1 minus and 1 plus this value; 0 leaves it unchanged."""
    hue: float = 0.5
    """The hue is shifted by up to this fraction of the full circle, at most 0.5; 0 leaves it unchanged."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Range of a random crop's area as a fraction of the image area, before resizing; 1 and 1 disable cropping."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a random crop's aspect ratio, width / height, before resizing."""
    rand_augment: int = 0
    """Number of random operations of RandAugment that each crop gets before the changes of color, 3 in trainings on
    GSV-Cities; 0 applies none."""
    rand_augment_magnitude: int = 9
    """Magnitude of the operations of RandAugment, from 0 to 30."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1, got {getattr(self, name)}.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"`hue` must be from 0 to 0.5, got {self.hue}.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"`crop_scale` must rise within 0 to 1, got {list(self.crop_scale)}.")
        if self.rand_augment < 0:
            raise ValueError(f"`rand_augment` must be a number of operations, 0 or more, got {self.rand_augment}.")
        if not 0 <= self.rand_augment_magnitude <= 30:
            raise ValueError(f"`rand_augment_magnitude` must be from 0 to 30, got {self.rand_augment_magnitude}.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"`crop_ratio` must rise and be positive, got {list(self.crop_ratio)}.")


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Perspective views of each panorama."""

    headings: PositiveInt = 12
    """Number of views per panorama, in equal steps clockwise, starting at north."""
    fov: PositiveFloat = 90.0
    """Horizontal and vertical field of view in degrees, below 180."""
    size: PositiveInt = 512
    """Side of each square view in pixels."""
