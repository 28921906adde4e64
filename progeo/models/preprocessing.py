"""From pixels to what a network takes: resizing, cropping and normalizing, for training and for use."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Preprocessing = Literal["hard_resize", "single_query", "central_crop", "five_crops", "native"]
"""How an image becomes one descriptor, by the names that the field's benchmark gives (Berton et al., CVPR 2022)."""
QueryPreprocessing = Literal[
    "hard_resize", "single_query", "central_crop", "five_crops", "nearest_crop", "maj_voting", "native"
]
"""The same of a query, whose crops may also search on their own."""


_MIN_SIDE_PX = 32
"""What every encoder takes."""
_MAX_ASPECT = 50
"""Longer to shorter side of an image whose aspect is kept: far beyond any panorama, where memory is not."""


def preprocess_image(image: Tensor, kind: QueryPreprocessing, size: tuple[int, int]) -> Tensor:
    """Resize or crop a uint8 image (3, H, W), bilinear with antialiasing.

    Args:
        image: of any size.
        kind: `hard_resize` to `size`, whatever the aspect; `single_query` to the shorter side of `size`, aspect kept;
            `central_crop` to the least size that covers `size`, then its middle; `native` leaves the image as it is;
            all others to the shorter side of `size`, then four corners and the middle, squares of it.
        size: height and width in pixels.

    Returns:
        uint8 (3, h, w), of crops (5, 3, s, s).

    Raises:
        ValueError: an image that is too small to be described as it is, or too thin to keep its aspect.
    """
    if kind == "native":
        if min(image.shape[1:]) < _MIN_SIDE_PX:
            raise ValueError(f"{image.shape[1]} x {image.shape[2]} pixels are fewer than {_MIN_SIDE_PX} a side")
        return image
    if kind == "hard_resize":
        return resize_image(image, size)
    height, width = image.shape[1:]
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ValueError(
            f"{height} x {width} pixels are too thin for {kind}: one side may be {_MAX_ASPECT} times the other at "
            f"most. Crop it, or use hard_resize"
        )
    if kind == "central_crop":
        scale = max(size[0] / height, size[1] / width)
        covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
        return F.center_crop(resize_image(image, covering), list(size))
    scaled = resize_image(image, _with_shorter_side((height, width), min(size)))
    return scaled if kind == "single_query" else torch.stack(F.five_crop(scaled, [min(size)]))


def preprocessed_shape(
    kind: QueryPreprocessing, size: tuple[int, int], own: tuple[int, int] | None
) -> tuple[int, int, int]:
    """How many images of which height and width `preprocess_image` makes of an image of its `own` height and width.

    Where `own` makes no difference it may be None, see `depends_on_shape`.
    """
    if kind == "native":
        return (1, *own)
    if kind == "single_query":
        return (1, *_with_shorter_side(own, min(size)))
    return (1, *size) if kind in ("hard_resize", "central_crop") else (5, min(size), min(size))


def depends_on_shape(kind: QueryPreprocessing) -> bool:
    """Whether images of different shapes stay so."""
    return kind in ("native", "single_query")


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 image (3, H, W) to (height, width), bilinear with antialiasing; the aspect may change."""
    if image.shape[1:] == size:
        return image
    return F.resize(image, list(size), antialias=True)


def normalize_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn images (..., 3, H, W), uint8 in 0..255 or float in 0..1, into floats of the network's mean and spread."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return (floats - mean[:, None, None]).div_(std[:, None, None])


def _with_shorter_side(own: tuple[int, int], side: int) -> tuple[int, int]:
    height, width = own
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
