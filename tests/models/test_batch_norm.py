"""Which statistics batch norms normalize with, and how those of one pass come about."""

import pytest
import torch
from torch import nn

from progeo.models.backbones.clips import load_clip
from progeo.models.batch_norm import batch_norm_mode, batch_statistics, running_statistics, set_running_statistics


def network():
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    for parameter in layers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layers.double().requires_grad_(False).eval()


def batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 5, 4, generator=generator, dtype=torch.float64) + size for size in sizes]


def plainly_normalized(values, weight, bias):
    """Normalized values of a batch (B, C, h, w), and its means and unbiased variances (C,), a channel at a time."""
    normalized, means, variances = torch.empty_like(values), [], []
    for channel in range(values.shape[1]):
        here = values[:, channel]
        mean = sum(here.flatten().tolist()) / here.numel()
        squares = sum((value - mean) ** 2 for value in here.flatten().tolist())
        scale = weight[channel] / (squares / here.numel() + 1e-5) ** 0.5
        normalized[:, channel] = (here - mean) * scale + bias[channel]
        means.append(mean)
        variances.append(squares / (here.numel() - 1))
    return normalized, torch.tensor(means), torch.tensor(variances)


def plain_pass(layers, images):
    """What the network gives for a batch, and the means and variances that its two batch norms see."""
    first, norm1, _, _, second, norm2 = layers
    normalized, *seen1 = plainly_normalized(first(images), norm1.weight, norm1.bias)
    out, *seen2 = plainly_normalized(second(normalized.clamp(min=0)), norm2.weight, norm2.bias)
    return out, [*seen1, *seen2]


def test_statistics_of_one_pass_are_the_means_of_those_of_its_batches():
    layers, images = network(), batches(6, 3, 4)
    layers[1].running_mean.fill_(7)  # what was there before does not matter
    layers[1].num_batches_tracked.fill_(5)
    with batch_statistics(layers, keep=True):
        for batch in images:
            layers(batch)
    seen = [plain_pass(layers, batch)[1] for batch in images]
    expected = [sum(values) / 3 for values in zip(*seen, strict=True)]
    found = running_statistics(layers)
    assert list(found) == ["1.running_mean", "1.running_var", "5.running_mean", "5.running_var"]
    torch.testing.assert_close(list(found.values()), expected, check_dtype=False)
    fixed = layers(images[0][:1])
    torch.testing.assert_close(layers(images[0])[:1], fixed)  # an image is itself again, whatever it comes with


def test_a_batch_is_normalized_with_its_own_statistics_and_those_of_the_network_stay():
    layers = network()
    before = {name: values.clone() for name, values in running_statistics(layers).items()}
    with batch_statistics(layers, keep=False):
        for batch in batches(5, 2):
            torch.testing.assert_close(layers(batch), plain_pass(layers, batch)[0])
    torch.testing.assert_close(running_statistics(layers), before, rtol=0, atol=0)
    assert not any(part.training for part in layers.modules())
    assert [layers[1].momentum, layers[5].momentum] == [0.1, 0.1]


def test_statistics_of_one_network_are_taken_over_by_another():
    first, second = network(), network()
    with batch_statistics(first, keep=True):
        first(batches(5)[0])
    assert not torch.equal(first(batches(3)[0]), second(batches(3)[0]))
    set_running_statistics(second, running_statistics(first))
    assert torch.equal(first(batches(3)[0]), second(batches(3)[0]))


@pytest.mark.parametrize(
    ("build", "modes"),
    [
        (network, ("eval", "calibrated", "batch")),
        (lambda: load_clip("tiny-resnet", "random", 64).visual, ("eval", "calibrated", "batch")),
        (lambda: load_clip("tiny-vit", "random", 64).visual, ("eval", "eval", "eval")),
        (lambda: touched("running_mean", 0.1), ("eval", "eval", "batch")),
        (lambda: touched("running_var", 0.9), ("eval", "eval", "batch")),
        (lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), ("eval", "eval", "eval")),
    ],
)
def test_modes_that_make_no_difference_to_a_network_are_eval(build, modes):
    assert tuple(batch_norm_mode(build(), wanted) for wanted in ("eval", "calibrated", "batch")) == modes


def touched(kind, value):
    """A network of which a single number has seen an image."""
    layers = network()
    getattr(layers[5], kind)[1] = value
    return layers
