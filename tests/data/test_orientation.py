"""Which way up photos are: by the orientation in their files alone, whatever else is there, alike for every reader."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from PIL.Image import Transpose

from progeo.data.datasets import CatalogueImages
from progeo.data.decode import decode_image, read_image, read_shape
from progeo.data.inspection import inspect_image
from progeo.image_files import EXTENSIONS, open_image
from progeo.models.thumbnail import ThumbnailEncoder
from progeo.pixels import orientation_of
from progeo.places.catalogue import read_catalogue

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")  # what Pillow remarks on odd files

ORIENTATION, RESOLUTION, MAKER = 0x0112, 0x011A, 0x010F
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SIGNED_LONG, SIGNED_RATIONAL = 1, 2, 3, 4, 5, 7, 9, 10
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
"""Pixels (H, W, 3) as EXIF 2.32 says that they are to be seen."""
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def exif_of(*entries, order="<", data=b""):
    """EXIF of entries (tag, type, count, 4 bytes), sorted by tag; `data` follows them."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}LH", 8, len(entries))
    packed = [struct.pack(f"{order}HHL", *entry[:3]) + entry[3] for entry in sorted(entries)]
    return head + b"".join(packed) + bytes(4) + data


def turned(orientation, order="<"):
    return ORIENTATION, SHORT, 1, struct.pack(f"{order}HH", orientation, 0)


def encoded(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, kind, **options)
    return stream.getvalue()


JPEG = encoded("JPEG", quality=95)
STORED = decode_image(io.BytesIO(JPEG)).permute(1, 2, 0).numpy()


def jpeg_with(*segments):
    """The JPEG with more APP1 segments."""
    packed = [b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments]
    return JPEG[:2] + b"".join(packed) + JPEG[2:]


def seen(content, orientation="exif"):
    return decode_image(io.BytesIO(content), orientation).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", range(14))
def test_no_entry_beside_the_orientation_keeps_a_photo_from_being_turned(kind, order):
    odd_bytes = (b"\xff\xff\xff\xff", struct.pack(f"{order}l", -1), struct.pack(f"{order}L", 8 + 2 + 24 + 4))
    for tag in (0x0100, MAKER, 0x0110, RESOLUTION, 0x0131, 0x8769, 0x8825, 0xFFFF):
        for place, count in enumerate((0, 1, 9, 2**32 - 1)):
            for odd in odd_bytes:
                orientation = 2 + (tag + place) % 7
                exif = exif_of(turned(orientation, order), (tag, kind, count, odd), order=order, data=b"\xff" * 40)
                assert np.array_equal(seen(jpeg_with(b"Exif\0\0" + exif)), UPRIGHT[orientation](STORED))


def fraction(order):
    """A resolution of -1/0, after two entries."""
    return (RESOLUTION, SIGNED_RATIONAL, 1, struct.pack(f"{order}L", 38)), struct.pack(f"{order}ll", -1, 0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_png_and_webp_are_turned_alike_and_their_headers_say_so(tmp_path, orientation, order):
    odd, data = fraction(order)
    exif = exif_of(turned(orientation, order), odd, order=order, data=data)
    files = {
        "photo.jpg": (jpeg_with(b"Exif\0\0" + exif), STORED),
        "photo.png": (encoded("PNG", exif=exif), PICTURE),
        "photo.webp": (encoded("WEBP", exif=exif, lossless=True), PICTURE),
    }
    for name, (content, stored) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        upright = torch.from_numpy(UPRIGHT[orientation](stored).copy()).permute(2, 0, 1)
        assert torch.equal(read_image(path), upright)
        assert read_shape(path) == inspect_image(path).size == tuple(upright.shape[1:])
        with open_image(path) as photo:
            assert torch.equal(ThumbnailEncoder().preprocess(photo), ThumbnailEncoder().preprocess(upright))


@pytest.mark.parametrize(
    ("kind", "count", "letters", "value", "orientation"),
    [
        (SHORT, 1, "HH", 6, 6),
        (BYTE, 1, "BBBB", 6, 6),
        (LONG, 1, "L", 6, 6),
        (SIGNED_LONG, 1, "l", 6, 6),
        (SHORT, 2, "HH", 6, 6),  # of several numbers the first
        (BYTE, 4, "BBBB", 6, 6),
        (SHORT, 0, "HH", 6, 1),  # an entry that says that it holds nothing
        (SHORT, 3, "L", 40, 1),  # too many for the entry, and beyond the end
        (SHORT, 2**32 - 1, "HH", 6, 1),
        (SHORT, 1, "HH", 0, 1),
        (SHORT, 1, "HH", 9, 1),
        (LONG, 1, "L", 2**31, 1),
        (SIGNED_LONG, 1, "l", -6, 1),
        (ASCII, 2, "BBBB", ord("6"), 1),
        (UNDEFINED, 1, "BBBB", 6, 1),
        (RATIONAL, 1, "L", 8, 1),
        (99, 1, "HH", 6, 1),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_the_first_whole_number_of_its_entry(kind, count, letters, value, orientation, order):
    value = struct.pack(order + letters, value, *[0] * (len(letters) - 1))
    exif = exif_of((ORIENTATION, kind, count, value), order=order)
    assert np.array_equal(seen(jpeg_with(b"Exif\0\0" + exif)), UPRIGHT[orientation](STORED))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"no EXIF at all",
        exif_of(turned(6))[:14],
        exif_of(turned(6))[:19],
        exif_of()[:10] + b"\xff",
    ],
)
def test_exif_that_ends_before_the_orientation_leaves_a_photo_as_it_is(exif):
    assert np.array_equal(seen(jpeg_with(b"Exif\0\0" + exif)), STORED)


def test_numbers_that_lie_elsewhere_are_found_there():
    exif = exif_of((ORIENTATION, LONG, 2, struct.pack("<L", 26)), data=struct.pack("<LL", 8, 1))
    assert np.array_equal(seen(jpeg_with(b"Exif\0\0" + exif)), UPRIGHT[8](STORED))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("xmp", [XMP, XMP.replace(b'"', b"'"), b"<tiff:Orientation>6</tiff:Orientation>"])
def test_xmp_says_the_orientation_where_exif_does_not(xmp):
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    assert np.array_equal(seen(jpeg_with(segment)), UPRIGHT[6](STORED))
    assert np.array_equal(seen(jpeg_with(b"Exif\0\0" + exif_of(), segment)), UPRIGHT[6](STORED))
    assert np.array_equal(seen(jpeg_with(b"Exif\0\0" + exif_of(turned(3)), segment)), UPRIGHT[3](STORED))
    in_text = PngImagePlugin.PngInfo()
    in_text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    assert np.array_equal(seen(encoded("PNG", pnginfo=in_text)), UPRIGHT[6](PICTURE))
    assert np.array_equal(seen(encoded("WEBP", xmp=xmp, lossless=True)), UPRIGHT[6](PICTURE))


def test_a_png_says_it_as_text_or_after_its_pixels_too(tmp_path):
    as_text, exif = PngImagePlugin.PngInfo(), exif_of(turned(8))
    as_text.add_text("Raw profile type exif", f"\nexif\n{len(exif) + 6}\n{(b'Exif' + bytes(2) + exif).hex()}\n")
    plain = encoded("PNG")
    chunk = b"eXIf" + exif
    late = plain[:-12] + struct.pack(">L", len(exif)) + chunk + struct.pack(">L", zlib.crc32(chunk)) + plain[-12:]
    for content in (encoded("PNG", pnginfo=as_text), late):
        (tmp_path / "photo.png").write_bytes(content)
        assert np.array_equal(seen(content), UPRIGHT[8](PICTURE))
        assert read_shape(tmp_path / "photo.png") == (32, 48)
    as_text.add_text("Raw profile type exif", "\nexif\n3\nno hexadecimal digits\n")
    assert np.array_equal(seen(encoded("PNG", pnginfo=as_text)), PICTURE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_the_decoder_turns_is_not_turned_twice(tmp_path, orientation):
    (tmp_path / "photo.tif").write_bytes(encoded("TIFF", exif=exif_of(turned(orientation))))
    for choice in ("exif", "ignore"):  # Pillow itself turns TIFF, for everybody
        image = read_image(tmp_path / "photo.tif", choice)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), UPRIGHT[orientation](PICTURE))
        assert read_shape(tmp_path / "photo.tif", choice) == tuple(image.shape[1:])


def close(image, pixels):
    """The same but for what a lossy format changes."""
    return image.shape == pixels.shape and np.abs(image.astype(int) - pixels).mean() < 3


@pytest.mark.skipif(".avif" not in EXTENSIONS, reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_once(tmp_path, orientation):
    content = encoded("AVIF", exif=exif_of(turned(orientation)), quality=100, subsampling="4:4:4")
    (tmp_path / "photo.jpg").write_bytes(content)  # whatever its name says
    assert close(seen(content), UPRIGHT[orientation](PICTURE))
    assert close(seen(content, "ignore"), PICTURE)
    assert read_shape(tmp_path / "photo.jpg") == UPRIGHT[orientation](PICTURE).shape[:2]


@pytest.mark.skipif(".heic" not in EXTENSIONS, reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heif_is_turned_once(tmp_path, orientation):
    stream, picture = io.BytesIO(), Image.fromarray(PICTURE)
    picture.info["exif"] = b"Exif\0\0" + exif_of(turned(orientation))
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture.save(stream, "HEIF", quality=100, chroma=444)
    (tmp_path / "photo.heic").write_bytes(stream.getvalue())
    upright = UPRIGHT[orientation](PICTURE)
    assert close(read_image(tmp_path / "photo.heic").permute(1, 2, 0).numpy(), upright)
    assert read_shape(tmp_path / "photo.heic") == inspect_image(tmp_path / "photo.heic").size == upright.shape[:2]


@pytest.mark.skipif(".jxl" not in EXTENSIONS, reason="pillow-jxl-plugin is not installed")
def test_a_jpeg_in_jpeg_xl_is_turned_as_it_was(tmp_path):
    pytest.importorskip("pillow_jxl")
    (tmp_path / "photo.jpg").write_bytes(jpeg_with(b"Exif\0\0" + exif_of(turned(6))))
    with Image.open(tmp_path / "photo.jpg") as photo:
        photo.save(tmp_path / "photo.jxl", lossless_jpeg=True)
    assert torch.equal(read_image(tmp_path / "photo.jxl"), read_image(tmp_path / "photo.jpg"))
    assert read_shape(tmp_path / "photo.jxl") == (32, 48)
    assert np.array_equal(seen(encoded("JXL", lossless=True, exif=exif_of(turned(6)))), PICTURE)  # its decoder turns it


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_orientation_that_is_ignored_leaves_pixels_as_they_are_stored(tmp_path, orientation):
    path = tmp_path / "@0@0@.jpg"
    path.write_bytes(jpeg_with(b"Exif\0\0" + exif_of(turned(orientation))))
    both = STORED, UPRIGHT[orientation](STORED)
    stored, upright = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) for pixels in both)
    assert torch.equal(read_image(path, "ignore"), stored)
    assert read_shape(path, "ignore") == (48, 32)
    catalogue = read_catalogue(tmp_path)
    assert torch.equal(CatalogueImages(catalogue, torch.clone, "ignore")[0], stored)
    assert torch.equal(CatalogueImages(catalogue, torch.clone)[0], upright)


def test_a_picture_in_memory_that_was_turned_already_stays_so():
    photo = Image.open(io.BytesIO(jpeg_with(b"Exif\0\0" + exif_of(turned(6)))))
    assert orientation_of(photo) == 6
    assert orientation_of(Image.fromarray(PICTURE).transpose(Transpose.ROTATE_90)) == 1
