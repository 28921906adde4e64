"""From a file to pixels."""

from pathlib import Path

from PIL import ExifTags
from torch import Tensor

from progeo.image_files import open_image
from progeo.pixels import pixels_of

_LYING = (5, 6, 7, 8)
"""EXIF orientations of which height and width change places."""


def read_shape(path: Path) -> tuple[int, int] | None:
    """Height and width that `read_image` would give, from the beginning of a file; None where it would fail there."""
    try:
        with open_image(path) as image:
            if image.format == "TIFF":  # Pillow turns it itself as it decodes
                image.load()
                return image.height, image.width
            lies = image.getexif().get(ExifTags.Base.Orientation) in _LYING
            return (image.width, image.height) if lies else (image.height, image.width)
    except Exception:  # decoders fail in many ways
        return None


def read_image(path: Path) -> Tensor:
    """Decode an image file to uint8 RGB (3, H, W), see `pixels_of`.

    Raises:
        ValueError: a file that is no image, or only the beginning of one.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        with open_image(path) as image:
            return pixels_of(image)
    except Exception as error:  # decoders fail in many ways, all of them meaning this
        raise ValueError(f"The image {path} cannot be decoded: {error}.") from None
