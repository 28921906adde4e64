"""Losses against naive re-derivations in plain loops, float64, gradients included."""

import math

import pytest
import torch

from progeo.losses import image_text_cross_entropy, supervised_contrastive


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
