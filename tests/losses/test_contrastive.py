"""Losses against naive re-derivations in plain loops, float64, gradients included."""

import math

import pytest
import torch

from progeo.losses import image_text_cross_entropy, supcon, supervised_contrastive


def naive_supervised_contrastive(anchors, others, anchor_labels, other_labels, temperature):
    total = 0
    for anchor, label in zip(anchors, anchor_labels, strict=True):
        logits = [(anchor * other).sum() / temperature for other in others]
        log_sum = torch.stack(logits).logsumexp(0)
        positive = [logit - log_sum for logit, other in zip(logits, other_labels, strict=True) if other == label]
        total = total - sum(positive) / len(positive)
    return total / len(anchors)


def naive_cross_entropy(descriptors, text_features, labels, smoothing):
    total = 0
    for descriptor, label in zip(descriptors, labels, strict=True):
        logits = torch.stack([(descriptor * text).sum() for text in text_features])
        log_probabilities = logits - logits.logsumexp(0)
        for index, log_probability in enumerate(log_probabilities):
            target = smoothing / len(text_features) + (1 - smoothing) * int(index == label)
            total = total - target * log_probability
    return total / len(descriptors)


def value_and_gradients(function, *inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = function(*leaves)
    return value, torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_supervised_contrastive_equals_the_definition_in_value_and_gradient(temperature):
    torch.manual_seed(0)
    anchors, others = torch.randn(6, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    anchor_labels = torch.tensor([0, 0, 1, 2, 2, 3])
    other_labels = torch.tensor([0, 1, 1, 2, 3, 3, 3, 0, 7])  # 7 is nobody's positive
    value, gradients = value_and_gradients(
        lambda a, o: supervised_contrastive(a, o, anchor_labels, other_labels, temperature), anchors, others
    )
    expected, expected_gradients = value_and_gradients(
        lambda a, o: naive_supervised_contrastive(a, o, anchor_labels, other_labels, temperature), anchors, others
    )
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)


def test_supervised_contrastive_of_equal_logits_is_the_log_of_their_number():
    ones = torch.ones(4, 3, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    assert supervised_contrastive(ones, ones, labels, labels).item() == pytest.approx(math.log(4))


def test_supervised_contrastive_stays_finite_for_large_features():
    features = 1e4 * torch.eye(3, dtype=torch.float64)
    labels = torch.arange(3)
    assert supervised_contrastive(features, features, labels, labels).item() == pytest.approx(0)


def naive_supcon(descriptors, labels, temperature):
    units = [each / each.square().sum().sqrt() for each in descriptors]
    of_anchors = []
    for i, label in enumerate(labels):
        logits = {j: units[i] @ other / temperature for j, other in enumerate(units) if j != i}
        log_sum = torch.stack(list(logits.values())).logsumexp(0)
        positive = [logit - log_sum for j, logit in logits.items() if labels[j] == label]
        if positive:
            of_anchors.append(-sum(positive) / len(positive))
    return sum(of_anchors) / len(of_anchors)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_supcon_equals_the_definition_in_value_and_gradient(temperature):
    descriptors = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3])  # 1 is alone
    (value, gradients), (expected, expected_gradients) = (
        value_and_gradients(lambda each, own=own: own(each, labels, temperature=temperature), descriptors)
        for own in (supcon, naive_supcon)
    )
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)


def test_supcon_equals_pytorch_metric_learning():
    """SupConLoss(0.1), version 2.9.0."""
    rows, columns = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)
    descriptors = torch.sin(1 + 3 * rows + 7 * columns + rows * columns)
    value, (gradient,) = value_and_gradients(
        lambda each: supcon(each, torch.arange(12) // 3, temperature=0.1), descriptors
    )
    assert value.item() == pytest.approx(7.742091401788325, rel=1e-12)
    assert gradient[0, :3].tolist() == pytest.approx([-0.107668532487929, 0.455216115437107, -0.039170582020299])


@pytest.mark.parametrize("num_images", [1, 3])
def test_supcon_without_positives_costs_nothing_and_has_no_gradient(num_images):
    value, (gradient,) = value_and_gradients(
        lambda each: supcon(each, torch.arange(num_images), temperature=0.1), torch.eye(3)[:num_images] + 1
    )
    assert value.item() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_image_text_cross_entropy_equals_the_definition_in_value_and_gradient(smoothing):
    torch.manual_seed(0)
    descriptors, texts = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    labels = torch.tensor([0, 6, 3, 3, 1])
    value, gradients = value_and_gradients(
        lambda d, t: image_text_cross_entropy(d, t, labels, smoothing), descriptors, texts
    )
    expected, expected_gradients = value_and_gradients(
        lambda d, t: naive_cross_entropy(d, t, labels, smoothing), descriptors, texts
    )
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)


def test_label_smoothing_defaults_to_a_tenth():
    torch.manual_seed(0)
    inputs = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 3])
    assert image_text_cross_entropy(*inputs) == image_text_cross_entropy(*inputs, label_smoothing=0.1)
