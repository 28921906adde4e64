import math

import pytest
import torch

from progeo.losses import multi_similarity

DEFAULTS = {"alpha": 1.0, "beta": 50.0, "base": 0.0, "epsilon": 0.1}
LABELS = [0, 0, 0, 1, 1, 1, 2, 2, 3]  # the last has no positive


def naive_multi_similarity(descriptors, labels, *, alpha, beta, base, epsilon):
    units = [each / each.square().sum().sqrt() for each in descriptors]
    total = torch.zeros((), dtype=descriptors.dtype)
    for i, label in enumerate(labels):
        positives = [units[i] @ units[j] for j, other in enumerate(labels) if other == label and j != i]
        negatives = [units[i] @ units[j] for j, other in enumerate(labels) if other != label]
        if positives and negatives:
            hard_positives = [each for each in positives if each - epsilon < max(negatives)]
            hard_negatives = [each for each in negatives if each + epsilon > min(positives)]
            total = total + torch.log(1 + sum(torch.exp(-alpha * (each - base)) for each in hard_positives)) / alpha
            total = total + torch.log(1 + sum(torch.exp(beta * (each - base)) for each in hard_negatives)) / beta
    return total / len(labels)


@pytest.mark.parametrize(
    "options", [DEFAULTS, {"alpha": 2.0, "beta": 7.0, "base": 0.3, "epsilon": 0.02}, {**DEFAULTS, "epsilon": 5.0}]
)
def test_it_equals_the_definition_in_value_and_gradient(options):
    torch.manual_seed(0)
    ours = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    value = multi_similarity(ours, torch.tensor(LABELS), **options)
    expected = naive_multi_similarity(plain, LABELS, **options)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-12)


def test_it_equals_pytorch_metric_learning():
    """MultiSimilarityLoss(1, 50, 0) of the pairs of MultiSimilarityMiner(0.1), version 2.9.0."""
    rows, columns = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)
    descriptors = torch.sin(1 + 3 * rows + 7 * columns + rows * columns).requires_grad_()
    value = multi_similarity(descriptors, torch.arange(12) // 3)
    value.backward()
    assert value.item() == pytest.approx(1.9386035599727152, rel=1e-12)
    gradient = [-0.00977214090710863, 0.029476051672002773, -0.002010388991958205, -0.01533742041195897]
    assert descriptors.grad[0, :4].tolist() == pytest.approx(gradient, rel=1e-10)


def test_pairs_at_the_margin_of_the_mining_decide():
    """Cosines of the first image: 0.6 with its positive, 0.5 with a negative, 0 with another."""
    descriptors = torch.tensor([[1, 0, 0], [0.6, 0.8, 0], [0.5, 0, 0.75**0.5], [0, 0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2])

    def of_first(epsilon):
        values = [multi_similarity(descriptors * scale, labels, epsilon=epsilon).item() for scale in (1, 3)]
        assert values[0] == pytest.approx(values[1])
        return values[0]

    # The second image has the cosines 0.6 with its positive, 0.3 and 0 with negatives: mined above 0.3 and 0.6.
    assert of_first(0.09) == 0
    own = math.log1p(math.exp(-0.6)) + math.log1p(math.exp(50 * 0.5)) / 50
    assert of_first(0.11) == pytest.approx(own / 4)
    second = math.log1p(math.exp(-0.6)) + math.log1p(math.exp(50 * 0.3)) / 50
    assert of_first(0.31) == pytest.approx((own + second) / 4)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0]])
def test_a_batch_without_pairs_to_mine_costs_nothing_and_has_no_gradient(labels):
    descriptors = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = multi_similarity(descriptors, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert descriptors.grad.abs().max() == 0
