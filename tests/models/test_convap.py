"""Conv-AP against its definition, and against PyTorch's pooling."""

import pytest
import torch
import torch.nn.functional as F

from progeo.models.aggregation import ConvAP, build_aggregation
from progeo.models.backbones.family import Traits

SIZES = [((4, 6), (2, 2)), ((5, 7), (2, 3)), ((1, 3), (2, 2)), ((7, 7), (3, 4))]
"""Of maps and of their parts, which divide them or not."""


@pytest.mark.parametrize(("size", "parts"), SIZES)
def test_convap_equals_the_convolution_before_the_means_with_its_gradients(size, parts):
    torch.manual_seed(0)
    head = ConvAP(5, 4, *parts).double()
    feature_map = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    projected = torch.stack(
        [
            torch.stack(
                [head.channel_pool.weight[:, :, 0, 0] @ local + head.channel_pool.bias for local in image.flatten(1).T]
            )
            for image in feature_map
        ]
    )
    pooled = F.adaptive_avg_pool2d(projected.mT.unflatten(2, size), parts).flatten(1)
    expected = pooled / pooled.norm(dim=1, keepdim=True)
    found = head(feature_map)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [feature_map, *head.parameters()]
    gradients, wanted = (torch.autograd.grad(each.cos().sum(), inputs) for each in (found, expected))
    for gradient, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, each, rtol=0, atol=1e-12)


def test_options_below_one_are_refused():
    with pytest.raises(ValueError, match="`aggregation_options`: rows of convap must be at least 1, got 0"):
        build_aggregation("convap", Traits(5, None, 5, 16), rows=0)
