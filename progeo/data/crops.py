"""Random resized crops of single images, each cut from an image's own pixels and resized once, in a worker process."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 2
"""Random numbers that the crop of an image takes."""


class Box(NamedTuple):
    """A part of an image in whole pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RandomCrop:
    """Cut out a random box and resize it, with the distribution of torchvision's RandomResizedCrop."""

    size: tuple[int, int]
    """Height and width in pixels that a box is resized to, bilinear with antialiasing."""
    scale: tuple[float, float]
    """Area of a box, as a fraction of the image's; 1 and 1 take the complete image, whatever its shape."""
    ratio: tuple[float, float]
    """Width / height of a box."""

    def __call__(self, image: Tensor, draws: np.ndarray) -> Tensor:
        """Crop a uint8 image (3, H, W) to (3, height, width).

        Args:
            image: of any height and width.
            draws: (CROP_DRAWS,) uniform in 0..1, see `box`.
        """
        box = self.box(draws, image.shape[1], image.shape[2])
        return F.resized_crop(image, *box, size=list(self.size), antialias=True)

    def box(self, draws: np.ndarray, height: int, width: int) -> Box:
        """Draw a box inside an image: the first of ten random shapes that fits, anywhere in it.

        Where none fits, it is the central box that covers one side of the image with an allowed ratio.

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

    def _central_box(self, height: int, width: int) -> Box:
        box_height = min(height, max(1, round(width / self.ratio[0])))
        box_width = min(width, max(1, round(height * self.ratio[1])))
        return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
