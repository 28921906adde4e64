"""Positions in copies of photos: read back by Pillow, with pixels and other metadata as they were."""

import struct
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


def test_a_second_image_in_the_file_is_kept():
    first, second = (Image.fromarray(NOISE[:, ::step]).convert("RGB") for step in (1, -1))
    first.save(stream := BytesIO(), "MPO", save_all=True, append_images=[second])
    before, after = (Image.open(BytesIO(each)) for each in (stream.getvalue(), with_position(stream.getvalue(), HERE)))
    for frame in (0, 1):
        before.seek(frame)
        after.seek(frame)
        assert np.array_equal(np.asarray(before), np.asarray(after))


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


def test_other_gps_entries_are_kept_and_an_empty_position_is_replaced():
    block = exif()
    block.get_ifd(IFD.GPSInfo).update({GPS.GPSImgDirection: 90.0, GPS.GPSLatitude: (0, 0, 0), GPS.GPSLatitudeRef: "N"})
    gps = opened(with_position(photo("JPEG", exif=block), HERE)).getexif().get_ifd(IFD.GPSInfo)
    assert gps[GPS.GPSImgDirection] == 90 and gps[GPS.GPSLatitude][0] == 33


def with_own_position():
    block = exif()
    block.get_ifd(IFD.GPSInfo).update({1: "N", 2: (1.0, 2.0, 3.0), 3: "E", 4: (4.0, 5.0, 6.0)})
    return block


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (photo("JPEG", exif=with_own_position()), "it has a position already, which is kept"),
        (photo("BMP"), "it is BMP, and only JPEG, MPO, PNG, WEBP can take a position: convert it"),
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
@pytest.mark.parametrize("content", CORRUPT, ids=["JPEG", "PNG", "WEBP"])
def test_a_corrupt_file_is_refused_or_gets_a_readable_position(content, tmp_path):
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
    assert num_written > 10


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, datetime(2024, 5, 1, 12, 30, 15)),
        ({"SubsecTimeOriginal": "25"}, datetime(2024, 5, 1, 12, 30, 15, 250_000)),
        (
            {"OffsetTimeOriginal": "-07:00"},
            datetime(2024, 5, 1, 12, 30, 15, tzinfo=timezone(timedelta(hours=-7))),
        ),
        ({"DateTimeOriginal": "0000:00:00 00:00:00"}, None),
        ({"DateTimeOriginal": "    :  :     :  :  "}, None),
    ],
)
def test_the_time_is_that_of_the_shutter(values, expected, tmp_path):
    for format in ("JPEG", "PNG"):
        (tmp_path / "photo").write_bytes(photo(format, exif=exif(**values)))
        assert taken_at(tmp_path / "photo") == expected


def test_a_file_without_a_time_has_none(tmp_path):
    (tmp_path / "a").write_bytes(photo("JPEG"))
    (tmp_path / "b").write_text("text")
    assert [taken_at(tmp_path / name) for name in "abc"] == [None, None, None]
