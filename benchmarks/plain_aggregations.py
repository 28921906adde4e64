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


PLAIN: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"gem": plain_gem, "netvlad": plain_netvlad, "salad": plain_salad}
)
"""By the name of the aggregation."""


def _conv(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(images, weight[:, :, None, None], bias)


def _conv_perceptron(layers: Any, images: Tensor) -> Tensor:
    """Compute a perceptron of linear layers as 1 x 1 convolutions."""
    for layer in layers:
        images = _conv(images, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(images)
    return images
