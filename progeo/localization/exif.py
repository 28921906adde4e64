"""Put an estimated position into the EXIF metadata of a photo without touching a pixel; read when it was taken.

An EXIF block is a TIFF, whose offsets count from its start. So all that it holds stays where it is, also maker notes
and thumbnails, and what is new is appended.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from PIL.ExifTags import GPS, IFD, Base
from PIL.Image import Exif, Image

from progeo.datasets.readers.photos import position_in
from progeo.image_files import open_image
from progeo.pixels import exif_of, xmp_of
from progeo.printable import first_line

_ORDERS = MappingProxyType({b"II": "<", b"MM": ">"})
_BYTE, _ASCII, _LONG, _RATIONAL, _UNDEFINED = 1, 2, 4, 5, 7
_SIZES = MappingProxyType({_BYTE: 1, _ASCII: 1, _LONG: 4, _RATIONAL: 8, _UNDEFINED: 1})
"""Types of the values that are written, and their sizes in bytes."""
_EMPTY = b"II*\0\x08\0\0\0" + bytes(6)
_PER_SECOND = 10_000
"""Denominator of seconds of arc: 0.0001 seconds are 3 mm."""
_MAX_ERROR_M = 20_040_000
"""Half the circumference of the Earth in meters: nothing is farther away."""
_SEGMENT_PREFIX = b"Exif\0\0"
_OFFSETS_PREFIX = b"MPF\0"
"""Begins the segment of a JPEG that tells where further images in its file are."""
_MAX_SEGMENT = 2**16 - 3
_PNG_HEADER = 33
"""Bytes of a PNG up to the end of its IHDR chunk."""
_HAS_EXIF, _HAS_ALPHA = 0x08, 0x10
"""Bits of the first byte of a WebP's VP8X chunk."""
_TIMES = (
    (Base.DateTimeOriginal, Base.SubsecTimeOriginal, Base.OffsetTimeOriginal),
    (Base.DateTime, Base.SubsecTime, Base.OffsetTime),
)
"""Tags of a time, of its fraction of a second and of its zone; the first that are known are taken."""


@dataclass(frozen=True)
class Position:
    """An estimated position as EXIF stores it."""

    latitude: float
    longitude: float
    error_m: float
    """Horizontal error in meters."""
    method: str
    """How the position was found, in ASCII."""


def taken_at(path: Path) -> datetime | None:
    """Return when a photo was taken, without a time zone if its EXIF has none; None if nothing says when."""
    try:
        with open_image(path) as image:
            exif = _parsed(_exif(image))
        entries = {**exif, **exif.get_ifd(IFD.Exif)}
    except Exception:  # no image, or corrupt EXIF
        return None
    times = (_time(*(str(entries.get(tag, "")).strip("\0 ") for tag in tags)) for tags in _TIMES)
    return next((time for time in times if time is not None), None)


def _time(text: str, fraction: str, zone: str) -> datetime | None:
    """Parse a time; without a time zone if that cannot be parsed, None for one that has no equal in UTC."""
    try:
        time = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    if fraction.isdecimal():
        time += timedelta(seconds=float(f"0.{fraction}"))
    try:
        zoned = datetime.fromisoformat(f"{time.isoformat()}{zone}")
        zoned.astimezone(UTC)
    except ValueError:
        return time
    except OverflowError:
        return None
    return zoned


def with_position(content: bytes, position: Position) -> bytes:
    """Return the file of a photo with a position in its EXIF; encoded pixels and other metadata stay as they are.

    Args:
        content: a JPEG, PNG or WebP file.

    Raises:
        ValueError: the file has another format or several images, is corrupt, has a position already, or has no room.
    """
    kind, size, block, xmp = _opened(content)
    if kind not in _SPLICED:
        raise ValueError(f"it is {kind}, and only {', '.join(_SPLICED)} can take a position: convert it")
    if b"GPSLatitude" in xmp or b"GPSLongitude" in xmp:
        raise ValueError("it has a position already, in XMP, which is kept")
    written = with_gps(block, position)
    copy = _SPLICED[kind](content, written, size)
    if _opened(copy) != (kind, size, written, xmp) or position_in(_parsed(written)) is None:
        raise ValueError("it is corrupt: its metadata could not be read again with a position")
    return copy


def with_gps(block: bytes, position: Position) -> bytes:
    """Return an EXIF block, starting at its byte order mark, with a position; an empty block becomes a new one.

    Raises:
        ValueError: the block is corrupt, or has a position already.
    """
    block = block or _EMPTY
    try:
        order = _ORDERS[block[:2]]
        entries, following = _entries(block, struct.unpack_from(f"{order}L", block, 4)[0], order)
        gps: dict[int, bytes] = {}
        if IFD.GPSInfo in entries:
            gps, _ = _entries(block, struct.unpack(f"{order}L", entries[IFD.GPSInfo][-4:])[0], order)
        _parsed(block)
    except (struct.error, KeyError, SyntaxError):  # the last is Pillow's, about the first bytes
        raise ValueError("its EXIF metadata are corrupt") from None
    if GPS.GPSLatitude in gps or GPS.GPSLongitude in gps:
        raise ValueError("it has a position already, even if an incomplete or void one, which is kept")
    gps.pop(GPS.GPSStatus, None)  # of the camera, which found no position: it would call this one void
    block += bytes(len(block) % 2)  # directories begin at even offsets
    gps_start = len(block)
    block += _directory(gps, _gps_values(position, order), order, start=gps_start)
    pointer = {int(IFD.GPSInfo): (_LONG, struct.pack(f"{order}L", gps_start))}
    directory = _directory(entries, pointer, order, start=len(block), following=following)
    return block[:4] + struct.pack(f"{order}L", len(block)) + block[8:] + directory


def _opened(content: bytes) -> tuple[str, tuple[int, int], bytes, bytes]:
    """Return the format, the width and height, the EXIF block and the XMP packet of a file."""
    try:
        with open_image(BytesIO(content)) as image:
            if image.format == "PNG":
                image.load()  # XMP may be stored after the pixels
            return str(image.format), image.size, _exif(image), xmp_of(image)
    except Exception as error:  # decoders raise many kinds
        raise ValueError(f"it cannot be opened: {first_line(error)}") from None


def _exif(image: Image) -> bytes:
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # EXIF may be stored after the pixels
    return exif_of(image)


def _parsed(block: bytes) -> Exif:
    exif = Exif()
    exif.load(block)
    return exif


def _entries(block: bytes, start: int, order: str) -> tuple[dict[int, bytes], int]:
    """Return the entries of a directory by tag, as stored after the tag, and the offset of the following directory."""
    (count,) = struct.unpack_from(f"{order}H", block, start)
    raw = (struct.unpack_from(f"{order}H10s", block, start + 2 + 12 * index) for index in range(count))
    return dict(raw), struct.unpack_from(f"{order}L", block, start + 2 + 12 * count)[0]


def _directory(
    entries: Mapping[int, bytes],
    values: Mapping[int, tuple[int, bytes]],
    order: str,
    *,
    start: int,
    following: int = 0,
) -> bytes:
    """Return a directory at the offset `start`, followed by the values that do not fit into its entries.

    Args:
        entries: entries of another directory of the block, which are kept.
        values: new values by tag: their type and bytes.
        following: offset of the directory that follows.
    """
    tags = sorted({*entries, *values})
    data_start, data = start + 2 + 12 * len(tags) + 4, b""
    directory = struct.pack(f"{order}H", len(tags))
    for tag in tags:
        if tag not in values:
            directory += struct.pack(f"{order}H10s", tag, entries[tag])
            continue
        kind, value = values[tag]
        field = value if len(value) <= 4 else struct.pack(f"{order}L", data_start + len(data))
        directory += struct.pack(f"{order}HHL4s", tag, kind, len(value) // _SIZES[kind], field)
        if len(value) > 4:
            data += value + bytes(len(value) % 2)
    return directory + struct.pack(f"{order}L", following) + data


def _gps_values(position: Position, order: str) -> dict[int, tuple[int, bytes]]:
    method = b"ASCII\0\0\0" + position.method.encode("ascii", errors="replace")
    error = struct.pack(f"{order}2L", round(min(position.error_m, _MAX_ERROR_M) * 100), 100)
    return {
        GPS.GPSVersionID: (_BYTE, bytes((2, 3, 0, 0))),
        GPS.GPSLatitudeRef: (_ASCII, b"S\0" if position.latitude < 0 else b"N\0"),
        GPS.GPSLatitude: (_RATIONAL, _angle(position.latitude, order)),
        GPS.GPSLongitudeRef: (_ASCII, b"W\0" if position.longitude < 0 else b"E\0"),
        GPS.GPSLongitude: (_RATIONAL, _angle(position.longitude, order)),
        GPS.GPSMapDatum: (_ASCII, b"WGS-84\0"),
        GPS.GPSProcessingMethod: (_UNDEFINED, method),
        GPS.GPSHPositioningError: (_RATIONAL, error),
    }


def _angle(degrees: float, order: str) -> bytes:
    """Return degrees, minutes and seconds as rationals."""
    minutes, seconds = divmod(round(abs(degrees) * 3600 * _PER_SECOND), 60 * _PER_SECOND)
    return struct.pack(f"{order}6L", minutes // 60, 1, minutes % 60, 1, seconds, _PER_SECOND)


def _spliced_jpeg(content: bytes, block: bytes, size: tuple[int, int]) -> bytes:
    """Replace the EXIF segments, or insert one behind the JFIF header."""
    segment = _SEGMENT_PREFIX + block
    if len(segment) > _MAX_SEGMENT:
        raise ValueError("its EXIF metadata have no room for a position")
    segments = list(_segments(content))
    if any(part[1:2] == b"\xe2" and part[4:8] == _OFFSETS_PREFIX for part in segments):
        raise ValueError("it holds several images, whose offsets in the file would no longer be correct")
    found = [index for index, part in enumerate(segments) if part[1:2] == b"\xe1" and part[4:10] == _SEGMENT_PREFIX]
    behind_header = 1 + next((index for index, part in enumerate(segments) if part[1:2] == b"\xe0"), 0)
    start = found[0] if found else behind_header
    parts = [part for index, part in enumerate(segments) if index not in found]
    return b"".join([*parts[:start], struct.pack(">2sH", b"\xff\xe1", len(segment) + 2), segment, *parts[start:]])


def _segments(content: bytes) -> Iterator[bytes]:
    """Split a JPEG: its first marker, each segment before the pixels and each fill byte before one, and the rest."""
    yield content[:2]
    start = 2
    while content[start : start + 1] == b"\xff" and content[start + 1 : start + 2] != b"\xda":
        is_fill = content[start + 1 : start + 2] == b"\xff"
        end = start + 1 if is_fill else start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        yield content[start:end]
        start = end
    yield content[start:]


def _spliced_png(content: bytes, block: bytes, size: tuple[int, int]) -> bytes:
    """Insert an eXIf chunk behind the header, and remove any other."""
    chunk = b"eXIf" + block
    parts = [content[:_PNG_HEADER], struct.pack(">L", len(block)), chunk, struct.pack(">L", zlib.crc32(chunk))]
    start = _PNG_HEADER
    while start < len(content):
        name = content[start + 4 : start + 8]
        is_last = name == b"IEND"  # what follows it is no chunk
        end = len(content) if is_last else start + 12 + int.from_bytes(content[start : start + 4], "big")
        if name != b"eXIf":
            parts.append(content[start:end])
        start = end
    return b"".join(parts)


def _spliced_webp(content: bytes, block: bytes, size: tuple[int, int]) -> bytes:
    """Add an EXIF chunk behind the pixels; a simple file becomes an extended one."""
    *chunks, rest = _webp_chunks(content)
    chunks = [chunk for chunk in chunks if chunk[:4] != b"EXIF"]
    if chunks[0][:4] != b"VP8X":
        has_alpha = chunks[0][:4] == b"VP8L" and bool(chunks[0][12] & 0x10)
        sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
        chunks.insert(0, _webp_chunk(b"VP8X", bytes((_HAS_ALPHA if has_alpha else 0, 0, 0, 0)) + sides))
    chunks[0] = chunks[0][:8] + bytes((chunks[0][8] | _HAS_EXIF,)) + chunks[0][9:]
    end = next((index for index, chunk in enumerate(chunks) if chunk[:4] == b"XMP "), len(chunks))
    chunks.insert(end, _webp_chunk(b"EXIF", block))
    body = b"WEBP" + b"".join(chunk + bytes(len(chunk) % 2) for chunk in chunks)
    return b"RIFF" + struct.pack("<L", len(body)) + body + rest


def _webp_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<L", len(data)) + data


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    """Split a WebP behind its header: each chunk with its padding, and last what follows them."""
    start, end = 12, 8 + int.from_bytes(content[4:8], "little")
    while start + 8 <= min(end, len(content)):
        length = int.from_bytes(content[start + 4 : start + 8], "little")
        yield content[start : start + 8 + length + length % 2]
        start += 8 + length + length % 2
    yield content[start:]


_SPLICED = MappingProxyType({"JPEG": _spliced_jpeg, "PNG": _spliced_png, "WEBP": _spliced_webp})
"""Format -> function (file, EXIF block, width and height) that returns the file with that block."""
