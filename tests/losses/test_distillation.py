import math

import pytest
import torch
import torch.nn.functional as F

from progeo.losses import attention_maps, cosine_distillation, gram_distillation


def feature_map(seed=0, batch=4):
    return torch.randn(batch, 6, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published_attention(values):
    """Grad-CAM of the largest softmax probability of the channels' means, by an inner backward pass."""
    zero = values.new_zeros(())
    activations = torch.maximum(values, zero)
    inputs = activations.detach().requires_grad_()
    best = inputs.mean(dim=(2, 3)).softmax(dim=1).max(dim=1).values
    (gradient,) = torch.autograd.grad(best.sum(), inputs)
    attention = torch.maximum((activations * gradient.mean(dim=(2, 3), keepdim=True)).mean(dim=1), zero)
    return torch.stack([each.flatten() / each.max() for each in attention])


@pytest.mark.parametrize("lowest", [-100, 0])
def test_attention_equals_the_inner_backward_in_value_and_gradient(lowest):
    values = feature_map().clamp(min=lowest).requires_grad_()
    plain = values.detach().clone().requires_grad_()
    found, expected = attention_maps(values), published_attention(plain)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.max(dim=1).values, torch.ones(4, dtype=torch.float64))
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(values.grad, plain.grad, rtol=1e-8, atol=1e-12)


def test_a_channel_far_ahead_of_all_others_gives_the_same_map_as_in_double_precision():
    values = feature_map()
    values[:, 2] += 25  # its probability rounds to 1 in float32
    torch.testing.assert_close(attention_maps(values.float()).double(), published_attention(values), rtol=0, atol=1e-5)


def test_only_the_strongest_channel_has_a_positive_weight():
    values = torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    values[0, 0, 0], values[0, 1, 0] = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    e = [math.exp(mean) for mean in (4 / 3, 1, 0)]
    weights = [(c == 0) - value / sum(e) for c, value in enumerate(e)]
    expected = [3 * weights[0], weights[0], max(3 * weights[1], 0)]
    torch.testing.assert_close(
        attention_maps(values)[0], torch.tensor(expected, dtype=torch.float64) / expected[0], rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("values", [-torch.ones(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)])
def test_a_map_that_is_nowhere_positive_gives_zeros_and_no_gradient(values):
    values = values.requires_grad_()
    attention = attention_maps(values)
    assert torch.equal(attention, torch.zeros(2, 9))
    assert not attention.signbit().any()
    loss = gram_distillation(attention, torch.rand(2, 9))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.equal(values.grad, torch.zeros_like(values))


def naive_gram(student, teacher):
    def similarities(rows):
        products = [[(a.flatten() * b.flatten()).sum() for b in rows] for a in rows]
        return [[value / sum(each**2 for each in row) ** 0.5 for value in row] for row in products]

    ours, theirs = similarities(student), similarities(teacher)
    n = len(student)
    return sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def test_gram_distillation_equals_the_definition_for_other_dimensions_of_the_teacher():
    student = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    plain = student.detach().clone().requires_grad_()
    teacher = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    loss, expected = gram_distillation(student, teacher), naive_gram(plain, teacher.detach())
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(student.grad, plain.grad, rtol=1e-8, atol=1e-12)
    assert teacher.grad is None


def test_the_same_similarities_cost_nothing():
    descriptors = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert gram_distillation(descriptors @ turn, descriptors).item() == pytest.approx(0, abs=1e-20)


def test_cosine_distillation_is_one_minus_the_mean_cosine():
    descriptors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]], requires_grad=True)
    loss = cosine_distillation(descriptors, targets)
    loss.backward()
    assert loss.item() == pytest.approx(1 - (1 + 0 + math.sqrt(0.5)) / 3)
    assert descriptors.grad.abs().sum() > 0
    assert targets.grad is None
