import copy
import dataclasses
import io
import pickle
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from progeo import jpegs
from progeo.data.decode import decode_image, read_image
from progeo.image_files import open_image
from progeo.jpegs import decoded_jpeg
from progeo.pixels import pixels_of

pytestmark = pytest.mark.filterwarnings(r"ignore:.*TorchVision are deprecated:DeprecationWarning")

PICTURE = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8).repeat(6, 0).repeat(9, 1)[:-3, :-2]


@pytest.fixture(params=jpegs._DECODERS, ids=lambda decoder: decoder.module)
def decoder(request, monkeypatch):
    """Each decoder alone; Pillow remains for what it does not decode."""
    pytest.importorskip(request.param.module)
    monkeypatch.setattr(jpegs, "_DECODERS", (request.param,))
    return request.param


def jpeg_of(image, **options):
    stream = io.BytesIO()
    image.save(stream, **{"format": "JPEG", **options})
    return stream.getvalue()


def rgb(**options):
    return jpeg_of(Image.fromarray(PICTURE), **options)


def by_pillow(content):
    """The pixels that Pillow decodes, uint8 (3, H, W), or its error."""
    try:
        return torch.tensor(np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        return str(error)


def with_segment(content, marker, data):
    return content[:2] + bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data + content[2:]


ADOBE = b"Adobe\0\x64\0\0\0\0"
USUAL = {
    "4:4:4": rgb(subsampling=0, quality=95),
    "4:2:2": rgb(subsampling=1),
    "4:2:0": rgb(subsampling=2, quality=30),
    "one pixel": jpeg_of(Image.new("RGB", (1, 1), "red")),
    "with restart markers": rgb(restart_marker_blocks=2),
    "with optimized tables": rgb(optimize=True),
    "with a color profile": rgb(icc_profile=bytes(70_000)),
    "with a comment": rgb(comment=b"\xff\xd9"),
    "by Photoshop": with_segment(rgb(), 0xEE, ADOBE + b"\1"),
    "with bytes behind": rgb() + rgb(quality=20),
    "upright": rgb(exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\1\0\0\0\0\0\0\0"),
    "with corrupt EXIF": rgb(exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
}
UNUSUAL = {
    "gray": jpeg_of(Image.fromarray(PICTURE[..., 0])),
    "CMYK": jpeg_of(Image.fromarray(PICTURE).convert("CMYK")),
    "YCCK": with_segment(jpeg_of(Image.fromarray(PICTURE).convert("CMYK")), 0xEE, ADOBE + b"\2"),
    "RGB": rgb(keep_rgb=True),
    "RGB by Adobe": with_segment(rgb(subsampling=0), 0xEE, ADOBE + b"\0"),
    "4:4:0": jpeg_of(Image.fromarray(PICTURE[:32, :32]), subsampling=1).replace(b"\1\x21\0", b"\1\x12\0", 1),
    "progressive": rgb(progressive=True),
    "of 12 bits": rgb().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "several in one": jpeg_of(
        Image.fromarray(PICTURE), format="MPO", save_all=True, append_images=[Image.new("L", (9, 9))]
    ),
    "PNG": jpeg_of(Image.fromarray(PICTURE), format="PNG"),
    "truncated": rgb()[:-40],
    "without an end": rgb()[:-2],
    "with a movie behind": rgb() + bytes(2**21),
}


@pytest.mark.parametrize("kind", USUAL)
def test_a_usual_jpeg_has_the_pixels_of_pillow(decoder, kind):
    with open_image(io.BytesIO(USUAL[kind])) as image:
        pixels = decoded_jpeg(image)
    assert torch.equal(pixels, by_pillow(USUAL[kind]))
    assert pixels.stride() == (1, 3 * pixels.shape[2], 3)  # channels last, which resizes fastest


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_unusual_is_left_to_pillow_with_its_pixels_or_its_error(decoder, kind, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(UNUSUAL[kind])
    expected = by_pillow(UNUSUAL[kind])
    if isinstance(expected, str):
        with pytest.raises(ValueError) as error:
            read_image(tmp_path / "photo.jpg")
        assert "cannot be decoded: " in str(error.value)
        assert kind == "of 12 bits" or expected in str(error.value)
        return
    with open_image(tmp_path / "photo.jpg") as image:
        assert decoded_jpeg(image) is None
        assert torch.equal(pixels_of(image), expected)
    assert torch.equal(read_image(tmp_path / "photo.jpg"), expected)


def test_a_jpeg_that_ends_anywhere_is_refused_as_by_pillow(decoder):
    whole = USUAL["4:2:0"]
    start = whole.index(b"\xff\xda") + 14  # of the data; without the header before, versions of Pillow differ
    for end in [*range(start, len(whole), 9), len(whole) - 1]:
        expected = by_pillow(whole[:end])
        with pytest.raises(ValueError) as error:
            decode_image(io.BytesIO(whole[:end]))
        assert str(error.value) == expected.rstrip(".")


def test_an_image_that_was_changed_is_left_to_pillow(decoder):
    with open_image(io.BytesIO(USUAL["4:4:4"])) as image:
        image.paste("red", (0, 0, 200, 200))
        assert decoded_jpeg(image) is None
        assert pixels_of(image)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("copied", [lambda image: pickle.loads(pickle.dumps(image)), copy.copy, copy.deepcopy])
def test_a_copy_of_an_image_is_left_to_pillow(decoder, copied):
    with open_image(io.BytesIO(USUAL["4:2:0"])) as image:
        assert torch.equal(pixels_of(copied(image)), by_pillow(USUAL["4:2:0"]))


def test_an_image_that_is_to_be_scaled_down_is_not_decoded_in_full(decoder, monkeypatch):
    seen = []
    noting = dataclasses.replace(decoder, decode=lambda content: (seen.append(content), decoder.decode(content))[1])
    monkeypatch.setattr(jpegs, "_DECODERS", (noting,))
    with open_image(io.BytesIO(USUAL["4:4:4"])) as image:
        image.draft(None, (40, 15))
        assert pixels_of(image).shape == (3, 20, 49)
    with open_image(io.BytesIO(USUAL["4:2:0"])) as image:
        image.draft(None, image.size)
        pixels_of(image)
    assert USUAL["4:4:4"] not in seen
    assert USUAL["4:2:0"] in seen


def test_an_image_that_is_to_be_decoded_as_gray_is_left_to_pillow(decoder):
    with open_image(io.BytesIO(USUAL["4:2:0"])) as image:
        image.draft("L", image.size)
        assert decoded_jpeg(image) is None
        assert (pixels_of(image) == by_pillow(USUAL["4:2:0"])).float().mean() < 0.5


def test_a_decoder_that_is_slow_to_import_is_used_once_it_is_imported(monkeypatch):
    slow = dataclasses.replace(jpegs._DECODERS[-1], module="imported_later", imports_fast=False)
    monkeypatch.setattr(jpegs, "_DECODERS", (slow,))
    with open_image(io.BytesIO(USUAL["4:4:4"])) as image:
        assert decoded_jpeg(image) is None
        monkeypatch.setitem(sys.modules, "imported_later", torch)
        assert torch.equal(decoded_jpeg(image), by_pillow(USUAL["4:4:4"]))


def test_a_photo_may_be_decoded_twice_from_an_opened_image(decoder):
    with open_image(io.BytesIO(USUAL["4:4:4"])) as image:
        assert torch.equal(pixels_of(image), pixels_of(image))
        assert torch.equal(pixels_of(image), torch.tensor(np.asarray(image)).permute(2, 0, 1))


def off_by_one(content):
    pixels = jpegs._by_torchvision(content).clone()
    pixels[0, -1, -1] ^= 1
    return pixels


def without_interpolation(content):
    """As a decoder that repeats the chroma: in full resolution it gives the pixels of Pillow."""
    image = Image.open(io.BytesIO(content))
    if image.layer[0][1:3] == (1, 1):
        return by_pillow(content)
    return torch.zeros(3, image.height, image.width, dtype=torch.uint8)


@pytest.mark.parametrize("decode", [off_by_one, without_interpolation, lambda content: import_module("missing")])
def test_a_decoder_that_gives_other_pixels_or_is_not_installed_is_not_used(monkeypatch, decode):
    exact, other = jpegs._DECODERS[-1], dataclasses.replace(jpegs._DECODERS[0], decode=decode)
    monkeypatch.setattr(jpegs, "_DECODERS", (other,))
    with open_image(io.BytesIO(USUAL["4:4:4"])) as image:
        assert decoded_jpeg(image) is None
        monkeypatch.setattr(jpegs, "_DECODERS", (other, exact))
        assert torch.equal(decoded_jpeg(image), by_pillow(USUAL["4:4:4"]))
