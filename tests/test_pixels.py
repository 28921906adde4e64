"""Pictures of every mode become the same pixels, from a file and in memory."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from progeo import pixels
from progeo.data.decode import decode_image, read_image, read_shape
from progeo.image_files import open_image
from progeo.pixels import pixels_of

RED = (200, 40, 10)


def palette(**options):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, *RED])
    return image, options


MODES = {
    "RGB.png": (Image.new("RGB", (4, 2), RED), {}, RED),
    "RGBA.png": (Image.new("RGBA", (4, 2), (*RED, 0)), {}, RED),  # as stored, also where it is transparent
    "L.png": (Image.new("L", (4, 2), 90), {}, (90, 90, 90)),
    "LA.png": (Image.new("LA", (4, 2), (90, 7)), {}, (90, 90, 90)),
    "1.png": (Image.new("1", (4, 2), 1), {}, (255, 255, 255)),
    "P.png": (*palette(), RED),
    "P, one color transparent.png": (*palette(transparency=1), RED),
    "P, transparent by steps.png": (*palette(transparency=bytes([0, 128])), RED),
    "16 bits.png": (Image.fromarray(np.full((2, 4), 0x5A80, np.uint16)), {}, (0x5A, 0x5A, 0x5A)),
    "16 bits.tif": (Image.fromarray(np.full((2, 4), 0x5A80, np.uint16)), {}, (0x5A, 0x5A, 0x5A)),
    "32 bits that hold 16.tif": (Image.fromarray(np.full((2, 4), 0x5A80, np.int32)), {}, (0x5A, 0x5A, 0x5A)),
    "RGB.webp": (Image.new("RGB", (4, 2), RED), {"lossless": True}, RED),
    "CMYK.tif": (Image.new("CMYK", (4, 2), (55, 215, 245, 0)), {}, RED),
    "RGB.bmp": (Image.new("RGB", (4, 2), RED), {}, RED),
}


@pytest.mark.filterwarnings(r"ignore:::PIL\..*")
@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_the_rgb_that_it_says(tmp_path, name):
    image, options, color = MODES[name]
    image.save(tmp_path / name, **options)
    expected = torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, 2, 4)
    assert torch.equal(read_image(tmp_path / name), expected)
    assert read_shape(tmp_path / name) == (2, 4)
    with open_image(tmp_path / name) as opened:
        mode = opened.mode
        assert torch.equal(pixels_of(opened), expected)
        assert opened.mode == mode


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "I;16"])
def test_an_image_that_is_converted_in_parts_has_the_same_pixels(monkeypatch, mode, orientation):
    drawn = np.random.default_rng(0).integers(0, 256, (37, 23, 3), np.uint8)
    image = Image.fromarray(drawn[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(drawn)
    if mode != "I;16":
        image = image.convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    at_once = pixels_of(image)
    monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", 5 * 23)
    assert torch.equal(pixels_of(image), at_once)
    if mode != "I;16":
        upright = ImageOps.exif_transpose(image).convert("RGB")
        assert np.array_equal(at_once.permute(1, 2, 0), np.asarray(upright))


MEMORY = """
import io
import sys
from pathlib import Path
from progeo.data.decode import decode_image

def memory(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

stream = io.BytesIO(sys.stdin.buffer.read())
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
before = memory("VmRSS")
decode_image(stream)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures the memory of Linux")
def test_a_large_image_is_copied_once_only():
    stream = io.BytesIO()
    Image.new("1", (4000, 4000)).save(stream, "PNG")
    assert stream.tell() < 10_000
    # A process of its own has freed no memory that it could use again.
    found = subprocess.run([sys.executable, "-c", MEMORY], input=stream.getvalue(), capture_output=True, check=True)
    # A byte of Pillow and three of ours, where Pillow's conversion takes four more.
    assert 16e6 * 3 < int(found.stdout) < 16e6 * 5.5


def test_a_jpeg_of_four_inks_has_its_colors():
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (55, 215, 245, 0)).save(stream, "JPEG", quality=100)
    pixels = decode_image(stream).float().mean(dim=(1, 2))
    torch.testing.assert_close(pixels, torch.tensor(RED).float(), atol=4, rtol=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((2, 4), 0.5, np.float32), "its pixels are floats, whose range is not known: convert it to 8 or 16"),
        (np.array([[-1, 5]], np.int32), "its pixels go from -1 to 5: convert it to 8 or 16 bits"),
        (np.array([[0, 65536]], np.int32), "its pixels go from 0 to 65536: convert it"),
    ],
)
def test_values_of_unknown_range_are_refused(tmp_path, values, words):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=f"deep.tif cannot be decoded: {words}"):
        read_image(tmp_path / "deep.tif")
