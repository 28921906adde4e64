"""A picture that Pillow opened, as pixels: a file and a picture in memory become the same tensor."""

import re
import struct
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags
from PIL.Image import Image, Transpose
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

Orientation = Literal["exif", "ignore"]
"""Turn a picture upright as its file says, or take the pixels as the decoder gives them."""

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
"""What makes a picture upright, by its EXIF orientation."""
_TURNED_BY_DECODER = ("TIFF", "HEIF")
"""Formats of which Pillow or its plugin gives upright pixels."""
_EXIF_INTEGERS = MappingProxyType({1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l"})
"""The types of EXIF that are whole numbers, as `struct` writes them."""
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*(\d+)""")


def pixels_of(image: Image, orientation: Orientation = "exif") -> Tensor:
    """Write a picture as uint8 RGB (3, H, W), turned upright by its orientation and scaled to 8 bits.

    The picture stays as it is.

    Raises:
        ValueError: values whose range is not known: floats, and integers of more than 16 bits.
    """
    image.load()  # some formats know their mode and size only now
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known: convert it to 8 or 16 bits")
    turn = _TURNS.get(orientation_of(image)) if orientation == "exif" else None
    if turn is not None:  # no copy of the many that are upright already
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # 16 bits, which conversion would cut off at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError(f"its pixels go from {values.min()} to {values.max()}: convert it to 8 or 16 bits")
        return torch.from_numpy((values // 256).astype(np.uint8)).expand(3, -1, -1).contiguous()
    return pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))


def orientation_of(image: Image) -> int:
    """Which way up an opened picture is, 1 to 8 as EXIF counts; 1 is upright, and stands for every other value.

    Nothing else in EXIF is looked at, so odd entries do no harm. XMP says it where EXIF does not.
    """
    if image.format in _TURNED_BY_DECODER:
        return 1
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # turned by the decoder; a JPEG that JPEG XL keeps is given as it was
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # EXIF may come after the pixels
    found = _exif_orientation(_exif_of(image))
    if found is None and image.format != "AVIF":  # whose container alone says it, which Pillow hands over as EXIF
        found = _xmp_orientation(image)
    return found if found in range(1, 9) else 1


def swaps_sides(orientation: int) -> bool:
    """Whether height and width change places as a picture is turned upright."""
    return orientation >= 5


def _exif_of(image: Image) -> bytes:
    """The EXIF of a picture from its byte order on; empty where there is none."""
    exif, as_text = image.info.get("exif"), image.info.get("Raw profile type exif")  # ImageMagick's PNGs hold text
    if not exif and isinstance(as_text, str):
        try:
            exif = bytes.fromhex("".join(as_text.split("\n")[3:]))
        except ValueError:
            return b""
    return re.sub(rb"^(Exif\0\0)+", b"", exif) if isinstance(exif, bytes) else b""


def _exif_orientation(exif: bytes) -> int | None:
    """What the entry for the orientation holds, of several numbers the first; None where there is none."""
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
    except struct.error:  # it ends before
        pass
    return None


def _exif_integer(exif: bytes, start: int, order: str, kind: int, length: int) -> int | None:
    """The first of `length` whole numbers, which lie at `start` or, where they are more than 4 bytes, elsewhere."""
    if kind not in _EXIF_INTEGERS or not length:
        return None
    value = order + _EXIF_INTEGERS[kind]
    size = struct.calcsize(value) * length
    if size > 4:
        (start,) = struct.unpack_from(f"{order}L", exif, start)
    return struct.unpack_from(value, exif, start)[0] if start + size <= len(exif) else None


def _xmp_orientation(image: Image) -> int | None:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    found = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(found[1]) if found else None
