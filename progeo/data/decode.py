"""From a file to pixels."""

from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from progeo.image_files import open_image
from progeo.pixels import Orientation, orientation_of, pixels_of, swaps_sides

_SIZED_WHEN_DECODED = ("TIFF", "HEIF")
"""Formats of which height and width are not sure before the pixels are decoded."""


def read_shape(path: Path, orientation: Orientation = "exif") -> tuple[int, int] | None:
    """Height and width that `read_image` would give, from the beginning of a file; None where it would fail there."""
    try:
        with open_image(path) as image:
            if image.format in _SIZED_WHEN_DECODED:
                image.load()
            swaps = orientation == "exif" and swaps_sides(orientation_of(image))
            return (image.width, image.height) if swaps else (image.height, image.width)
    except Exception:  # decoders fail in many ways
        return None


def read_image(path: Path, orientation: Orientation = "exif") -> Tensor:
    """Decode an image file to uint8 RGB (3, H, W), see `pixels_of`.

    Raises:
        ValueError: a file that is no image, or only the beginning of one.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        return decode_image(path, orientation)
    except ValueError as error:
        raise ValueError(f"The image {path} cannot be decoded: {error}.") from None


def decode_image(source: Path | BinaryIO, orientation: Orientation = "exif") -> Tensor:
    """Decode a file or its content to uint8 RGB (3, H, W), see `pixels_of`.

    Raises:
        ValueError: what it holds is no image, or only the beginning of one; why, without a full stop.
    """
    try:
        with open_image(source) as image:
            return pixels_of(image, orientation)
    except Exception as error:  # decoders fail in many ways, all of them meaning this
        raise ValueError(str(error).rstrip(".") or type(error).__name__) from None
