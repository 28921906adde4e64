"""The augmentation against torchvision's own operations and distributions."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from progeo.data.augmentation import draw_changes, jitter_colors
from progeo.data.options import Augmentation

NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count, seed=1, **settings):
    return draw_changes(Augmentation(**{**NOTHING, **settings}), count, generator(seed))


@pytest.mark.parametrize(
    ("name", "strength", "adjust"),
    [
        ("brightness", 0.7, F.adjust_brightness),
        ("contrast", 0.7, F.adjust_contrast),
        ("saturation", 0.7, F.adjust_saturation),
        ("hue", 0.5, F.adjust_hue),
    ],
)
def test_each_jitter_equals_torchvisions(name, strength, adjust):
    images, changes = torch.rand(4, 3, 6, 7, generator=generator()), drawn(4, **{name: strength})
    amounts = changes.turns if name == "hue" else changes.shares[:, tuple(NOTHING).index(name)]
    assert len(set(amounts.tolist())) == 4  # each image has its own
    expected = [adjust(image, amount) for image, amount in zip(images, amounts.tolist(), strict=True)]
    torch.testing.assert_close(jitter_colors(images, changes), torch.stack(expected), atol=1e-5, rtol=0)


def test_the_four_steps_come_in_a_random_order_for_each_image():
    images = torch.rand(1, 3, 5, 5, generator=generator()).expand(200, -1, -1, -1)
    changes = drawn(200, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    amounts = [*changes.shares.T, changes.turns]
    assert all(amount.min() >= 0.5 and amount.max() <= 1.5 and amount.std() > 0.25 for amount in amounts[:3])
    assert changes.turns.abs().max() <= 0.2
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for row, jittered in enumerate(jitter_colors(images, changes)):
        expected = images[row]
        for index in changes.order[row].tolist():
            expected = adjust[index](expected, amounts[index][row].item())
        torch.testing.assert_close(jittered, expected, atol=1e-5, rtol=0)
    assert len({tuple(row) for row in changes.order.tolist()}) == 24  # all orders occur


def test_hues_turn_as_torchvisions_also_where_channels_are_equal_or_at_their_ends():
    levels = torch.tensor([0.0, 0.3, 1.0])
    colors = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]  # grays, pure colors, every tie
    images, changes = colors.expand(500, -1, -1, -1), drawn(500, hue=0.5)
    turned = zip(images, changes.turns.tolist(), strict=True)
    expected = torch.stack([F.adjust_hue(image, turn) for image, turn in turned])
    torch.testing.assert_close(jitter_colors(images, changes), expected, atol=2e-6, rtol=0)


def test_pixels_and_floats_are_jittered_alike_and_left_as_they_were():
    pixels = torch.randint(0, 256, (8, 3, 5, 6), dtype=torch.uint8, generator=generator())
    before, floats = pixels.clone(), pixels.float() / 255
    changes = drawn(8, brightness=0.7, contrast=0.7, saturation=0.7, hue=0.5)
    torch.testing.assert_close(jitter_colors(pixels, changes), jitter_colors(floats, changes))
    assert torch.equal(pixels, before)
    assert torch.equal(floats, before.float() / 255)


def test_the_same_seed_gives_the_same_augmentation_and_another_seed_another():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    first, again, other = (draw_changes(Augmentation(), 4, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.crops, other.crops)
    jittered = jitter_colors(images, first)
    assert not torch.equal(jittered, jitter_colors(images, other))
    assert jittered.shape == images.shape
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_no_strength_leaves_the_pixels_alone():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(jitter_colors(images, drawn(4)), images.float() / 255)


def test_a_part_of_a_batch_is_augmented_as_it_is_within_the_whole():
    images = torch.randint(0, 256, (6, 3, 16, 24), dtype=torch.uint8)
    changes = draw_changes(Augmentation(), 6, generator())
    whole = jitter_colors(images, changes)
    for part in (slice(0, 2), slice(2, 6)):
        assert torch.equal(jitter_colors(images[part], changes.of(part)), whole[part])
        assert torch.equal(changes.of(part).crops, changes.crops[part])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"brightness": 1.5}, "`brightness` must be from 0 to 1, got 1.5"),
        ({"hue": 0.7}, "`hue` must be from 0 to 0.5, got 0.7"),
        ({"crop_scale": (0.8, 0.5)}, "`crop_scale` must rise"),
        ({"crop_ratio": (0.0, 1.0)}, "`crop_ratio` must rise"),
    ],
)
def test_strengths_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**changes)
