"""Image preprocessing: resizing, cropping and normalizing, for training and inference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from progeo.image_files import Resize

if TYPE_CHECKING:  # loading an encoder needs no jsonargparse
    from progeo.models.options import QueryPreprocessing

_MIN_SIDE_PX = 32
"""Minimum side that every encoder accepts."""
_MAX_ASPECT = 50
"""Maximum aspect ratio (longer / shorter side) if the aspect is kept: far above any panorama, yet bounds memory."""
_MAX_RESIZED_PX = 2**26
"""Maximum pixels of an image that a network gets, about 8192 x 8192; it has feature maps of many times the memory."""
_OF_ANY_ASPECT = ("hard_resize", "native")
_WITH_ASPECT = ("single_query", "larger_query")
"""Kinds that resize the shorter side, so that the aspect of the image is kept."""


def preprocess_image(
    image: Tensor, kind: "QueryPreprocessing", size: tuple[int, int], resize: Resize = "bilinear"
) -> Tensor:
    """Resize or crop a uint8 image (3, H, W), with antialiasing.

    Args:
        image: an image of any size.
        kind: `hard_resize` resizes to `size`, changing the aspect; `single_query` resizes so that the shorter side is
            the shorter side of `size`, keeping the aspect, `larger_query` so that it is the longer side of `size`;
            `central_crop` resizes to the smallest size that covers `size`, then crops the center; `native` does
            nothing; all others resize as `single_query`, then take five square crops of that side: four corners and
            the center.
        size: height and width in pixels.
        resize: interpolation of the resizing.

    Returns:
        uint8 (3, h, w), or five crops (5, 3, s, s).

    Raises:
        ValueError: an image below 32 pixels a side with `native`, too thin to keep its aspect, or of more than 2^26
            pixels where its shape depends on the image.
    """
    height, width = image.shape[1:]
    if kind == "native" and min(height, width) < _MIN_SIDE_PX:
        raise ValueError(f"{height} x {width} pixels are fewer than {_MIN_SIDE_PX} a side")
    if kind not in _OF_ANY_ASPECT and max(height, width) > _MAX_ASPECT * min(height, width):
        raise ValueError(
            f"{height} x {width} pixels are too thin for {kind}: one side may be {_MAX_ASPECT} times the other at "
            f"most. Crop it, or use hard_resize"
        )
    if kind == "hard_resize":
        return resize_image(image, size, resize)
    scaled = _within_limit(image, resized_shape(kind, size, height, width), resize)
    if kind == "central_crop":
        return F.center_crop(scaled, list(size))
    return scaled if depends_on_shape(kind) else torch.stack(F.five_crop(scaled, [_shorter_side(kind, size)]))


def resized_shape(kind: "QueryPreprocessing", size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the height and width that `preprocess_image` resizes an entire image to, before any crop.

    Args:
        kind, size: see `preprocess_image`.
        height, width: of the image.
    """
    if kind == "native":
        return height, width
    if kind == "hard_resize":
        return size
    if kind == "central_crop":
        scale = max(size[0] / height, size[1] / width)
        return max(size[0], round(height * scale)), max(size[1], round(width * scale))
    return _with_shorter_side((height, width), _shorter_side(kind, size))


def preprocessed_shape(kind: "QueryPreprocessing", size: tuple[int, int], own: tuple[int, int]) -> tuple[int, int, int]:
    """Return the number, height and width of the images that `preprocess_image` makes of one image.

    Args:
        kind, size: see `preprocess_image`.
        own: height and width of the image, which makes a difference where `depends_on_shape`.
    """
    if depends_on_shape(kind):
        return (1, *resized_shape(kind, size, *own))
    return (1, *size) if kind in ("hard_resize", "central_crop") else (5, min(size), min(size))


def depends_on_shape(kind: "QueryPreprocessing") -> bool:
    """Return whether the shape of a preprocessed image depends on that of the original image."""
    return kind in ("native", *_WITH_ASPECT)


def changes_once(kind: "QueryPreprocessing") -> bool:
    """Return whether an image that is preprocessed again stays as it is: one that is not cut into five crops."""
    return kind in ("hard_resize", "central_crop", "native", *_WITH_ASPECT)


def resize_image(image: Tensor, size: tuple[int, int], resize: Resize = "bilinear") -> Tensor:
    """Resize images (..., 3, H, W), uint8 or floats in 0..1, to (height, width) with antialiasing.

    The aspect may change. Floats stay in 0..1, as uint8 stays in 0..255, where bicubic interpolation overshoots.
    """
    if image.shape[-2:] == size:
        return image
    resized = F.resize(image, list(size), InterpolationMode(resize), antialias=True)
    return resized.clamp_(0, 1) if resize == "bicubic" and resized.is_floating_point() else resized


def normalize_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize images (..., 3, H, W), uint8 in 0..255 or float in 0..1, to floats, with mean (3,) and std (3,)."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return (floats - mean[:, None, None]).div_(std[:, None, None])


def _within_limit(image: Tensor, size: Sequence[int], resize: Resize) -> Tensor:
    """Resize an image to (height, width) unless that is too large."""
    height, width = size
    if height * width > _MAX_RESIZED_PX:
        raise ValueError(f"{height} x {width} pixels, as a network would get it, are more than {_MAX_RESIZED_PX:,}")
    return resize_image(image, (height, width), resize)


def _shorter_side(kind: "QueryPreprocessing", size: tuple[int, int]) -> int:
    return max(size) if kind == "larger_query" else min(size)


def _with_shorter_side(own: tuple[int, int], side: int) -> tuple[int, int]:
    height, width = own
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
