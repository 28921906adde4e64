import math

import numpy as np
import pytest
import torch
from PIL import Image

from progeo.data.panoramas import cut_views, pixels_seen, read_panorama, width_for


def colored(width):
    """A panorama whose red and green say the longitude, and whose blue the latitude."""
    longitude = ((torch.arange(width) + 0.5) / width - 0.5) * 2 * math.pi
    latitude = (0.5 - (torch.arange(width // 2) + 0.5) / (width // 2)) * math.pi
    shape = (width // 2, width)
    channels = [longitude.sin().expand(shape), longitude.cos().expand(shape), latitude.sin()[:, None].expand(shape)]
    return (127.5 + 127.5 * torch.stack(channels)).round().to(torch.uint8)


@pytest.mark.parametrize("turn_deg", [0.0, 30, 179, 180, 270, -90])
@pytest.mark.parametrize("fov_deg", [60.0, 90, 120])
def test_each_pixel_looks_where_its_ray_goes(turn_deg, fov_deg):
    width, size, edge = 400, 5, math.tan(math.radians(fov_deg / 2))
    column, row = pixels_seen(turn_deg, fov_deg, size, (width // 2, width))
    for down in range(size):
        for right in range(size):
            ray = np.array([(right + 0.5) / size * 2 - 1, 1 - (down + 0.5) / size * 2, 1 / edge])
            east, up, forward = ray / np.linalg.norm(ray)
            longitude = (math.degrees(math.atan2(east, forward)) + turn_deg + 180) % 360
            assert column[down, right].item() == pytest.approx(longitude / 360 * width - 0.5)
            assert row[down, right].item() == pytest.approx((90 - math.degrees(math.asin(up))) / 180 * width / 2 - 0.5)


def test_the_center_the_sides_and_vertical_lines_of_a_view():
    column, row = pixels_seen(30, 90, 1001, (500, 1000))
    assert column[500, 500].item() == pytest.approx((30 / 360 + 0.5) * 1000 - 0.5)
    assert row[500].tolist() == pytest.approx([249.5] * 1001)  # the horizon is straight
    assert torch.equal(column, column[:1].expand(1001, 1001))  # a column of a view is one of the panorama
    widths = column[0].diff()
    outer = (column[0, -1] - column[0, 0] + widths[0] / 2 + widths[-1] / 2).item()
    assert outer == pytest.approx(1000 / 4, abs=1e-3)  # 90 of 360 degrees


@pytest.mark.parametrize(("width", "size"), [(512, 65), (2048, 33)], ids=["as it is", "resized"])
@pytest.mark.parametrize("turn_deg", [0, 75, 180, 350])
def test_a_view_shows_what_lies_in_its_direction(width, size, turn_deg):
    (view,) = cut_views(colored(width), [turn_deg], fov_deg=90, size=size)
    column, row = pixels_seen(turn_deg, 90, size, (180, 360))
    longitude, latitude = (column + 0.5 - 180) / 180 * math.pi, (90 - row - 0.5) / 180 * math.pi
    expected = 127.5 + 127.5 * torch.stack([longitude.sin(), longitude.cos(), latitude.sin()])
    assert view.shape == (3, size, size) and view.dtype == torch.uint8
    assert (view - expected).abs().max() < 2.5


@pytest.mark.parametrize("width", [64, 640, 1000])
def test_there_is_no_seam_behind(width):
    panorama = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, width // 2, width), dtype=np.uint8))
    turned = panorama.roll(width // 2, dims=-1)
    for ahead, behind in zip(
        cut_views(panorama, [0, 40, -90], fov_deg=90, size=16),
        cut_views(turned, [180, 220, 90], fov_deg=90, size=16),
        strict=True,
    ):
        assert torch.equal(ahead, behind)


def test_fine_stripes_become_gray_instead_of_a_pattern():
    panorama = torch.zeros(3, 1024, 2048, dtype=torch.uint8)
    panorama[..., ::2] = 255
    (view,) = cut_views(panorama, [10], fov_deg=90, size=32)
    assert (view.float() - 127.5).abs().max() < 3


def test_a_jpeg_is_decoded_no_larger_than_it_is_needed(tmp_path):
    Image.new("RGB", (2048, 1024), (200, 100, 50)).save(tmp_path / "a.jpg")
    panorama = read_panorama(tmp_path / "a.jpg", width_for(90, 64))  # 302 pixels, of which 304 is a multiple of 8
    assert panorama.shape == (3, 256, 512)
    assert (panorama[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() <= 3


def test_a_panorama_that_is_cut_off_is_named(tmp_path):
    Image.effect_noise((256, 128), 90).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"The panorama .*a\.jpg cannot be decoded"):
        read_panorama(tmp_path / "a.jpg", 256)
