"""Image file formats: which are supported, and how files are opened. Pillow only, no torch."""

import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal

from packaging.requirements import Requirement
from PIL import Image, UnidentifiedImageError

from progeo.remote_files import RemotePath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Pillow's warnings about odd files would disrupt progress bars; relevant problems are raised as errors here.
# Warning filters cannot be set for a single thread, so this is set once for the process.
warnings.filterwarnings("ignore", module=r"PIL\.")

Orientation = Literal["exif", "ignore"]
"""Whether images are rotated upright by their metadata ("exif"), or keep the pixels as decoded ("ignore")."""
Resize = Literal["bilinear", "bicubic"]
"""Interpolation by which images are resized, always with antialiasing."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
"""Formats that are opened, whatever the file extension: raster formats that need no external program.

MPO files are opened as JPEG; do not list MPO, because a name without an opener of its own makes Pillow fail at every
format after it.
"""


@dataclass(frozen=True)
class _PluginFormat:
    """A format that Pillow can read once a package is installed."""

    name: str
    """Name under which Pillow registers the format."""
    extensions: tuple[str, ...]
    begins: re.Pattern[bytes]
    """Pattern that the first bytes of a file of this format match."""
    requirement: str
    """The package and its lowest version that decodes pixels correctly."""
    module: str
    """Module of the package that some of its builds lack."""
    plugin: str
    """Module that registers the format when imported."""

    @property
    def is_readable(self) -> bool:
        """Whether a suitable version of the package is installed."""
        requirement = Requirement(self.requirement)
        try:
            return version(requirement.name) in requirement.specifier and find_spec(self.module) is not None
        except PackageNotFoundError:
            return False


_PLUGIN_FORMATS = (
    _PluginFormat(
        name="AVIF",
        extensions=(".avif",),
        begins=re.compile(rb".{4}ftyp(avi[fs]|m[is]f1.*avi[fs])", re.DOTALL),
        requirement="pillow>=11.3",
        module="PIL._avif",
        plugin="PIL.AvifImagePlugin",
    ),
    _PluginFormat(
        name="HEIF",
        extensions=(".heic", ".heif", ".hif"),
        begins=re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|m[is]f1)", re.DOTALL),
        requirement="pillow-heif>=1.1",
        module="pillow_heif",
        plugin="pillow_heif.HeifImagePlugin",
    ),
    _PluginFormat(
        name="JXL",
        extensions=(".jxl",),
        begins=re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
        requirement="pillow-jxl-plugin>=1.3",
        module="pillow_jxl",
        plugin="pillow_jxl.JpegXLImagePlugin",
    ),
)
_ADVICE = "pip install 'progeo[formats]'"
_CONVERT, _RENAME = "convert them to .jpg or .png", "they are JPEG: rename them to .jpg"
_TO_CONVERT = (
    ".bmp .exr .gif .j2k .jp2 .jpx .pgm .ppm .psd .tga .tif .tiff "  # and of raw photos:
    ".3fr .arw .cr2 .cr3 .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .rw2 .rwl .sr2 .srw .x3f"
)

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    *(extension for each in _PLUGIN_FORMATS if each.is_readable for extension in each.extensions),
)
"""Extensions of the files that count as images, in lower case."""
UNREAD_EXTENSIONS: Mapping[str, str] = MappingProxyType(
    {
        **{extension: _ADVICE for each in _PLUGIN_FORMATS if not each.is_readable for extension in each.extensions},
        **dict.fromkeys(_TO_CONVERT.split(), _CONVERT),
        **dict.fromkeys((".insp", ".jfif", ".jpe", ".mpo"), _RENAME),
    }
)
"""Extensions of image files that are not read, in lower case, with what to do to have them read."""

MAX_PIXELS_VARIABLE = "PROGEO_MAX_PIXELS"
"""Environment variable with the maximum pixels of an image, which `--max_pixels` sets; processes inherit it."""
_DEFAULT_MAX_PIXELS = 178_956_970
"""The number of pixels above which Pillow raises an error by default."""
_MAX_SIDE_PX = 1_000_000
"""Maximum side of an image: decoding a row and resizing it take memory of their own."""
_DECODING_BYTES, _WEBP_BYTES = 8, 20
"""Maximum memory in bytes per pixel while an image is decoded to RGB."""
_AT_ONCE = 8
"""Number of images whose decoding must fit in half of the memory, or they are decoded one at a time."""
_LONGEST_TURN_S = 60.0
_TIFF_TILE = (322, 323)
"""Tags of the width and height of the tiles of a TIFF."""

_JXL_HEADER = 16
"""Number of leading bytes that contain the height and width of a JPEG XL image."""
_JXL_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width : height, indexed by the ratio field of a JPEG XL header."""


def open_image(source: Path | RemotePath | BinaryIO) -> Image.Image:
    """Open an image in one of `FORMATS`, or in a format of an installed plugin, without decoding its pixels.

    Raises:
        OSError: the file does not exist or has another format; the message names a package to install where one helps.
        ValueError: the image has more than `max_pixels`, or a side above 1,000,000 pixels.
    """
    if isinstance(source, RemotePath):
        source = BytesIO(source.read_bytes())
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:  # Pillow raises above twice that
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    try:
        try:
            image: Image.Image = Image.open(source, formats=FORMATS)
        except UnidentifiedImageError:
            image = _open_with_plugin(source)
        _check_size(*_decoded_size(image))
        return image
    except Image.DecompressionBombError:
        raise _too_large() from None


def max_pixels() -> int:
    """Return the maximum number of pixels of an image, which `PROGEO_MAX_PIXELS` changes.

    Raises:
        ValueError: the variable is no positive integer.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "") or str(_DEFAULT_MAX_PIXELS)
    number = int(text) if re.fullmatch("[0-9_]{1,18}", text) else 0
    if number < 1:
        raise ValueError(f"{MAX_PIXELS_VARIABLE} (or --max_pixels) is a positive number of pixels, got {text!r}.")
    return number


@contextmanager
def taking_turns(image: Image.Image) -> Iterator[None]:
    """Wait until no other thread or process of this machine decodes a large image, then decode this one in the block.

    Large are images of which 8 at once would take more than half of the memory. A turn that takes longer than a minute
    is not waited for.
    """
    num_bytes = math.prod(_decoded_size(image)) * (_WEBP_BYTES if image.format == "WEBP" else _DECODING_BYTES)
    if fcntl is None or _AT_ONCE * num_bytes <= _memory_bytes() / 2:
        yield
        return
    with Path(__file__).open("rb") as lock:  # any file that all processes can open
        end = time.monotonic() + _LONGEST_TURN_S
        while not _locked(lock.fileno()) and time.monotonic() < end:
            time.sleep(0.02)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@cache
def _memory_bytes() -> float:
    """Return the memory of the machine, or of the container that this process runs in, in bytes."""
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits)


def unread_in_words(counts: Mapping[str, int]) -> str:
    """List the number of files per unread extension, most frequent first, with what to do to have them read."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {extension} ({UNREAD_EXTENSIONS[extension]})" for extension, count in ordered)


def _open_with_plugin(source: Path | BinaryIO) -> Image.Image:
    beginning = _content(source, 64)
    for each in _PLUGIN_FORMATS:
        if not each.begins.match(beginning):
            continue
        if not each.is_readable:
            raise UnidentifiedImageError(f"it is {each.name}: {_ADVICE}")
        import_module(each.plugin)
        content = _content(source)
        if each.name == "JXL":
            _check_size(*_jxl_shape(_jxl_codestream(content)))  # the plugin decodes all pixels when opening
        return Image.open(BytesIO(content), formats=(each.name,))
    readable = (*FORMATS, *(each.name for each in _PLUGIN_FORMATS if each.is_readable))
    raise UnidentifiedImageError(f"it is none of {', '.join(readable)}, or its beginning is corrupt")


def _content(source: Path | BinaryIO, count: int = -1) -> bytes:
    """Return the first `count` bytes of a file or stream; -1 returns all."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return stream.read(count)
    source.seek(0)
    return source.read(count)


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that are decoded at once: of a TIFF, its tiles may be larger than the image."""
    tile = [getattr(image, "tag_v2", {}).get(tag, 0) for tag in _TIFF_TILE]
    if not all(isinstance(side, int) for side in tile):
        raise ValueError("it is a TIFF with corrupt tiles")
    return max(image.width, tile[0]), max(image.height, tile[1])


def _check_size(width: int, height: int) -> None:
    if width * height > max_pixels():
        raise _too_large()
    if max(width, height) > _MAX_SIDE_PX:
        raise ValueError(f"it has {width:,} x {height:,} pixels, and no side may have more than {_MAX_SIDE_PX:,}")


def _too_large() -> ValueError:
    return ValueError(
        f"it has more than {max_pixels():,} pixels: scale it down, cut it into views, or allow more with --max_pixels"
    )


def _jxl_codestream(content: bytes) -> bytes:
    """Return the first bytes of a JPEG XL codestream, bare or joined from the (possibly tiny) boxes of a container."""
    if content.startswith(b"\xff\x0a"):
        return content[:_JXL_HEADER]
    found, start = b"", 0
    while start < len(content) and len(found) < _JXL_HEADER:
        size, kind, begin = int.from_bytes(content[start : start + 4], "big"), content[start + 4 : start + 8], start + 8
        if size == 1:
            size, begin = int.from_bytes(content[begin : begin + 8], "big"), begin + 8
        end = start + (size or len(content))
        if kind in (b"jxlc", b"jxlp"):
            begin += 4 if kind == b"jxlp" else 0  # skip the part number
            found += content[begin : min(end, begin + _JXL_HEADER)]
        start = max(begin, end)
    if not found:
        raise ValueError("it is JPEG XL without pixels")
    return found


def _jxl_shape(codestream: bytes) -> tuple[int, int]:
    """Parse height and width from a JPEG XL header (ISO/IEC 18181-1, SizeHeader), least significant bit first."""
    bits = int.from_bytes(codestream[2:_JXL_HEADER], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side() -> int:
        return 8 * (1 + take(5)) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    is_small = take(1)
    height = side()
    ratio = _JXL_RATIOS[take(3)]
    return height, side() if ratio is None else height * ratio[0] // ratio[1]
