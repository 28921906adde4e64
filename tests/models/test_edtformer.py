import dataclasses
import math

import pytest
import torch

from progeo.models.aggregation import EDTformer, aggregation_dim, build_aggregation
from progeo.models.backbones.family import Traits

OPTIONS = {"num_queries": 3, "num_layers": 2, "num_heads": 2, "channels": 5, "rows": 4}
TRAITS = Traits(channels=32, token_dim=32, features_dim=32, stride=14)


def normed(norm, vector):
    centered = vector - vector.mean()
    return centered / (centered.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def attended(attention, query, keys):
    """What one query gets from keys, head by head."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    (own,), theirs, values = (
        [weight @ vector + bias for vector in vectors]
        for weight, bias, vectors in zip(weights, biases, ([query], keys, keys), strict=True)
    )
    width, heads = len(own) // attention.num_heads, []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = [math.exp(own[part] @ key[part] / math.sqrt(width)) for key in theirs]
        heads.append(sum(score / sum(scores) * value[part] for score, value in zip(scores, values, strict=True)))
    return attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias


def in_loops(module, feature_map, token):
    features = [module.fc.weight @ each + module.fc.bias for each in (token, *feature_map.flatten(1).T)]
    queries = list(module.queries[0])
    for layer in module.layers:
        queries = [normed(layer.norm1, query + attended(layer.self_attn, query, queries)) for query in queries]
        queries = [normed(layer.norm2, query + attended(layer.multihead_attn, query, features)) for query in queries]
    reduced = [module.channel_proj.weight @ query + module.channel_proj.bias for query in queries]
    rows = [
        sum(weight * vector for weight, vector in zip(weights, reduced, strict=True)) + bias
        for weights, bias in zip(module.row_proj.weight, module.row_proj.bias, strict=True)
    ]
    descriptor = torch.stack(rows, dim=1).flatten()
    return descriptor / descriptor.norm()


@torch.no_grad()
def test_edtformer_equals_its_definition_in_loops():
    torch.manual_seed(0)
    module = EDTformer(32, dropout=0.5, **OPTIONS).double().eval()
    for parameter in module.parameters():
        parameter.normal_(std=0.3)
    maps, tokens = torch.randn(2, 32, 2, 3, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    found = module(maps, tokens)
    assert found.shape == (2, 5 * 4)
    for descriptor, feature_map, token in zip(found, maps, tokens, strict=True):
        torch.testing.assert_close(descriptor, in_loops(module, feature_map, token))


def test_dropout_is_another_for_each_image_of_a_batch():
    torch.manual_seed(0)
    image = torch.randn(1, 32, 2, 3).expand(2, -1, -1, -1), torch.randn(1, 32).expand(2, -1)
    module = EDTformer(32, dropout=0.5, **OPTIONS)
    torch.nn.init.normal_(module.queries)
    seen = []
    module.layers[0].norm1.register_forward_hook(lambda _, given, queries: seen.append(queries))
    first, second = module(*image)
    assert not torch.allclose(first, second) and not torch.allclose(*seen[0])
    first, second = module.eval()(*image)
    assert torch.equal(first, second)
    assert [len(queries) for queries in seen] == [2, 1]


def test_queries_start_near_zero():
    assert 0.9e-6 < EDTformer(320, dropout=0.1, **{**OPTIONS, "num_queries": 50}).queries.std() < 1.1e-6


@pytest.mark.parametrize(
    ("changed", "options", "sentence"),
    [
        ({}, {"rows": 0}, "rows of edtformer must be at least 1, got 0"),
        ({}, {"num_heads": 0}, "num_heads of edtformer must be at least 1, got 0"),
        ({}, {"num_heads": 5}, "num_heads of edtformer must divide the 32 channels of the backbone, got 5"),
        ({}, {"dropout": 1.0}, "dropout of edtformer must be from 0 to below 1, got 1.0"),
        ({"token_dim": 64}, {}, "as many dimensions as the feature map has channels, and the backbone gives 64 and 32"),
    ],
)
def test_options_and_backbones_that_do_not_fit_are_refused(changed, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_aggregation("edtformer", dataclasses.replace(TRAITS, **changed), architecture="net", **options)
    assert aggregation_dim("edtformer", TRAITS, None, {"rows": 3}, "net") == 3 * 256
