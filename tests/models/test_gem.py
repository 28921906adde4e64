"""GeM without a linear layer, alone and beside the token, against their definitions."""

import itertools

import torch

from progeo.models.aggregation import GeMPool, TokenGeM


def naive_gem(channels, power):
    """(mean of x^p)^(1/p) of each channel of one map (C, h, w)."""
    _, height, width = channels.shape
    pooled = []
    for channel in channels:
        values = [channel[y, x].clamp(min=1e-6) ** power for y, x in itertools.product(range(height), range(width))]
        pooled.append((sum(values) / len(values)) ** (1 / power))
    return torch.stack(pooled)


def check_with_gradients(head, expected, *features):
    found = head(*features)
    torch.testing.assert_close(found, expected)
    inputs = [*features, *head.parameters()]
    gradients, wanted = (torch.autograd.grad(each.cos().sum(), inputs) for each in (found, expected))
    for gradient, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, each)


def test_gem_pooling_equals_the_definition_with_its_gradients():
    torch.manual_seed(0)
    head = GeMPool().double()
    head.p.data.fill_(2.5)
    feature_map = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    pooled = torch.stack([naive_gem(each, head.p[0]) for each in feature_map])
    check_with_gradients(head, pooled / pooled.norm(dim=1, keepdim=True), feature_map)


def test_the_token_and_gem_weigh_the_same():
    torch.manual_seed(0)
    head = TokenGeM().double()
    head.p.data.fill_(2.5)
    feature_map = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    token = 40 * torch.randn(2, 5, dtype=torch.float64)
    token.requires_grad_()
    pooled = torch.stack([naive_gem(each / each.norm(dim=0), head.p[0]) for each in feature_map])
    halves = [each / each.norm(dim=1, keepdim=True) / 2**0.5 for each in (token, pooled)]
    check_with_gradients(head, torch.cat(halves, dim=1), feature_map, token)
