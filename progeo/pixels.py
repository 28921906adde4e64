"""Convert images opened by Pillow to tensors, identically for files and for images in memory."""

import re
import struct
from types import MappingProxyType

import numpy as np
import torch
from PIL import ExifTags
from PIL.Image import Image, Transpose
from torch import Tensor

from progeo.image_files import Orientation
from progeo.jpegs import decoded_jpeg

_TURNS = MappingProxyType(
    {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
)
"""Operation that makes an image upright, by EXIF orientation."""
_FROM_THE_END = (3, 4, 6, 7)
"""Orientations whose first row is the last row, or the last column, of the upright image."""
_PIXELS_AT_ONCE = 2**20
"""Number of pixels that are converted at once, so that a large image is not copied twice."""
_TURNED_BY_DECODER = ("TIFF", "HEIF")
"""Formats that Pillow or its plugin rotates upright when decoding."""
_EXIF_INTEGERS = MappingProxyType({1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"})
"""Integer types of EXIF and their `struct` format characters."""
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*(\d+)""")


def pixels_of(image: Image, orientation: Orientation = "exif") -> Tensor:
    """Convert an image to uint8 RGB (3, H, W), rotated upright by its orientation and scaled to 8 bits.

    The image itself is not modified.

    Raises:
        ValueError: pixel values without a known range: floats, and integers of more than 16 bits.
    """
    turn = orientation_of(image) if orientation == "exif" else 1
    if turn not in _TURNS and (decoded := decoded_jpeg(image)) is not None:  # Pillow turns what it decoded faster
        return decoded
    image.load()  # some formats set mode and size only when loaded
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known: convert it to 8 or 16 bits")
    width, height = image.size
    upright = np.empty((width, height, 3) if swaps_sides(turn) else (height, width, 3), np.uint8)
    num_rows = max(1, _PIXELS_AT_ONCE // max(1, width))
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        rows = image.crop((0, top, width, bottom)) if num_rows < height else image
        if turn in _TURNS:  # upright images need no copy
            rows = rows.transpose(_TURNS[turn])
        place = slice(height - bottom, height - top) if turn in _FROM_THE_END else slice(top, bottom)
        upright[(slice(None), place) if swaps_sides(turn) else place] = _rgb(rows)
    return torch.from_numpy(upright).permute(2, 0, 1)


def _rgb(image: Image) -> np.ndarray:
    """Convert an image to RGB of 8 bits, uint8 (H, W, 3), or (H, W, 1) if it is gray of 16 bits."""
    if not image.mode.startswith("I"):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    values = np.asarray(image)  # 16 bits, which PIL's conversion would clip at 255
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError(f"its pixels go from {values.min()} to {values.max()}: convert it to 8 or 16 bits")
    return (values // 256).astype(np.uint8)[..., None]


def orientation_of(image: Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 is upright, and also stands for invalid values.

    Only this EXIF entry is parsed, so corrupt other entries do no harm. XMP is used if EXIF has no orientation.
    """
    if image.format in _TURNED_BY_DECODER:
        return 1
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # rotated by the decoder, unless the file contains a recompressed JPEG
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # EXIF may be stored after the pixels
    found = _exif_orientation(exif_of(image))
    if found is None and image.format != "AVIF":  # its container stores it, and Pillow returns it as EXIF
        found = _xmp_orientation(image)
    return found if found is not None and 1 <= found <= 8 else 1


def swaps_sides(orientation: int) -> bool:
    """Return whether rotating an image upright swaps its height and width."""
    return orientation >= 5


def exif_of(image: Image) -> bytes:
    """Return the EXIF data of an image, starting at its byte order mark; empty if there is none."""
    exif, as_text = image.info.get("exif"), image.info.get("Raw profile type exif")  # ImageMagick's PNGs store text
    if not exif and isinstance(as_text, str):
        try:
            exif = bytes.fromhex("".join(as_text.split("\n")[3:]))
        except ValueError:
            return b""
    return re.sub(rb"^(Exif\0\0)+", b"", exif) if isinstance(exif, bytes) else b""


def xmp_of(image: Image) -> bytes:
    """Return the XMP packet of an image; empty if there is none."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return xmp.encode() if isinstance(xmp, str) else xmp


def _exif_orientation(exif: bytes) -> int | None:
    """Parse the orientation entry, the first number if it has several; None if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(f"{order}HHL", exif, entry)
            if tag == ExifTags.Base.Orientation:
                return _exif_integer(exif, entry + 8, order, kind, length)
    except struct.error:  # truncated
        pass
    return None


def _exif_integer(exif: bytes, start: int, order: str, kind: int, length: int) -> int | None:
    """Parse the first of `length` integers, stored at `start` or, if they exceed 4 bytes, at the offset given there."""
    if kind not in _EXIF_INTEGERS or not length:
        return None
    value = order + _EXIF_INTEGERS[kind]
    size = struct.calcsize(value) * length
    if size > 4:
        (start,) = struct.unpack_from(f"{order}L", exif, start)
    return struct.unpack_from(value, exif, start)[0] if start + size <= len(exif) else None


def _xmp_orientation(image: Image) -> int | None:
    found = _XMP_ORIENTATION.search(xmp_of(image))
    return int(found[1]) if found else None
