"""Random crops against torchvision's own, in distribution and in pixels."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from progeo.data.crops import CROP_DRAWS, Box, RandomCrop

PUBLISHED = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3)}


def draws(count, seed=0):
    return np.random.default_rng(seed).random((count, CROP_DRAWS))


@pytest.mark.parametrize(
    ("height", "width", "settings"),
    [
        (128, 128, PUBLISHED),
        (96, 160, PUBLISHED),
        (900, 300, PUBLISHED),  # of which torchvision mostly gives the central box
        (37, 23, {"scale": (0.05, 0.4), "ratio": (0.2, 3.0)}),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, settings):
    count = 4000
    crop = RandomCrop((64, 64), **settings)
    ours = np.array([crop.box(row, height, width) for row in draws(count)])
    torch.manual_seed(0)
    published = v2.RandomResizedCrop((64, 64), **settings)
    image = torch.zeros(3, height, width)
    drawn = [published.make_params([image]) for _ in range(count)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    values = np.arange(max(height, width) + 1)
    # Each side and its position, where boxes end, and how wide they are for their height.
    for a, b in zip((*ours.T, ours[:, 0] + ours[:, 2]), (*theirs.T, theirs[:, 0] + theirs[:, 2]), strict=True):
        gap = np.abs(np.searchsorted(np.sort(a), values, "right") - np.searchsorted(np.sort(b), values, "right")).max()
        assert gap / count < 0.05  # Kolmogorov-Smirnov distance; 0.043 is its 0.1 % point for 4,000 against 4,000
    assert (ours[:, 2:] >= 1).all()
    ratios = [np.sort(boxes[:, 3] / boxes[:, 2]) for boxes in (ours, theirs)]
    grid = np.linspace(0.1, 4, 200)
    assert np.abs(np.searchsorted(ratios[0], grid) - np.searchsorted(ratios[1], grid)).max() / count < 0.05


@pytest.mark.parametrize(
    ("height", "width", "ratio", "box"),
    [
        (32, 320, (1.0, 1.0), (0, 144, 32, 32)),
        (320, 32, (0.5, 1.0), (128, 0, 64, 32)),
        (32, 40, (0.5, 2.0), (0, 0, 32, 40)),
        (1, 50, (3 / 4, 4 / 3), (0, 24, 1, 1)),
        (50, 1, (3 / 4, 4 / 3), (24, 0, 1, 1)),
    ],
)
def test_where_no_shape_fits_the_box_is_central_as_torchvisions(height, width, ratio, box):
    # Each of the ten tries asks for the complete area with the most extreme ratio.
    widest = np.full(CROP_DRAWS, 1 - 1e-12) if width > height else np.r_[np.ones(10), np.zeros(12)]
    assert RandomCrop((8, 8), scale=(0.99, 1.0), ratio=ratio).box(widest, height, width) == box
    torch.manual_seed(0)
    if (height, width) != (32, 40):  # of which torchvision finds one
        made = v2.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=ratio).make_params([torch.zeros(3, height, width)])
        assert tuple(made[name] for name in ("top", "left", "height", "width")) == box


def test_the_first_of_ten_shapes_that_fits_is_taken_anywhere_in_the_image():
    crop = RandomCrop((8, 8), scale=(0.25, 1.0), ratio=(0.25, 4.0))
    row = np.zeros(CROP_DRAWS)
    row[:10], row[10:20] = 1.0, 1.0  # all of 40 x 20 pixels at a ratio of 4: 14.1 x 56.6, too wide
    row[3], row[13] = 0.0, 0.5  # a quarter of it at a ratio of 1: 14.1 x 14.1
    row[20:] = 1 - 1e-12
    assert crop.box(row, 40, 20) == Box(26, 6, 14, 14)
    row[20:] = 0.5
    assert crop.box(row, 40, 20) == Box(13, 3, 14, 14)  # 0.5 * 27 and 0.5 * 7, whole pixels


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (128, 96)])
def test_pixels_are_those_of_torchvision_with_antialiasing_to_one_gray_level(size):
    for seed, (height, width) in enumerate([(128, 128), (90, 200), (300, 70), (33, 40)]):
        pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
        for image in (pixels.permute(2, 0, 1), pixels.permute(2, 0, 1).contiguous()):  # as decoded, and otherwise
            crop = RandomCrop(size, **PUBLISHED)
            for row in draws(5, seed):
                box = crop.box(row, height, width)
                expected = F.resized_crop(image.float(), *box, size=list(size), antialias=True)
                cropped = crop(image, row)
                assert cropped.dtype == torch.uint8
                assert cropped.shape == (3, *size)
                assert (cropped.float() - expected.round()).abs().max() <= 1


def test_a_scale_of_one_takes_the_complete_image_whatever_its_shape():
    crop = RandomCrop((16, 16), scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    image = torch.randint(0, 256, (3, 16, 90), dtype=torch.uint8)
    for row in draws(3):
        assert torch.equal(crop(image, row), F.resize(image, [16, 16], antialias=True))


@pytest.mark.parametrize(
    ("height", "width", "ratio", "box"),
    [(1, 90, (0.2, 0.3), (0, 44, 1, 1)), (90, 1, (3.0, 4.0), (44, 0, 1, 1)), (1, 1, (3.0, 4.0), (0, 0, 1, 1))],
)
def test_a_box_has_a_pixel_also_where_its_ratio_would_leave_less(height, width, ratio, box):
    crop = RandomCrop((8, 8), scale=(0.5, 1.0), ratio=ratio)
    assert crop.box(np.zeros(CROP_DRAWS), height, width) == box
    assert crop(torch.full((3, height, width), 7, dtype=torch.uint8), np.zeros(CROP_DRAWS)).unique().tolist() == [7]
