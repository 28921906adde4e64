import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from progeo.models.aggregation import SALAD, build_aggregation
from progeo.models.aggregation.salad import assignments
from progeo.models.backbones.family import Traits
from progeo.models.encoder import build_encoder, plan_encoder

SIZES = {"num_clusters": 3, "cluster_dim": 2, "token_dim": 4, "hidden_dim": 6}


def published_assignments(scores, dust_bin):
    """Sinkhorn's algorithm in loops, as published: masses of 1 / (n + m), and a dustbin with a score of its own."""
    count, num_clusters = scores.shape
    rows = [[scores[j, i] for j in range(count)] for i in range(num_clusters)] + [[scores.new_tensor(dust_bin)] * count]
    masses = [1 / (count + num_clusters)] * num_clusters + [(count - num_clusters) / (count + num_clusters)]
    u, v = [scores.new_zeros(())] * (num_clusters + 1), [scores.new_zeros(())] * count
    for _ in range(3):
        for i, row in enumerate(rows):
            u[i] = math.log(masses[i]) - sum(torch.exp(row[j] + v[j]) for j in range(count)).log()
        for j in range(count):
            column = sum(torch.exp(row[j] + u[i]) for i, row in enumerate(rows))
            v[j] = math.log(1 / (count + num_clusters)) - column.log()
    return [
        [torch.exp(rows[i][j] + u[i] + v[j]) * (count + num_clusters) for i in range(num_clusters)]
        for j in range(count)
    ]


def in_loops(salad, feature_map, token, dust_bin):
    """SALAD of one image in loops; the order of values is token, then all clusters of the first value, and so on."""

    def perceptron(layers, values):
        hidden = (layers[0].weight @ values + layers[0].bias).clamp(min=0)
        return layers[-1].weight @ hidden + layers[-1].bias

    cells = [feature_map[:, y, x] for y, x in itertools.product(*map(range, feature_map.shape[1:]))]
    reduced = [perceptron(salad.cluster_features, cell) for cell in cells]
    assigned = published_assignments(torch.stack([perceptron(salad.score, cell) for cell in cells]), dust_bin)
    sums = [sum(assigned[j][i] * reduced[j] for j in range(len(cells))) for i in range(salad.num_clusters)]
    lengths = [vector.norm() for vector in sums]
    values = [vector[d] / length for d in range(len(sums[0])) for vector, length in zip(sums, lengths, strict=True)]
    token = perceptron(salad.token_features, token)
    descriptor = torch.cat([token / token.norm(), torch.stack(values)])
    return descriptor / descriptor.norm()


@pytest.mark.parametrize("dust_bin", [1.0, -4.0])
def test_salad_equals_the_published_formulation_in_loops_whatever_the_score_of_the_dustbin(dust_bin):
    torch.manual_seed(0)
    salad = SALAD(5, 7, **SIZES).double().eval()
    maps, tokens = (torch.randn(2, *size, dtype=torch.float64) for size in ((5, 2, 3), (7,)))
    results = []
    for compute in (
        salad,
        lambda maps, tokens: torch.stack([in_loops(salad, *each, dust_bin) for each in zip(maps, tokens, strict=True)]),
    ):
        inputs = [maps.clone().requires_grad_(), tokens.clone().requires_grad_()]
        descriptors = compute(*inputs)
        gradients = torch.autograd.grad(descriptors.cos().sum(), [*inputs, *salad.parameters()])
        results.append([descriptors, *gradients])
    assert results[0][0].shape == (2, 4 + 3 * 2)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_each_local_feature_and_the_dustbin_share_out_their_masses():
    """By hand: 4 local features alike for 1 cluster: the cluster has a mass of 1, a quarter from each."""
    assert torch.allclose(assignments(torch.full((1, 4, 1), 7.0)), torch.full((1, 4, 1), 0.25))
    torch.manual_seed(0)
    found = assignments(5 * torch.randn(2, 50, 6, dtype=torch.float64))
    assert (
        found.sum(dim=2) <= 1 + 1e-12
    ).all()  # the last half of an iteration makes each feature and the bin sum to 1


def test_scores_that_overflow_exponentials_give_finite_descriptors_and_gradients():
    salad = SALAD(5, 7, **SIZES).eval()
    salad.score[-1].weight.data.mul_(1e4)
    feature_map = torch.randn(2, 5, 3, 3, requires_grad=True)
    descriptors = salad(feature_map, torch.randn(2, 7))
    descriptors.cos().sum().backward()
    assert descriptors.isfinite().all() and feature_map.grad.isfinite().all()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_all_but_the_perceptrons_is_computed_in_float32_under_autocast(device, dtype):
    torch.manual_seed(0)
    salad = SALAD(64, 32, num_clusters=16).eval().to(device)
    feature_map, token = torch.randn(2, 64, 9, 9).to(device), torch.randn(2, 32).to(device)
    local_features = feature_map.flatten(2).mT
    with torch.autocast(device, dtype):
        found = salad(feature_map, token)
        rounded = [salad.cluster_features(local_features), salad.score(local_features), salad.token_features(token)]
    assert rounded[0].dtype == dtype and found.dtype == torch.float32
    reduced, scores, token = (each.float() for each in rounded)
    sums = F.normalize(reduced.mT @ assignments(scores), dim=1).flatten(1)
    assert torch.equal(found, F.normalize(torch.cat([F.normalize(token), sums], dim=1)))


def test_dropout_is_in_training_only():
    salad = SALAD(5, 7, **SIZES)
    inputs = torch.randn(2, 5, 3, 3), torch.randn(2, 7)
    assert not torch.equal(salad(*inputs), salad(*inputs))
    assert torch.equal(salad.eval()(*inputs), salad(*inputs))


def test_maps_without_more_local_features_than_clusters_are_refused():
    with pytest.raises(ValueError, match=r"more local features than its 6 clusters, .* map of 2 x 3 has 6: use larger"):
        build_aggregation("salad", Traits(5, 7, 5, 16), num_clusters=6)(torch.rand(1, 5, 2, 3), torch.rand(1, 7))
    with pytest.raises(ValueError, match="`image_size` must be at least 144 pixels a side, got 128"):
        plan_encoder("tiny-vit", "random", 128, aggregation="salad")
    assert plan_encoder("tiny-vit", "random", 144, aggregation="salad").descriptor_dim == 64 * 128 + 256
    with pytest.raises(ValueError, match="`image_size` must be at least 144 pixels a side, got 128"):
        build_encoder("tiny-vit", "random", aggregation="salad")
    encoder = build_encoder("tiny-vit", "random", 64, aggregation="salad", aggregation_options={"num_clusters": 15})
    with pytest.raises(ValueError, match="Images must be at least 64 pixels a side, got 48 x 96"):
        encoder(torch.rand(1, 3, 48, 96))


@pytest.mark.parametrize("options", [{"num_clusters": 0}, {"hidden_dim": -1}, {"dropout": 1.0}])
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`aggregation_options`: {name} of salad must be "):
        plan_encoder("tiny-vit", "random", 144, aggregation="salad", aggregation_options=options)
