import math

import pytest
import torch

from progeo.losses import batch_hard_triplet, weighted_triplet


def naive_weighted_triplet(descriptors, labels):
    total = 0
    for i, label in enumerate(labels):
        distances = [((descriptors[i] - other).pow(2).sum().clamp(min=1e-12)).sqrt() for other in descriptors]
        positive = torch.stack([d for d, other in zip(distances, labels, strict=True) if other == label])
        negative = torch.stack([d for d, other in zip(distances, labels, strict=True) if other != label])
        pull = (positive * torch.softmax(positive, 0)).sum()
        push = (negative * torch.softmax(-negative, 0)).sum()
        total = total + torch.log1p(torch.exp(pull - push))
    return total / len(labels)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_weighted_triplet_equals_the_definition_in_value_and_gradient(labels):
    torch.manual_seed(0)
    labels = torch.tensor(labels)
    ours = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    value, expected = weighted_triplet(ours, labels), naive_weighted_triplet(plain, labels)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-7, atol=1e-9)


def naive_batch_hard_triplet(descriptors, labels, margin):
    total = 0
    for i, label in enumerate(labels):
        distances = [((descriptors[i] - other).pow(2).sum().clamp(min=1e-12)).sqrt() for other in descriptors]
        farthest = max(d for d, other in zip(distances, labels, strict=True) if other == label)
        nearest = min(d for d, other in zip(distances, labels, strict=True) if other != label)
        violation = farthest - nearest
        total = total + (torch.log1p(torch.exp(violation)) if margin is None else (violation + margin).clamp(min=0))
    return total / len(labels)


@pytest.mark.parametrize("margin", [None, 0.0, 0.7])
def test_batch_hard_triplet_equals_the_definition_in_value_and_gradient(margin):
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
    ours = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    value, expected = batch_hard_triplet(ours, labels, margin), naive_batch_hard_triplet(plain, labels, margin)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("triplet", [weighted_triplet, batch_hard_triplet])
def test_a_batch_of_one_class_has_a_finite_loss_and_gradient(triplet):
    descriptors = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = triplet(descriptors, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(descriptors.grad).all()


def test_classes_far_apart_cost_nothing():
    descriptors = torch.tensor([[0.0, 0], [0, 0], [100, 0], [100, 0]], dtype=torch.float64)
    assert weighted_triplet(descriptors, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0, abs=1e-12)
