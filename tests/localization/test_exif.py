"""Positions in copies of photos: read back by Pillow, with pixels and other metadata as they were."""

import struct
import zlib
from datetime import datetime, timedelta, timezone
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from progeo.datasets.readers.photos import position_in
from progeo.localization.exif import Position, taken_at, with_gps, with_position

HERE = Position(-33.8567844, 151.2152967, 25.0, "progeo, within 25 m with probability 0.91")
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 4), np.uint8)


def photo(format, mode="RGB", **options):
    image, stream = Image.fromarray(NOISE).convert(mode), BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def exif(**values):
    block = Image.Exif()
    block[Base.Make] = "a camera"
    block[Base.Orientation] = 6
    block.get_ifd(IFD.Exif).update({Base.DateTimeOriginal: "2024:05:01 12:30:15", Base.MakerNote: b"\1\2\3" * 50})
    block.get_ifd(IFD.Exif).update({Base[name]: value for name, value in values.items()})
    return block


def opened(content):
    image = Image.open(BytesIO(content))
    image.load()
    return image


@pytest.mark.parametrize("metadata", [{}, {"exif": exif()}], ids=["without EXIF", "with EXIF"])
@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 60, "comment": b"as it was"}),
        ("JPEG", "L", {"progressive": True}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"quality": 50}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGBA", {"quality": 50}),
        ("WEBP", "RGB", {"lossless": True, "xmp": b"<x/>"}),
    ],
)
def test_a_copy_has_the_position_and_the_same_pixels(format, mode, options, metadata):
    content = photo(format, mode, **options, **metadata)
    copy = with_position(content, HERE)
    before, after = opened(content), opened(copy)
    assert np.array_equal(np.asarray(before), np.asarray(after)) and before.mode == after.mode
    gps = after.getexif().get_ifd(IFD.GPSInfo)
    np.testing.assert_allclose(position_in(after.getexif()), (HERE.latitude, HERE.longitude), atol=3e-8)
    assert (gps[GPS.GPSLatitudeRef], gps[GPS.GPSLongitudeRef]) == ("S", "E")
    assert gps[GPS.GPSLatitude][:2] == (33, 51) and gps[GPS.GPSLatitude][2] == pytest.approx(24.4238, abs=5e-5)
    assert gps[GPS.GPSHPositioningError] == 25
    assert gps[GPS.GPSProcessingMethod] == b"ASCII\0\0\0progeo, within 25 m with probability 0.91"
    kept = {tag: value for tag, value in after.getexif().items() if tag != IFD.GPSInfo}
    assert kept == dict(before.getexif().items())
    assert after.getexif().get_ifd(IFD.Exif) == before.getexif().get_ifd(IFD.Exif)
    assert [after.info.get(name) for name in ("comment", "xmp", "jfif_density")] == [
        before.info.get(name) for name in ("comment", "xmp", "jfif_density")
    ]


def test_the_encoded_pixels_of_a_jpeg_are_the_same_bytes():
    content = photo("JPEG", exif=exif())
    copy = with_position(content, HERE)
    assert copy[copy.index(b"\xff\xda") :] == content[content.index(b"\xff\xda") :]
    assert copy.count(b"Exif\0\0") == 1


@pytest.mark.parametrize(("mode", "flags"), [("RGB", 0x08), ("RGBA", 0x18)])
def test_an_extended_webp_says_whether_it_has_exif_and_alpha(mode, flags):
    content = photo("WEBP", mode, lossless=True)
    copy = with_position(content, HERE)
    assert (content[12:16], copy[12:16], copy[20]) == (b"VP8L", b"VP8X", flags)


def test_the_jfif_header_stays_first():
    copy = with_position(photo("JPEG"), HERE)
    assert (copy[:4], copy[6:11], copy[20:22]) == (b"\xff\xd8\xff\xe0", b"JFIF\0", b"\xff\xe1")


def with_second_image(*, ultra_hdr):
    """A file that Pillow opens as MPO, or as a JPEG if its XMP says that the second image is a gain map."""
    first, second = (Image.fromarray(NOISE[:, ::step]).convert("RGB") for step in (1, -1))
    first.save(stream := BytesIO(), "MPO", save_all=True, append_images=[second])
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>'
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    content = stream.getvalue()
    return content[:2] + segment + content[2:] if ultra_hdr else content


def test_all_other_bytes_stay_also_those_behind_the_image():
    jpeg, png, webp = (photo(format) for format in ("JPEG", "PNG", "WEBP"))
    tail = b"data of a camera"
    filled = jpeg[:2] + b"\xff\xff" + jpeg[2:] + tail
    copy = with_position(filled, HERE)
    start = copy.index(b"\xff\xe1")
    length = 2 + int.from_bytes(copy[start + 2 : start + 4], "big")
    assert (copy[:6], copy[:start] + copy[start + length :]) == (b"\xff\xd8\xff\xff\xff\xe0", filled)
    chunk = b"\0\0\0\0eXIfdata"  # behind the end, and so no chunk
    copy = with_position(png + chunk, HERE)
    length = 12 + int.from_bytes(copy[33:37], "big")
    assert copy[:33] + copy[33 + length :] == png + chunk
    chunk = b"ABCD\3\0\0\0abc!"  # with a padding byte that is not zero
    extended = b"RIFF" + struct.pack("<L", len(webp) - 8 + len(chunk)) + webp[8:] + chunk
    copy = with_position(extended + tail, HERE)
    assert copy[30:].startswith(extended[12:]) and copy.endswith(tail)
    assert int.from_bytes(copy[4:8], "little") == len(copy) - len(tail) - 8


def test_fill_bytes_before_the_exif_of_a_jpeg_stay():
    content = photo("JPEG", exif=exif())
    start = content.index(b"\xff\xe1")
    copy = with_position(content[:start] + b"\xff\xff" + content[start:], HERE)
    assert copy[:start] + copy[start + 2 :] == with_position(content, HERE)


def test_an_error_is_at_most_half_the_circumference_of_the_earth():
    block = Image.Exif()
    block.load(with_gps(b"", Position(1, 2, 1e9, "x")))
    assert block.get_ifd(IFD.GPSInfo)[GPS.GPSHPositioningError] == 20_040_000


@pytest.mark.parametrize("order", ["<", ">"])
def test_offsets_of_all_that_a_block_holds_stay_valid(order):
    """A directory with one entry, a following one for the thumbnail, and bytes that nothing known points at."""
    mark = b"II" if order == "<" else b"MM"
    first = struct.pack(f"{order}HHHL4sL", 1, Base.Orientation, 3, 1, struct.pack(f"{order}HH", 6, 0), 26)
    second = struct.pack(f"{order}HHHLLL", 1, 0x0201, 4, 1, 1234, 0)
    block = mark + struct.pack(f"{order}HL", 42, 8) + first + second + b"private data!"
    written = with_gps(block, HERE)
    assert written[8 : len(block)] == block[8:]
    (start,) = struct.unpack_from(f"{order}L", written, 4)
    assert struct.unpack_from(f"{order}H", written, start) == (2,) and start % 2 == 0
    tags = [struct.unpack_from(f"{order}H", written, start + 2 + 12 * entry)[0] for entry in range(2)]
    assert tags == [Base.Orientation, IFD.GPSInfo]  # ascending
    assert struct.unpack_from(f"{order}L", written, start + 2 + 24) == (26,)
    loaded = Image.Exif()
    loaded.load(written)
    assert loaded[Base.Orientation] == 6
    assert position_in(loaded) == pytest.approx((HERE.latitude, HERE.longitude), abs=3e-8)


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [
        (0.5, -0.5, ("N", (0, 30, 0), "W", (0, 30, 0))),
        (-89.99999999, 179.99999999, ("S", (90, 0, 0), "E", (180, 0, 0))),  # seconds never round to 60
        (10 + 59.99999 / 60, 1 / 3600, ("N", (10, 59, 59.9994), "E", (0, 0, 1))),
    ],
)
def test_degrees_become_minutes_and_seconds(latitude, longitude, expected):
    block = Image.Exif()
    block.load(with_gps(b"", Position(latitude, longitude, 5.5, "é")))
    gps = block.get_ifd(IFD.GPSInfo)
    assert (gps[1], tuple(map(float, gps[2])), gps[3], tuple(map(float, gps[4]))) == expected
    assert (gps[GPS.GPSHPositioningError], gps[GPS.GPSProcessingMethod]) == (5.5, b"ASCII\0\0\0?")


def with_gps_entries(**entries):
    block = exif()
    block.get_ifd(IFD.GPSInfo).update({GPS[name]: value for name, value in entries.items()})
    return block


def test_other_gps_entries_are_kept_but_not_that_there_is_no_position():
    content = photo("JPEG", exif=with_gps_entries(GPSImgDirection=90.0, GPSStatus="V"))
    gps = opened(with_position(content, HERE)).getexif().get_ifd(IFD.GPSInfo)
    assert gps[GPS.GPSImgDirection] == 90 and gps[GPS.GPSLatitude][0] == 33 and GPS.GPSStatus not in gps


PLACE = {"GPSLatitude": (1.0, 2.0, 3.0), "GPSLongitude": (4.0, 5.0, 6.0)}
REFERENCES = {"GPSLatitudeRef": "N", "GPSLongitudeRef": "E"}
NOWHERE = {"GPSLatitude": (0.0, 0.0, 0.0), "GPSLongitude": (0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    "entries",
    [{**PLACE, **REFERENCES}, PLACE, {**NOWHERE, **REFERENCES}, {**PLACE, **REFERENCES, "GPSStatus": "V"}],
    ids=["complete", "without references", "zero", "void"],
)
def test_a_position_is_kept_also_one_that_is_incomplete(entries):
    with pytest.raises(ValueError, match="it has a position already, even if an incomplete or void one, which is kept"):
        with_position(photo("JPEG", exif=with_gps_entries(**entries)), HERE)


XMP = b"<x exif:GPSLatitude='48,51.5N'/>"


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_position_in_xmp_is_kept(format):
    with pytest.raises(ValueError, match="it has a position already, in XMP, which is kept"):
        with_position(photo(format, xmp=XMP), HERE)


def test_a_position_in_xmp_behind_the_pixels_of_a_png_is_kept():
    content, text = photo("PNG", exif=exif()), b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP
    chunk = struct.pack(">L", len(text) - 4) + text + struct.pack(">L", zlib.crc32(text))
    with pytest.raises(ValueError, match="it has a position already, in XMP, which is kept"):
        with_position(content[:-12] + chunk + content[-12:], HERE)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (photo("BMP"), "it is BMP, and only JPEG, PNG, WEBP can take a position: convert it"),
        (with_second_image(ultra_hdr=False), "it is MPO, and only JPEG, PNG, WEBP can take a position: convert it"),
        (with_second_image(ultra_hdr=True), "it holds several images, whose offsets in the file would no longer be"),
        (photo("JPEG", exif=exif(UserComment=b"x" * 65_000)), "its EXIF metadata have no room for a position"),
        (photo("JPEG", exif=b"Exif\0\0II*\0\xff\xff\0\0"), "its EXIF metadata are corrupt"),
        (photo("JPEG", exif=b"Exif\0\0what is this"), "its EXIF metadata are corrupt"),
        (photo("JPEG", exif=b"Exif\0\0MM\0\7\0\0\0\10" + bytes(6)), "its EXIF metadata are corrupt"),
        (b"no image", "it cannot be opened: it is none of JPEG, PNG"),
        (photo("PNG")[:60], "it cannot be opened: "),
    ],
)
def test_what_takes_no_position_is_refused(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        with_position(content, HERE)


CORRUPT = [photo(format, exif=exif(), **options) for format, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}))]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("content", "min_written"), [*zip(CORRUPT, (10, 0, 10), strict=True)], ids=["JPEG", "PNG", "WEBP"]
)  # the pixels of a PNG have a check sum
def test_a_corrupt_file_is_refused_or_gets_a_readable_position(content, min_written, tmp_path):
    rng, num_written = np.random.default_rng(0), 0
    for _ in range(150):
        corrupt = bytearray(content)
        for place in rng.integers(0, rng.choice([64, 400, len(content)]), 3).tolist():
            corrupt[place] = rng.integers(256)
        (tmp_path / "photo").write_bytes(corrupt)
        taken_at(tmp_path / "photo")
        try:
            copy = with_position(bytes(corrupt), HERE)
        except ValueError:
            continue
        num_written += 1
        with Image.open(BytesIO(copy)) as image:
            assert position_in(image.getexif()) == pytest.approx((HERE.latitude, HERE.longitude), abs=3e-8)
    assert num_written >= min_written


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, datetime(2024, 5, 1, 12, 30, 15)),
        ({"SubsecTimeOriginal": "25"}, datetime(2024, 5, 1, 12, 30, 15, 250_000)),
        (
            {"OffsetTimeOriginal": "-07:00"},
            datetime(2024, 5, 1, 12, 30, 15, tzinfo=timezone(timedelta(hours=-7))),
        ),
        ({"OffsetTimeOriginal": "   :  "}, datetime(2024, 5, 1, 12, 30, 15)),
        ({"OffsetTimeOriginal": "+2 hours"}, datetime(2024, 5, 1, 12, 30, 15)),
        ({"DateTimeOriginal": "0001:01:01 00:00:00", "OffsetTimeOriginal": "+05:00"}, None),
        ({"DateTimeOriginal": "0000:00:00 00:00:00"}, None),
        ({"DateTimeOriginal": "    :  :     :  :  "}, None),
    ],
)
def test_the_time_is_that_of_the_shutter(values, expected, tmp_path):
    for format in ("JPEG", "PNG"):
        (tmp_path / "photo").write_bytes(photo(format, exif=exif(**values)))
        assert taken_at(tmp_path / "photo") == expected


def test_the_time_of_the_file_stands_in_for_that_of_the_shutter(tmp_path):
    block = exif(DateTimeOriginal=" ", OffsetTimeOriginal="+01:00", OffsetTime="+03:00", SubsecTime="5")
    block[Base.DateTime] = "2024:05:02 10:20:30"
    (tmp_path / "photo").write_bytes(photo("JPEG", exif=block))
    zone = timezone(timedelta(hours=3))
    assert taken_at(tmp_path / "photo") == datetime(2024, 5, 2, 10, 20, 30, 500_000, tzinfo=zone)


def test_a_file_without_a_time_has_none(tmp_path):
    (tmp_path / "a").write_bytes(photo("JPEG"))
    (tmp_path / "b").write_text("text")
    assert [taken_at(tmp_path / name) for name in "abc"] == [None, None, None]
