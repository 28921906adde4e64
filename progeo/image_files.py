"""Image files: which formats are read, and how a file is opened. Pillow only, no torch."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""Of the files that count as images of a folder, in lower case."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
"""Formats that a file may have, whatever its name says: raster formats that no other program is run for.

MPO comes as JPEG: a name without an opener of its own makes Pillow fail at every format after it."""


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open an image in one of `FORMATS`; its pixels are decoded later.

    Raises:
        OSError: no such file, or none of these formats.
    """
    return Image.open(source, formats=FORMATS)
