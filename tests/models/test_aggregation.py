import itertools

import torch

from progeo.models.aggregation import GeM


def test_gem_head_equals_the_definition():
    torch.manual_seed(0)
    head = GeM(5, 3).double()
    head.p.data.fill_(2.5)
    feature_map = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    for descriptor, channels in zip(head(feature_map), feature_map, strict=True):
        pooled = torch.zeros(5, dtype=torch.float64)
        for c in range(5):
            total = 0.0
            for y, x in itertools.product(range(4), range(6)):
                total += max((channels[c, y, x] / channels[:, y, x].norm()).item(), 1e-6) ** 2.5
            pooled[c] = (total / 24) ** (1 / 2.5)
        expected = head.linear.weight @ pooled + head.linear.bias
        torch.testing.assert_close(descriptor, expected / expected.norm())


def test_the_power_starts_at_three_and_is_learned():
    head = GeM(4, 2)
    assert head.p.item() == 3
    head(torch.rand(1, 4, 2, 2)).sum().backward()
    assert head.p.grad.abs() > 0


def test_a_map_of_zeros_gives_finite_descriptors_and_gradients():
    head = GeM(4, 2)
    feature_map = torch.zeros(1, 4, 2, 2, requires_grad=True)
    descriptors = head(feature_map)
    descriptors.sum().backward()
    assert torch.isfinite(descriptors).all()
    assert torch.isfinite(feature_map.grad).all()
