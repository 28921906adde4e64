"""The augmentation against torchvision's own operations and distributions."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import InterpolationMode, RandAugment
from torchvision.transforms.v2 import functional as F

from progeo.data.augmentation import Changes, _jittered_batch, build_crop, color_plan, draw_changes, jitter_colors
from progeo.data.options import Augmentation

NOTHING = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

# As on a CPU, one image after the other, and as on a GPU, all at once.
ways = pytest.mark.parametrize("jitter", [jitter_colors, _jittered_batch], ids=["images", "batch"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count, seed=1, **settings):
    return draw_changes(Augmentation(**{**NOTHING, **settings}), count, generator(seed))


class Operations(TorchDispatchMode):
    """The names of the operations, views apart."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.names.append(str(function))
        return result


def operations(images, plan):
    with Operations() as mode:
        _jittered_batch(images, plan)
    return mode.names


def test_a_seed_draws_the_numbers_that_it_has_always_drawn():
    changes = draw_changes(Augmentation(), 2, generator(7))
    assert changes.shares[0].tolist() == pytest.approx([1.0488917, 1.2228965, 0.6258662], abs=1e-6)
    assert changes.shares[1].tolist() == pytest.approx([0.5783245, 1.2196465, 0.8950860], abs=1e-6)
    assert changes.turns.tolist() == pytest.approx([-0.2929140, 0.1297364], abs=1e-6)
    assert changes.order.tolist() == [[0, 3, 1, 2], [1, 0, 3, 2]]
    assert changes.crops[:, 0].tolist() == pytest.approx([0.7630434112, 0.5309402860], abs=1e-9)


def test_operations_of_rand_augment_are_torchvisions_and_depend_on_the_numbers_of_the_image_alone():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=generator())
    how = {"crop_scale": (1.0, 1.0), "rand_augment": 3, "rand_augment_magnitude": 15}
    crop, plain = (build_crop(Augmentation(**each), (32, 32)) for each in (how, {"crop_scale": (1.0, 1.0)}))
    draws = draw_changes(Augmentation(**how), 20, generator()).crops.numpy()
    assert np.array_equal(draws, draw_changes(Augmentation(), 20, generator()).crops.numpy())
    before = torch.get_rng_state()
    first, again = ([crop(image, each) for each in draws] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert len({each.numpy().tobytes() for each in first}) > 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draws[4, 0] * 2**53))
        expected = RandAugment(3, 15, interpolation=InterpolationMode.BILINEAR)(plain(image, draws[4]))
    assert torch.equal(first[4], expected)


@pytest.mark.parametrize(("name", "value"), [("rand_augment", -1), ("rand_augment_magnitude", 31)])
def test_numbers_of_rand_augment_that_cannot_be_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"^`{name}` must be .*, got {value}"):
        Augmentation(**{name: value})


@ways
@pytest.mark.parametrize(
    ("name", "strength", "adjust"),
    [(name, 0.5 if name == "hue" else 0.7, adjust) for name, adjust in zip(NOTHING, ADJUST, strict=True)],
)
def test_each_jitter_equals_torchvisions(jitter, name, strength, adjust):
    images, changes = torch.rand(4, 3, 6, 7, generator=generator()), drawn(4, **{name: strength})
    amounts = changes.turns if name == "hue" else changes.shares[:, tuple(NOTHING).index(name)]
    assert len(set(amounts.tolist())) == 4  # each image has its own
    expected = [adjust(image, amount) for image, amount in zip(images, amounts.tolist(), strict=True)]
    torch.testing.assert_close(jitter(images, color_plan(changes)), torch.stack(expected), atol=1e-5, rtol=0)


@ways
@pytest.mark.parametrize("amounts", [(1.6, 0.4, 1.5, 0.3), (0.4, 1.7, 0.2, -0.4), (1.3, 1.0, 1.6, 0.0)])
def test_every_order_of_operations_gives_what_torchvision_gives_one_after_the_other(jitter, amounts):
    orders = list(permutations(range(4)))
    image = torch.rand(3, 5, 6, generator=generator())
    shares, turns = torch.tensor([amounts[:3]] * 24), torch.tensor([amounts[3]] * 24)
    plan = color_plan(Changes(shares, turns, torch.tensor(orders), torch.empty(24, 0)))
    for order, jittered in zip(orders, jitter(image.expand(24, -1, -1, -1), plan), strict=True):
        expected = image
        for index in order:
            expected = ADJUST[index](expected, amounts[index])
        torch.testing.assert_close(jittered, expected, atol=1e-5, rtol=0)


@ways
def test_the_four_steps_come_in_a_random_order_for_each_image(jitter):
    images = torch.rand(1, 3, 5, 5, generator=generator()).expand(200, -1, -1, -1)
    changes = drawn(200, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2)
    amounts = [*changes.shares.T, changes.turns]
    assert all(amount.min() >= 0.5 and amount.max() <= 1.5 and amount.std() > 0.25 for amount in amounts[:3])
    assert changes.turns.abs().max() <= 0.2
    for row, jittered in enumerate(jitter(images, color_plan(changes))):
        expected = images[row]
        for index in changes.order[row].tolist():
            expected = ADJUST[index](expected, amounts[index][row].item())
        torch.testing.assert_close(jittered, expected, atol=1e-5, rtol=0)
    assert len({tuple(row) for row in changes.order.tolist()}) == 24  # all orders occur


@ways
def test_hues_turn_as_torchvisions_also_where_channels_are_equal_or_at_their_ends(jitter):
    levels = torch.tensor([0.0, 0.3, 1.0])
    colors = torch.cartesian_prod(levels, levels, levels).T[None, :, :, None]  # grays, pure colors, every tie
    images, changes = colors.expand(500, -1, -1, -1), drawn(500, hue=0.5)
    turned = zip(images, changes.turns.tolist(), strict=True)
    expected = torch.stack([F.adjust_hue(image, turn) for image, turn in turned])
    torch.testing.assert_close(jitter(images, color_plan(changes)), expected, atol=2e-6, rtol=0)


@ways
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pixels_and_floats_are_jittered_alike_and_left_as_they_were_also_in_memory(jitter, layout):
    pixels = torch.randint(0, 256, (8, 3, 5, 6), dtype=torch.uint8, generator=generator())
    pixels = pixels.contiguous(memory_format=layout)
    before, floats = pixels.clone(), pixels.float() / 255
    plan = color_plan(drawn(8, brightness=0.7, contrast=0.7, saturation=0.7, hue=0.5))
    jittered = jitter(pixels, plan)
    torch.testing.assert_close(jittered, jitter(floats, plan))
    assert jittered.is_contiguous(memory_format=layout)
    assert torch.equal(pixels, before)
    assert torch.equal(floats, before.float() / 255)


def test_the_same_seed_gives_the_same_augmentation_and_another_seed_another():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    first, again, other = (draw_changes(Augmentation(), 4, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.crops, other.crops)
    jittered = jitter_colors(images, color_plan(first))
    assert not torch.equal(jittered, jitter_colors(images, color_plan(other)))
    assert jittered.shape == images.shape
    assert jittered.min() >= 0
    assert jittered.max() <= 1


@ways
def test_no_strength_leaves_the_pixels_alone_at_the_cost_of_making_floats_of_them(jitter):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    plan = color_plan(drawn(4))
    assert torch.equal(jitter(images, plan), images.float() / 255)
    assert operations(images, plan) == ["aten.div.Tensor"]


@ways
def test_an_operation_of_no_amount_leaves_other_images_exactly_as_they_are(jitter):
    images = torch.rand(2, 3, 8, 8, generator=generator())
    order = torch.arange(4).expand(2, -1)
    plan = color_plan(Changes(torch.tensor([[1.5, 0.5, 1.5], [1, 1, 1]]), torch.zeros(2), order, torch.empty(2, 0)))
    assert torch.equal(jitter(images, plan)[1], images[1])


@pytest.mark.parametrize(
    ("strengths", "count"),
    [
        ({"hue": 0.5}, 17),
        ({"brightness": 0.7}, 22),
        ({"brightness": 0.7, "contrast": 0.7, "saturation": 0.7}, 22),
        ({"brightness": 0.7, "contrast": 0.7, "saturation": 0.7, "hue": 0.5}, 59),
    ],
)
@pytest.mark.parametrize("num_images", [2, 9])
def test_a_device_runs_as_many_operations_for_any_batch_and_none_that_waits(strengths, count, num_images):
    images = torch.randint(0, 256, (num_images, 3, 4, 5), dtype=torch.uint8)
    names = operations(images, color_plan(drawn(num_images, **strengths)))
    assert len(names) == count
    waiting, copying = ("nonzero.default", "_local_scalar_dense.default"), ("_to_copy.default", "lift_fresh.default")
    assert not {f"aten.{name}" for name in (*waiting, *copying)} & set(names)


def test_finishing_each_image_gives_what_finishing_the_batch_gives():
    images = torch.randint(0, 256, (3, 3, 8, 9), dtype=torch.uint8, generator=generator())
    plan, mean = color_plan(draw_changes(Augmentation(), 3, generator())), torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    finished = jitter_colors(images, plan, lambda floats: (floats - mean) / 0.2)
    assert torch.equal(finished, (jitter_colors(images, plan) - mean) / 0.2)


@ways
def test_a_part_of_a_batch_is_augmented_as_it_is_within_the_whole(jitter):
    images = torch.randint(0, 256, (6, 3, 16, 24), dtype=torch.uint8)
    changes = draw_changes(Augmentation(), 6, generator())
    whole = jitter(images, color_plan(changes))
    for part in (slice(0, 2), slice(2, 6)):
        assert torch.equal(jitter(images[part], color_plan(changes.of(part))), whole[part])
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
