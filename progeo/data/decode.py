"""Decode image files to pixels."""

from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from progeo.image_files import Orientation, open_image, taking_turns
from progeo.pixels import orientation_of, pixels_of, swaps_sides

_SIZED_WHEN_DECODED = ("TIFF", "HEIF")
"""Formats whose height and width are only reliable after decoding."""


def read_shape(source: Path | BinaryIO, orientation: Orientation = "exif") -> tuple[int, int] | None:
    """Read the height and width that `read_image` would return, decoding as little as possible; None on failure."""
    try:
        with open_image(source) as image, taking_turns(image):  # a PNG may store its orientation after the pixels
            if image.format in _SIZED_WHEN_DECODED:
                image.load()
            swaps = orientation == "exif" and swaps_sides(orientation_of(image))
            return (image.width, image.height) if swaps else (image.height, image.width)
    except Exception:  # decoders raise many kinds of errors
        return None


def read_image(path: Path, orientation: Orientation = "exif") -> Tensor:
    """Decode an image file to uint8 RGB (3, H, W), see `pixels_of`.

    Raises:
        ValueError: the file is not an image, or is truncated.
        FileNotFoundError: the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        return decode_image(path, orientation)
    except ValueError as error:
        raise ValueError(f"The image {path} cannot be decoded: {error}.") from None


def decode_image(source: Path | BinaryIO, orientation: Orientation = "exif") -> Tensor:
    """Decode a file or stream to uint8 RGB (3, H, W), see `pixels_of`.

    Raises:
        ValueError: it is not an image, or is truncated; the message is the reason without a full stop.
    """
    try:
        with open_image(source) as image, taking_turns(image):
            return pixels_of(image, orientation)
    except Exception as error:  # decoders raise many kinds of errors
        no_memory = isinstance(error, MemoryError)
        raise ValueError("not enough memory" if no_memory else str(error).rstrip(".") or type(error).__name__) from None
