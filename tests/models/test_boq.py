"""Bag-of-Queries against its definition."""

import pytest
import torch
import torch.nn.functional as F

from progeo.models.aggregation import BoQ, build_aggregation
from progeo.models.backbones.family import Traits

TRAITS = Traits(channels=5, token_dim=None, features_dim=5, stride=16)


def linear(layer, vector):
    return layer.weight @ vector + layer.bias


def attended(attention, queries, tokens):
    """The output of attention for each query, head by head: lists of vectors."""
    size = attention.embed_dim // attention.num_heads
    outputs = []
    for query in queries:
        answer = []
        for head in range(attention.num_heads):
            rows = slice(head * size, (head + 1) * size)
            weight, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
            q = weight[0][rows] @ query + bias[0][rows]
            keys = [weight[1][rows] @ token + bias[1][rows] for token in tokens]
            values = [weight[2][rows] @ token + bias[2][rows] for token in tokens]
            shares = torch.stack([(q @ key) / size**0.5 for key in keys]).exp()
            answer.append(sum(share * value for share, value in zip(shares / shares.sum(), values, strict=True)))
        outputs.append(linear(attention.out_proj, torch.cat(answer)))
    return outputs


def naive_boq(head, feature_map):
    """The descriptor of one map (C, h, w)."""
    projected = F.conv2d(feature_map[None], head.proj_c.weight, head.proj_c.bias, padding=1)[0]
    tokens = [head.norm_input(projected[:, y, x]) for y in range(projected.shape[1]) for x in range(projected.shape[2])]
    answers = []
    for block in head.boqs:
        layer = block.encoder
        mixed = attended(layer.self_attn, tokens, tokens)
        tokens = [layer.norm1(token + change) for token, change in zip(tokens, mixed, strict=True)]
        tokens = [layer.norm2(x + linear(layer.linear2, linear(layer.linear1, x).clamp(min=0))) for x in tokens]
        changes = attended(block.self_attn, block.queries[0], block.queries[0])
        queries = [block.norm_q(query + change) for query, change in zip(block.queries[0], changes, strict=True)]
        answers += [block.norm_out(answer) for answer in attended(block.cross_attn, queries, tokens)]
    rows = torch.stack(answers, dim=1) @ head.fc.weight.T + head.fc.bias  # (D, R)
    return rows.flatten() / rows.norm()


@pytest.mark.parametrize("training", [True, False])
def test_boq_equals_the_definition_with_its_gradients(training):
    torch.manual_seed(0)
    head = BoQ(5, channels=128, num_queries=3, num_layers=2, rows=4).double().train(training)
    for weight in head.parameters():  # biases and norms start at 0 and 1
        torch.nn.init.normal_(weight, std=0.3)
    feature_map = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([naive_boq(head, each) for each in feature_map])
    found = head(feature_map)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [feature_map, *head.parameters()]
    gradients, wanted = (torch.autograd.grad(each.cos().sum(), inputs, allow_unused=True) for each in (found, expected))
    for gradient, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, each, rtol=0, atol=1e-12)


def test_boq_has_the_published_names():
    names = {name.partition(".weight")[0].partition(".bias")[0] for name in BoQ(5, **SMALL).state_dict()}
    layers = ("encoder.self_attn.in_proj_", "encoder.self_attn.out_proj", "encoder.linear1", "encoder.linear2")
    norms = ("encoder.norm1", "encoder.norm2", "norm_q", "norm_out")
    attentions = [f"{name}.{part}" for name in ("self_attn", "cross_attn") for part in ("in_proj_", "out_proj")]
    block = {name.rstrip("_") for name in (*layers, *norms, *attentions, "queries")}
    found = {name.replace("in_proj_weight", "in_proj").replace("in_proj_bias", "in_proj") for name in names}
    assert found == {"proj_c", "norm_input", "fc", *(f"boqs.0.{name}" for name in block)}


SMALL = {"channels": 64, "num_queries": 2, "num_layers": 1, "rows": 2}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"channels": 100}, "channels of boq must be a multiple of 64, got 100"),
        ({"channels": 0}, "channels of boq must be at least 1, got 0"),
        ({"num_queries": 0}, "num_queries of boq must be at least 1, got 0"),
        ({"rows": -1}, "rows of boq must be at least 1, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(ValueError, match=f"`aggregation_options`: {sentence}"):
        build_aggregation("boq", TRAITS, **SMALL | options)
