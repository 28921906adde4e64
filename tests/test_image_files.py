"""Which formats are opened, and that nothing else happens meanwhile."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from progeo import image_files
from progeo.data.decode import read_image, read_shape
from progeo.data.inspection import inspect_image
from progeo.datasets.readers.photos import _note
from progeo.image_files import EXTENSIONS, UNREAD_EXTENSIONS, _jxl_codestream, _jxl_shape, open_image


def chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_of(width, height):
    """A PNG of one bit a pixel, all black."""
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height if width * height < 2**28 else b"")
    header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "MPO"])
def test_a_format_is_known_by_what_is_in_a_file_whatever_its_name_says(tmp_path, kind):
    more = {"save_all": True, "append_images": [Image.new("RGB", (8, 4))]} if kind == "MPO" else {}
    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "photo", kind, **more)
    (tmp_path / "photo").rename(tmp_path / "photo.jpg")
    with open_image(tmp_path / "photo.jpg") as image:
        assert (image.format, image.size) == (kind, (8, 4))
    with (tmp_path / "photo.jpg").open("rb") as stream, open_image(stream) as image:
        assert image.size == (8, 4)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.eps"])
def test_a_photo_that_is_a_program_is_not_run(tmp_path, monkeypatch, name):
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\necho 10.0\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    photo = tmp_path / name
    photo.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(
        ValueError, match=rf"The image .*{name} cannot be decoded: it is none of JPEG, PNG, .*corrupt\."
    ):
        read_image(photo)
    assert read_shape(photo) is None
    assert "it is none of JPEG" in inspect_image(photo).reason
    assert not (tmp_path / "called").exists()


def test_every_kind_of_image_is_read_or_has_an_advice():
    assert {".jpg", ".jpeg", ".png", ".webp"} <= set(EXTENSIONS)
    assert not set(EXTENSIONS) & UNREAD_EXTENSIONS.keys()
    assert {".avif", ".heic", ".heif", ".jxl", ".tif", ".bmp", ".gif", ".jp2", ".dng", ".cr3", ".nef", ".arw"} <= {
        *EXTENSIONS,
        *UNREAD_EXTENSIONS,
    }


@pytest.mark.parametrize(
    ("extension", "content", "words"),
    [
        (".heic", b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIF: pip install 'progeo[formats]'"),
        (".heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "it is HEIF: pip install 'progeo[formats]'"),
        (".avif", b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "it is AVIF: pip install 'progeo[formats]'"),
        (".jxl", b"\0\0\0\x0cJXL \r\n\x87\n", "it is JXL: pip install 'progeo[formats]'"),
        (".jxl", b"\xff\x0a\x41", "it is JXL: pip install 'progeo[formats]'"),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_a_format_that_takes_a_package_says_which(tmp_path, extension, content, words, suffix):
    photo = tmp_path / f"photo{suffix or extension}"
    photo.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_image(photo)
    assert (words in str(error.value)) == (extension in UNREAD_EXTENSIONS)
    assert UNREAD_EXTENSIONS.get(extension, words) in words


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "huge.png").write_bytes(png_of(20_000, 10_000))
    with pytest.raises(ValueError, match=r"huge.png cannot be decoded: it has more than 178,956,970 pixels: scale it"):
        read_image(tmp_path / "huge.png")
    assert read_shape(tmp_path / "huge.png") is None
    assert inspect_image(tmp_path / "huge.png").reason.startswith("it has more than 178,956,970 pixels")


def test_neither_a_large_panorama_nor_odd_exif_makes_pillow_remark_on_it(tmp_path):
    (tmp_path / "panorama.png").write_bytes(png_of(16_384, 8192))
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    program = (
        "import sys, pathlib\nfrom progeo.image_files import open_image\n"
        "for name in sys.argv[1:]:\n"
        "    with open_image(pathlib.Path(name)) as image:\n        image.getexif(), print(image.size)\n"
    )
    words = [sys.executable, "-c", program, tmp_path / "panorama.png", tmp_path / "odd.jpg"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.stdout, done.stderr) == ("(16384, 8192)\n(8, 8)\n", "")


def bits(*fields):
    """Numbers packed by their counts of bits, the lowest first."""
    value, done = 0, 0
    for number, count in fields:
        value |= number << done
        done += count
    return value.to_bytes(14, "little")


@pytest.mark.parametrize(
    ("header", "shape"),
    [
        (b"\x41", (8, 8)),  # 1 small, 00000 one times 8, 001 as wide as high
        (bits((1, 1), (31, 5), (0, 3), (0, 5)), (256, 8)),
        (bits((0, 1), (0, 2), (299, 9), (0, 3), (0, 2), (199, 9)), (300, 200)),
        (bits((0, 1), (1, 2), (899, 13), (5, 3)), (900, 1600)),
        (bits((0, 1), (2, 2), (200_000, 18), (7, 3)), (200_001, 400_002)),
        (bits((0, 1), (3, 2), (2**30 - 1, 30), (2, 3)), (2**30, 2**30 * 12 // 10)),
    ],
)
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(header, shape):
    codestream = b"\xff\x0a" + header
    beginning = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "
    in_box = beginning + struct.pack(">L4s", 0, b"jxlc") + codestream + bytes(8)
    in_parts = beginning + struct.pack(">L4sQL", 1, b"jxlp", 40, 0) + codestream + bytes(8)
    in_tiny_parts = beginning + b"".join(
        struct.pack(">L4sL", 12 + len(part), b"jxlp", number) + part
        for number, part in enumerate((b"", b"\xff", b"\x0a", codestream[2:5], codestream[5:]))
    )
    for content in (codestream, in_box, in_parts, in_tiny_parts):
        assert _jxl_shape(_jxl_codestream(content)) == shape
    with pytest.raises(ValueError, match="JPEG XL without pixels"):
        _jxl_codestream(beginning)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_most_pixels_are_a_setting(tmp_path, monkeypatch):
    (tmp_path / "huge.png").write_bytes(png_of(20_000, 10_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    for limit, shape in (("200_000_000", (10_000, 20_000)), ("199999999", None)):
        monkeypatch.setenv("PROGEO_MAX_PIXELS", limit)
        assert read_shape(tmp_path / "huge.png") == shape
    with pytest.raises(ValueError, match=r"more than 199,999,999 pixels: scale it down, .* with --max_pixels\.$"):
        read_image(tmp_path / "huge.png")
    for wrong in ("0", "-1", "1e9", "many"):
        monkeypatch.setenv("PROGEO_MAX_PIXELS", wrong)
        with pytest.raises(ValueError, match=f"--max_pixels. is a positive number of pixels, got '{wrong}'"):
            open_image(tmp_path / "huge.png")


def test_no_side_may_have_more_than_a_million_pixels(tmp_path):
    (tmp_path / "line.png").write_bytes(png_of(1, 1_000_001))
    with pytest.raises(ValueError, match="it has 1 x 1,000,001 pixels, and no side may have more than 1,000,000"):
        read_image(tmp_path / "line.png")
    (tmp_path / "line.png").write_bytes(png_of(1_000_000, 1))
    assert read_image(tmp_path / "line.png").shape == (3, 1, 1_000_000)


def test_an_image_without_memory_is_that_images_sentence(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    (tmp_path / "photo.png").write_bytes(png_of(8, 8))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match=r"photo.png cannot be decoded: not enough memory\."):
        read_image(tmp_path / "photo.png")


class Concurrent:
    """Counts how many of four threads are at one place at once."""

    def __init__(self):
        self.running, self.counts = [], []

    def wait(self):
        self.running.append(1)
        time.sleep(0.05)
        self.counts.append(len(self.running))
        self.running.pop()

    def most(self, action):
        with ThreadPoolExecutor(4) as pool:
            [each.result() for each in [pool.submit(action) for _ in range(4)]]
        return max(self.counts)


@pytest.mark.parametrize(("memory", "at_once"), [(8 * 8 * 10_000 * 2, 4), (8 * 8 * 10_000 * 2 - 1, 1)])
def test_images_that_memory_does_not_hold_at_once_are_decoded_in_turn(monkeypatch, memory, at_once):
    monkeypatch.setattr(image_files, "_memory_bytes", lambda: memory)
    concurrent = Concurrent()

    def decode():
        with image_files.taking_turns(Image.new("1", (100, 100))):
            concurrent.wait()

    assert concurrent.most(decode) == at_once


@pytest.mark.parametrize("read", [read_shape, _note])
def test_orientation_after_the_pixels_is_read_in_turn(tmp_path, monkeypatch, read):
    (tmp_path / "photo.png").write_bytes(png_of(100, 100))
    monkeypatch.setattr(image_files, "_memory_bytes", lambda: 8)
    concurrent, load = Concurrent(), ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (concurrent.wait(), load(image))[1])
    assert concurrent.most(lambda: read(tmp_path / "photo.png")) == 1


def test_the_tiles_of_a_tiff_are_pixels_too(tmp_path):
    tags = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65536, 323: 65536, 324: 200, 325: 9}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "photo.tif").write_bytes(content.ljust(200, b"\0") + zlib.compress(b""))
    with pytest.raises(ValueError, match=r"photo\.tif cannot be decoded: it has more than 178,956,970 pixels"):
        read_image(tmp_path / "photo.tif")
    assert read_shape(tmp_path / "photo.tif") is None


@pytest.mark.skipif(".jxl" not in EXTENSIONS, reason="pillow-jxl-plugin is not installed")
def test_jpeg_xl_of_too_many_pixels_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="more than 178,956,970 pixels"):
        open_image(io.BytesIO(b"\xff\x0a" + bits((0, 1), (2, 2), (200_000, 18), (7, 3))))
