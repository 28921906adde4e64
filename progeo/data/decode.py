"""Decode image files to pixels."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL.Image import Image
from torch import Tensor

from progeo.image_files import Orientation, open_image, taking_turns
from progeo.pixels import orientation_of, pixels_of, swaps_sides
from progeo.remote_files import RemotePath

MinShape: TypeAlias = Callable[[int, int], tuple[int, int]]
"""Maps the height and width of an upright image to those that are needed of it at least: a JPEG file is decoded at a
half, a quarter or an eighth of its height and width if that is no less."""

_SIZED_WHEN_DECODED = ("TIFF", "HEIF")
"""Formats whose height and width are only reliable after decoding."""
_REDUCIBLE = ("JPEG", "MPO")


def read_shape(
    source: Path | RemotePath | BinaryIO, orientation: Orientation = "exif", min_shape: MinShape | None = None
) -> tuple[int, int] | None:
    """Read the height and width that `read_image` would return, decoding as little as possible; None on failure."""
    try:
        with open_image(source) as image, taking_turns(image):  # a PNG may store its orientation after the pixels
            _reduce(image, orientation, min_shape)
            if image.format in _SIZED_WHEN_DECODED:
                image.load()
            swaps = orientation == "exif" and swaps_sides(orientation_of(image))
            return (image.width, image.height) if swaps else (image.height, image.width)
    except Exception:  # decoders raise many kinds of errors
        return None


def read_image(path: Path | RemotePath, orientation: Orientation = "exif", min_shape: MinShape | None = None) -> Tensor:
    """Decode an image file to uint8 RGB (3, H, W), see `pixels_of`.

    Args:
        path, orientation: of the file.
        min_shape: minimum height and width of a JPEG that may be decoded at a reduced size; None decodes all pixels.

    Raises:
        ValueError: the file is not an image, or is truncated.
        FileNotFoundError: the file does not exist.
        OSError: the URL of a file cannot be reached.
    """
    source = BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        return decode_image(source, orientation, min_shape)
    except ValueError as error:
        raise ValueError(f"The image {path} cannot be decoded: {error}.") from None


def decode_image(
    source: Path | RemotePath | BinaryIO, orientation: Orientation = "exif", min_shape: MinShape | None = None
) -> Tensor:
    """Decode a file or stream to uint8 RGB (3, H, W), see `read_image`.

    Raises:
        ValueError: it is not an image, or is truncated; the message is the reason without a full stop.
    """
    try:
        with open_image(source) as image:
            _reduce(image, orientation, min_shape)
            with taking_turns(image):
                return pixels_of(image, orientation)
    except Exception as error:  # decoders raise many kinds of errors
        no_memory = isinstance(error, MemoryError)
        raise ValueError("not enough memory" if no_memory else str(error).rstrip(".") or type(error).__name__) from None


def _reduce(image: Image, orientation: Orientation, min_shape: MinShape | None) -> None:
    """Have a JPEG decoded at a reduced size of at least `min_shape`, by smaller transforms of its blocks."""
    if min_shape is None or image.format not in _REDUCIBLE:
        return
    if orientation == "exif" and swaps_sides(orientation_of(image)):
        image.draft(None, min_shape(image.width, image.height))
    else:
        image.draft(None, min_shape(image.height, image.width)[::-1])
