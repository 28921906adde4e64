"""Aggregations as their authors' code computes them, written plainly: functions of a head of ours and its inputs."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_gem(head: Any, feature_map: Tensor) -> Tensor:
    """GeM of CosPlace: L2, pooling with `avg_pool2d`, linear, L2."""
    channels = F.normalize(feature_map, p=2.0, dim=1)
    pooled = F.avg_pool2d(channels.clamp(min=1e-6).pow(head.p), channels.shape[2:]).pow(1 / head.p)
    return F.normalize(head.linear(pooled.flatten(1)), p=2.0, dim=1)


def plain_netvlad(head: Any, feature_map: Tensor) -> Tensor:
    """NetVLAD of pytorch-NetVlad: the residuals to one cluster after another."""
    features = F.normalize(feature_map, p=2.0, dim=1)
    assigned = F.softmax(_conv(features, head.assignment).flatten(2), dim=1)
    flat, clusters = features.flatten(2), []
    for index, centroid in enumerate(head.centroids):
        residuals = flat - centroid[:, None].expand(-1, flat.shape[2])
        clusters.append((residuals * assigned[:, index : index + 1]).sum(dim=2))
    vlad = F.normalize(torch.stack(clusters, dim=1), p=2.0, dim=2)
    return F.normalize(vlad.flatten(1), p=2.0, dim=1)


def plain_salad(head: Any, feature_map: Tensor, token: Tensor) -> Tensor:
    """SALAD of its authors: 1 x 1 convolutions, a dustbin row, and all products of features and assignments."""
    reduced, scores = (
        _conv_perceptron(layers, feature_map).flatten(2) for layers in (head.cluster_features, head.score)
    )
    count, num_clusters = reduced.shape[2], scores.shape[1]
    couplings = torch.cat([scores, scores.new_ones(len(scores), 1, count)], dim=1)
    norm = -math.log(count + num_clusters)
    row_masses = scores.new_full((num_clusters + 1,), norm)
    row_masses[-1] += math.log(count - num_clusters)
    u, v = torch.zeros_like(couplings[:, :, 0]), torch.zeros_like(couplings[:, 0])
    for _ in range(3):
        u = row_masses - torch.logsumexp(couplings + v.unsqueeze(1), dim=2)
        v = norm - torch.logsumexp(couplings + u.unsqueeze(2), dim=1)
    assigned = (couplings + u.unsqueeze(2) + v.unsqueeze(1) - norm).exp()[:, :-1]
    assigned = assigned.unsqueeze(1).repeat(1, reduced.shape[1], 1, 1)
    products = reduced.unsqueeze(2).repeat(1, 1, num_clusters, 1) * assigned
    clusters = F.normalize(products.sum(dim=-1), p=2.0, dim=1).flatten(1)
    return F.normalize(torch.cat([F.normalize(head.token_features(token), p=2.0, dim=-1), clusters], dim=-1), dim=-1)


def plain_boq(head: Any, feature_map: Tensor) -> Tensor:
    """BoQ of its authors: queries repeated for every image, and the weights of all pairs of queries and cells."""
    tokens = head.norm_input(head.proj_c(feature_map).flatten(2).permute(0, 2, 1))
    answers = []
    for block in head.boqs:
        layer = block.encoder
        mixed, _ = _attend(layer.self_attn, tokens, tokens, need_weights=False)
        tokens = layer.norm1(tokens + mixed)
        tokens = layer.norm2(tokens + layer.linear2(layer.dropout(F.relu(layer.linear1(tokens)))))
        queries = block.queries.repeat(len(tokens), 1, 1)
        queries = block.norm_q(queries + _attend(block.self_attn, queries, queries)[0])
        answers.append(block.norm_out(_attend(block.cross_attn, queries, tokens)[0]))
    return F.normalize(head.fc(torch.cat(answers, dim=1).permute(0, 2, 1)).flatten(1), p=2.0, dim=-1)


def plain_convap(head: Any, feature_map: Tensor) -> Tensor:
    """Conv-AP of its authors: the convolution of all cells, then their means."""
    projected = head.channel_pool(feature_map)
    return F.normalize(F.adaptive_avg_pool2d(projected, head.parts).flatten(1), p=2.0, dim=1)


def plain_gem_pool(head: Any, feature_map: Tensor) -> Tensor:
    """GeM of GSV-Cities: pooling with `avg_pool2d`, then L2."""
    pooled = F.avg_pool2d(feature_map.clamp(min=1e-6).pow(head.p), feature_map.shape[2:]).pow(1 / head.p)
    return F.normalize(pooled.flatten(1), p=2.0, dim=1)


def plain_mixvpr(head: Any, feature_map: Tensor) -> Tensor:
    """MixVPR of its authors: the channels projected in all cells, then the cells."""
    mixed = head.mix(feature_map.flatten(2))
    projected = head.channel_proj(mixed.permute(0, 2, 1)).permute(0, 2, 1)
    return F.normalize(head.row_proj(projected).flatten(1), p=2.0, dim=-1)


def plain_token_gem(head: Any, feature_map: Tensor, token: Tensor) -> Tensor:
    """The token and GeM of CricaVPR, each of unit length, in a row."""
    channels = F.normalize(feature_map, p=2.0, dim=1)
    pooled = F.avg_pool2d(channels.clamp(min=1e-6).pow(head.p), channels.shape[2:]).pow(1 / head.p).flatten(1)
    parts = [F.normalize(each, p=2.0, dim=1) for each in (token, pooled)]
    return F.normalize(torch.cat(parts, dim=1), p=2.0, dim=1)


def plain_edtformer(head: Any, feature_map: Tensor, token: Tensor) -> Tensor:
    """EDTformer of its authors: PyTorch's attention, with a copy of the queries for each image."""
    features = head.fc(torch.cat([token.unsqueeze(1), feature_map.flatten(2).permute(0, 2, 1)], dim=1))
    answers = head.queries.expand(len(features), -1, -1)
    for layer in head.layers:
        found, _ = _attend(layer.self_attn, answers, answers, need_weights=False)
        answers = layer.norm1(answers + layer.dropout(found))
        found, _ = _attend(layer.multihead_attn, answers, features, need_weights=False)
        answers = layer.norm2(answers + layer.dropout(found))
    rows = head.row_proj(head.channel_proj(answers).permute(0, 2, 1))
    return F.normalize(rows.flatten(1), p=2.0, dim=-1)


PLAIN: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "boq": plain_boq,
        "convap": plain_convap,
        "edtformer": plain_edtformer,
        "gem": plain_gem,
        "gem_pool": plain_gem_pool,
        "mixvpr": plain_mixvpr,
        "netvlad": plain_netvlad,
        "salad": plain_salad,
        "token_gem": plain_token_gem,
    }
)
"""By the name of the aggregation."""


def _attend(attention: nn.MultiheadAttention, queries: Tensor, tokens: Tensor, **options: Any) -> tuple[Any, ...]:
    """Run PyTorch's own forward, which heads of ours replace."""
    return nn.MultiheadAttention.forward(attention, queries, tokens, tokens, **options)


def _conv(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(images, weight[:, :, None, None], bias)


def _conv_perceptron(layers: Any, images: Tensor) -> Tensor:
    """Compute a perceptron of linear layers as 1 x 1 convolutions."""
    for layer in layers:
        images = _conv(images, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(images)
    return images
