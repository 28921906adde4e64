"""From a file to pixels."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

_LYING = (5, 6, 7, 8)
"""EXIF orientations of which height and width change places."""


def read_shape(path: Path) -> tuple[int, int] | None:
    """Height and width that `read_image` would give, from the beginning of a file; None where it would fail there."""
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":  # Pillow turns it itself as it decodes
                image.load()
                return image.height, image.width
            lies = image.getexif().get(ExifTags.Base.Orientation) in _LYING
            return (image.width, image.height) if lies else (image.height, image.width)
    except Exception:  # decoders fail in many ways
        return None


def read_image(path: Path) -> Tensor:
    """Decode an image file to uint8 RGB (3, H, W), turned upright by its EXIF orientation.

    Raises:
        ValueError: a file that is no image, or only the beginning of one.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # no copy of the many that are upright and RGB already
            if image.mode.startswith("I"):  # 16 bits, which conversion would cut off at 255
                grey = (np.asarray(image) // 256).clip(0, 255).astype(np.uint8)
                return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
            return pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # decoders fail in many ways, all of them meaning this
        raise ValueError(f"The image {path} cannot be decoded: {error}.") from None
