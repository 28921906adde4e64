"""Random resized crops of single images in a worker process, cut at full resolution and resized once."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, RandAugment
from torchvision.transforms.v2 import functional as F

from progeo.image_files import Resize

_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 2
"""Number of random numbers per crop."""


class Box(NamedTuple):
    """A rectangle in an image, in integer pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RandomCrop:
    """Crop a random box and resize it, with the distribution of torchvision's RandomResizedCrop."""

    size: tuple[int, int]
    """Height and width of the result in pixels."""
    scale: tuple[float, float]
    """Range of a box's area as a fraction of the image area; 1 and 1 take the entire image, whatever its shape."""
    ratio: tuple[float, float]
    """Range of a box's aspect ratio, width / height."""
    resize: Resize = "bilinear"
    """Interpolation of the resizing, which is antialiased."""

    def __call__(self, image: Tensor, draws: np.ndarray) -> Tensor:
        """Crop a uint8 image (3, H, W) to (3, height, width).

        Args:
            image: of any height and width.
            draws: random numbers, (CROP_DRAWS,) uniform in 0..1, see `box`.
        """
        top, left, height, width = self.box(draws, image.shape[1], image.shape[2])
        # Channels last and without gaps between rows: resized faster, and the result has channels last.
        cropped = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        return F.resize(cropped, list(self.size), InterpolationMode(self.resize), antialias=True)[0]

    def box(self, draws: np.ndarray, height: int, width: int) -> Box:
        """Compute a random box inside an image: the first of ten random shapes that fits, at a random position.

        If none fits, take the largest central box with an allowed aspect ratio.

        Args:
            draws: (CROP_DRAWS,) uniform in 0..1: ten areas, ten ratios, the distances from the top and the left.
            height, width: of the image in pixels.
        """
        if self.scale == (1, 1):
            return Box(0, 0, height, width)
        *shapes, down, right = draws.tolist()
        (smallest, largest), (narrowest, widest) = self.scale, self.ratio
        for drawn_area, drawn_ratio in zip(shapes[:_TRIES], shapes[_TRIES:], strict=True):
            area = height * width * (smallest + (largest - smallest) * drawn_area)
            ratio = narrowest * (widest / narrowest) ** drawn_ratio
            box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
                return Box(top, left, box_height, box_width)
        return self._central_box(height, width)

    def min_shape(self, height: int, width: int) -> tuple[int, int]:
        """Compute the minimum height and width of an image to which its smallest box still has the size of a crop.

        Args:
            height, width: of the image in pixels, from which the aspect ratio is taken.
        """
        if self.scale == (1, 1):
            return self.size
        area, (narrowest, widest) = height * width * self.scale[0], self.ratio
        box_height = min(height, width / narrowest, math.sqrt(area / widest))
        box_width = min(width, height * widest, math.sqrt(area * narrowest))
        return math.ceil(self.size[0] * height / box_height), math.ceil(self.size[1] * width / box_width)

    def _central_box(self, height: int, width: int) -> Box:
        box_height = min(height, max(1, round(width / self.ratio[0])))
        box_width = min(width, max(1, round(height * self.ratio[1])))
        return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


@dataclass(frozen=True)
class RandAugmentedCrop(RandomCrop):
    """Crop as `RandomCrop`, and apply random operations to the result (RandAugment; Cubuk et al., 2020)."""

    num_operations: int = 3
    magnitude: int = 9
    """Magnitude of the operations, from 0 to 30."""

    def __call__(self, image: Tensor, draws: np.ndarray) -> Tensor:
        """Crop as `RandomCrop` does; the bits of the first random number are the seed of the operations."""
        augment = RandAugment(self.num_operations, self.magnitude, interpolation=InterpolationMode.BILINEAR)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(draws[0] * 2**53))
            augmented = augment(super().__call__(image, draws))
        return augmented.movedim(0, -1).contiguous().movedim(-1, 0)  # channels last, as the crop was
