import math

import pytest
import torch
import torch.nn.functional as F

from progeo.losses import hardest_regions, region_similarity, sare, triplet_margin


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def assert_equal_with_gradients(ours, naive, *inputs):
    """Two functions have equal values and gradients with respect to all inputs."""
    plain = [each.detach().clone().requires_grad_() for each in inputs]
    value, expected = ours(*inputs), naive(*plain)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    gradients, wanted = torch.autograd.grad(value, inputs), torch.autograd.grad(expected, plain)
    for found, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-8, atol=1e-12)


def naive_triplet(anchors, positives, negatives, margin):
    losses = []
    for anchor, positive, own in zip(anchors, positives, negatives, strict=True):
        for negative in own:
            near, far = (((anchor - other + 1e-6) ** 2).sum().sqrt() for other in (positive, negative))
            losses.append((near - far + margin).clamp(min=0))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [0.1, math.sqrt(0.1)])
def test_triplet_margin_equals_the_definition_in_value_and_gradient(margin):
    tuples = unit(3, 8), unit(3, 8, seed=1), unit(3, 4, 8, seed=2)
    assert_equal_with_gradients(
        lambda *given: triplet_margin(*given, margin=margin), lambda *given: naive_triplet(*given, margin), *tuples
    )


def naive_sare(anchors, positives, negatives, joint, temperature):
    def similarity(a, b):
        return -((a - b) ** 2).sum() if temperature is None else (a * b).sum() / temperature

    losses = []
    for anchor, positive, own in zip(anchors, positives, negatives, strict=True):
        hit, misses = similarity(anchor, positive).exp(), [similarity(anchor, each).exp() for each in own]
        for group in [misses] if joint else [[each] for each in misses]:
            losses.append(-(hit / (hit + sum(group))).log())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
@pytest.mark.parametrize("joint", [False, True])
def test_sare_equals_the_definition_in_value_and_gradient(joint, temperature):
    tuples = unit(3, 8), unit(3, 8, seed=1), unit(3, 4, 8, seed=2)
    assert_equal_with_gradients(
        lambda *given: sare(*given, joint=joint, temperature=temperature),
        lambda *given: naive_sare(*given, joint, temperature),
        *tuples,
    )


def test_sare_of_equal_descriptors_counts_the_candidates():
    same = torch.ones(1, 5)
    for joint, candidates in ((False, 2), (True, 4)):
        loss = sare(same, same, same[:, None].repeat(1, 3, 1), joint=joint, temperature=0.07)
        assert loss.item() == pytest.approx(math.log(candidates))


def test_the_hardest_region_of_each_negative_is_selected_and_alone_gets_the_gradient():
    anchor, regions = unit(2, 6), unit(2, 3, 5, 6, seed=1)
    selected = hardest_regions(anchor, regions)
    selected.sum().backward()
    assert selected.shape == (2, 3, 6)
    for b in range(2):
        for m in range(3):
            best = max(range(5), key=lambda r, b=b, m=m: (anchor[b] @ regions[b, m, r]).item())
            assert torch.equal(selected[b, m], regions[b, m, best])
            assert regions.grad[b, m].sum(dim=1).tolist() == [6.0 * (r == best) for r in range(5)]
    assert anchor.grad is None


def naive_region_similarity(scores, targets, temperature, target_temperature):
    losses = []
    for own, target in zip(scores, targets, strict=True):
        pairs = [(p, r) for p in range(own.shape[0]) for r in range(own.shape[1]) if target[p, r] > -math.inf]
        if not pairs:
            continue
        shares = [(own[pair] / temperature).exp() for pair in pairs]
        labels = [(target[pair] / target_temperature).exp() for pair in pairs]
        losses.append(-sum(b / sum(labels) * (a / sum(shares)).log() for a, b in zip(shares, labels, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("target_temperature", [0.07, 0.05])
@pytest.mark.parametrize("absent", [[], [(0, 3)], [(0, 2), (0, 3), (1, slice(None))]])
def test_region_similarity_equals_the_definition_over_the_pairs_that_exist(absent, target_temperature):
    queries, positives, targets = unit(3, 8), unit(3, 4, 7, 8, seed=1), unit(3, 4, 7, 8, seed=2)
    scores, target_scores = (torch.einsum("bd,bprd->bpr", queries, each).detach() for each in (positives, targets))
    for where in absent:
        scores[where] = target_scores[where] = -math.inf
    assert_equal_with_gradients(
        lambda given: region_similarity(given, target_scores, temperature=0.07, target_temperature=target_temperature),
        lambda given: naive_region_similarity(given, target_scores, 0.07, target_temperature),
        scores.requires_grad_(),
    )


def test_soft_labels_get_no_gradient():
    scores, targets = torch.randn(2, 3, 7, requires_grad=True), torch.randn(2, 3, 7, requires_grad=True)
    region_similarity(scores, targets, temperature=0.07, target_temperature=0.06).backward()
    assert targets.grad is None
    assert scores.grad.abs().sum() > 0


def test_queries_without_any_positive_cost_nothing():
    scores = torch.full((2, 3, 7), -math.inf, requires_grad=True)
    loss = region_similarity(scores, scores.detach(), temperature=0.07, target_temperature=0.05)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))
