"""Decode JPEG files faster than Pillow does, to the very same pixels."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from torch import Tensor

_MAX_BYTES, _MAX_BYTES_PER_PIXEL = 2**20, 4
"""Maximum size of a file that is read at once: 1 MiB, and for each pixel more than JPEG needs."""
_SAMPLINGS = (0, 1, 2)
"""Chroma subsampling, as Pillow numbers it, in which decoders are compared: 4:4:4, 4:2:2 and 4:2:0."""


@dataclass(frozen=True)
class _Decoder:
    """A decoder of JPEG files."""

    module: str
    """Module that has it, which need not be installed."""
    imports_fast: bool
    """Whether it is worth importing the module for; if not, the decoder is used once something else has imported it."""
    decode: Callable[[bytes], Tensor]
    """Maps the content of a file to uint8 RGB (3, H, W), channels last in memory."""


def _by_simplejpeg(content: bytes) -> Tensor:
    import simplejpeg

    return torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1)  # strict: refuses whatever is odd


def _by_torchvision(content: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


_DECODERS = (
    _Decoder("simplejpeg", imports_fast=True, decode=_by_simplejpeg),
    _Decoder("torchvision", imports_fast=False, decode=_by_torchvision),  # whatever resizes images imports it
)
"""Decoders, the fastest first."""


def decoded_jpeg(image: Image.Image) -> Tensor | None:
    """Decode an opened image to uint8 RGB (3, H, W) as it is stored, channels last in memory.

    Returns None if that is left to Pillow: what is no JPEG file or was loaded before, unusual ones (progressive, gray,
    CMYK, and whatever else could differ between decoders), those that the decoder refuses (Pillow knows if they are
    truncated), and all if no decoder is installed that gives the pixels of Pillow.
    """
    if not isinstance(image, JpegImageFile):
        return None
    file = getattr(image, "fp", None)  # closed once the image is loaded, and missing in a copy from another process
    if file is None or not _is_usual(image) or (decoder := _fastest()) is None:
        return None
    try:
        if file.seek(0, io.SEEK_END) > _MAX_BYTES + _MAX_BYTES_PER_PIXEL * image.width * image.height:
            return None
        file.seek(0)
        pixels = decoder.decode(file.read())
    except Exception:  # decoders raise many kinds of errors, and Pillow's are those that users read
        return None
    return pixels if pixels.shape == (3, image.height, image.width) else None


def _is_usual(image: JpegImageFile) -> bool:
    return (
        (image.format, image.mode) == ("JPEG", "RGB")  # several images in a file are MPO
        and image.decoderconfig in ((), (1, 0))  # it is not to be decoded at a reduced size
        and "progressive" not in image.info
        and image.info.get("adobe_transform", 1) == 1  # stored as luma and chroma
        and get_sampling(image) in _SAMPLINGS
    )


def _fastest() -> _Decoder | None:
    usable = (each for each in _DECODERS if each.imports_fast or each.module in sys.modules)
    return next((each for each in usable if _is_exact(each)), None)


@cache
def _is_exact(decoder: _Decoder) -> bool:
    """Return whether a decoder is installed and gives the pixels of Pillow.

    Both have a libjpeg of their own, and versions have differed in how they interpolate chroma. Noise shows that, and
    sides that are no multiples of 16 how the last blocks are cut.
    """
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    for sampling in _SAMPLINGS:
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "JPEG", subsampling=sampling)
        try:
            pixels = decoder.decode(stream.getvalue()).permute(1, 2, 0).numpy()
        except Exception:  # not installed, or built without JPEG
            return False
        if not np.array_equal(pixels, np.asarray(Image.open(stream))):
            return False
    return True
