from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional
from PIL import Image
from torchvision.transforms.v2 import functional as F

from progeo.models.options import QueryPreprocessing
from progeo.models.preprocessing import depends_on_shape, preprocess_image, preprocessed_shape, resize_image

SHAPES = [(40, 60), (60, 40), (33, 100), (64, 48), (200, 33)]
KINDS = [*get_args(QueryPreprocessing)]


def picture(height, width):
    """Brightness rises to the right, green downwards: no two places look alike."""
    rows, columns = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)[None]
    return torch.stack([columns.expand(height, width), rows.expand(height, width), torch.zeros(height, width)]).byte()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", SHAPES)
def test_the_shape_that_is_foretold_is_the_shape_that_comes(kind, own):
    image = preprocess_image(picture(*own), kind, (48, 64))
    count, height, width = preprocessed_shape(kind, (48, 64), own if depends_on_shape(kind) else None)
    assert image.shape == ((3, height, width) if count == 1 else (count, 3, height, width))
    assert image.dtype == torch.uint8


@pytest.mark.parametrize(
    ("kind", "own", "shape"),
    [
        ("hard_resize", (40, 60), (1, 48, 64)),
        ("single_query", (40, 60), (1, 48, 72)),  # the shorter of 48 and 64, aspect kept
        ("single_query", (60, 40), (1, 72, 48)),
        ("larger_query", (40, 60), (1, 64, 96)),  # the longer of 48 and 64, for the shorter side
        ("larger_query", (60, 40), (1, 96, 64)),
        ("central_crop", (40, 60), (1, 48, 64)),
        ("five_crops", (40, 60), (5, 48, 48)),
        ("native", (40, 60), (1, 40, 60)),
    ],
)
def test_each_kind_has_its_shape(kind, own, shape):
    assert preprocessed_shape(kind, (48, 64), own) == shape


@pytest.mark.parametrize(("kind", "side"), [("single_query", 48), ("larger_query", 64)])
def test_a_query_with_its_aspect_is_resized_as_torchvision_resizes_a_shorter_side(kind, side):
    image = picture(40, 60)
    assert torch.equal(preprocess_image(image, kind, (48, 64)), F.resize(image, [side], antialias=True))


PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CROPS = {
    "hard_resize": ((48, 64), lambda image: image),
    "single_query": ((48, 72), lambda image: image),
    "larger_query": ((64, 96), lambda image: image),
    "central_crop": ((48, 72), lambda image: image[:, :, 4:68]),
    **dict.fromkeys(
        ("five_crops", "nearest_crop", "maj_voting"),
        (
            (48, 72),
            lambda image: torch.stack([image[:, :, left : left + 48] for left in (0, 24, 0, 24, 12)]),
        ),
    ),
}


def noise(height, width):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8))


def by_pillow(image, size, resize):
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], PILLOW[resize])
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("resize", PILLOW)
@pytest.mark.parametrize("kind", CROPS)
def test_each_kind_resizes_as_pillow_does(kind, resize):
    for own in ((80, 120), (20, 30)):
        image, (size, crop) = noise(*own), CROPS[kind]
        found = preprocess_image(image, kind, (48, 64), resize).int()
        assert (found - crop(by_pillow(image, size, resize)).int()).abs().max() <= 2  # of 256 gray levels


@pytest.mark.parametrize("resize", PILLOW)
def test_floats_are_resized_as_torch_does_and_stay_between_0_and_1(resize):
    images = noise(60, 40)[None] / 255
    resized = torch.nn.functional.interpolate(images, (90, 31), mode=resize, antialias=True)
    assert (resized.min() < 0) == (resized.max() > 1) == (resize == "bicubic")
    torch.testing.assert_close(resize_image(images, (90, 31), resize), resized.clamp(0, 1), rtol=0, atol=1e-6)


def test_a_central_crop_keeps_the_aspect_and_loses_both_ends_alike():
    image = preprocess_image(picture(48, 128), "central_crop", (48, 64)).float()
    assert image[0, 0, 0] == pytest.approx(255 * 32 / 127, abs=1)
    assert image[0, 0, -1] == pytest.approx(255 * 95 / 127, abs=1)
    assert (image[1, 0].max(), image[1, -1].min()) == (0, 255)


def test_five_crops_are_the_corners_and_the_middle():
    crops = preprocess_image(picture(48, 96), "five_crops", (48, 64))
    left, right = crops[:, 0, 0, 0].tolist(), crops[:, 0, 0, -1].tolist()
    assert left == pytest.approx([0, 128, 0, 128, 64], abs=2)
    assert right == pytest.approx([126, 255, 126, 255, 190], abs=2)


@pytest.mark.parametrize(
    ("kind", "own", "size"),
    [
        ("native", (8192, 8193), (224, 224)),
        ("single_query", (2000, 40), (1200, 1200)),
        ("larger_query", (40, 2000), (32, 1200)),
        ("central_crop", (40, 2000), (1200, 1200)),
        ("five_crops", (40, 2000), (1200, 1200)),
    ],
)
def test_an_image_that_would_be_too_large_for_a_network_is_refused_before_it_is_resized(kind, own, size):
    image = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, *own)
    with pytest.raises(ValueError, match=r"pixels, as a network would get it, are more than 67,108,864"):
        preprocess_image(image, kind, size)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("hard_resize", "native")])
@pytest.mark.parametrize("own", [(1, 65_000), (65_000, 1), (1, 51), (102, 2)])
def test_an_image_that_is_too_thin_to_keep_its_aspect_is_refused(kind, own):
    thin = torch.zeros(3, *own, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=rf"{own[0]} x {own[1]} pixels are too thin for {kind}: one side may be 50 times"
    ):
        preprocess_image(thin, kind, (224, 224))
    assert preprocess_image(thin, "hard_resize", (224, 224)).shape == (3, 224, 224)
    assert preprocess_image(torch.zeros(3, 2, 100, dtype=torch.uint8), kind, (8, 8)).shape[-2] == 8
