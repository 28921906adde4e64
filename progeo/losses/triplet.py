"""Triplet losses within a batch; they need several images per class in a batch (P x K sampling)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def triplet(
    descriptors: Tensor, labels: Tensor, *, kind: Literal["softmax_weighted", "batch_hard"], margin: float | None
) -> Tensor:
    """Compute `weighted_triplet` or `batch_hard_triplet`, which alone has a margin."""
    if kind == "batch_hard":
        return batch_hard_triplet(descriptors, labels, margin)
    return weighted_triplet(descriptors, labels)


def weighted_triplet(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Compute the softmax-weighted triplet loss with a soft margin (Ye et al., AGW, TPAMI 2021, eq. 5).

    All pairs of the batch contribute: distances to positives are averaged with weights softmax(distance), those to
    negatives with softmax(-distance). As in the published code, an anchor is one of its own positives, so the loss is
    defined even if a class has a single image in the batch; its positive distance is then 0.

    Args:
        descriptors: (B, D).
        labels: int64 (B,), at least two different ones.

    Returns:
        The loss, a scalar.
    """
    distances, same = _distances(descriptors), labels[:, None] == labels[None, :]
    positive = (distances * _masked_softmax(distances, same)).sum(dim=1)
    negative = (distances * _masked_softmax(-distances, ~same)).sum(dim=1)
    return F.softplus(positive - negative).mean()


def batch_hard_triplet(descriptors: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Compute the triplet loss of each anchor's farthest positive and nearest negative (Hermans et al., 2017, eq. 5).

    Args:
        descriptors: (B, D).
        labels: int64 (B,), at least two different ones.
        margin: by how much, in Euclidean distance, the positive must be nearer; None uses the soft margin, softplus.

    Returns:
        The loss, a scalar.
    """
    distances, same = _distances(descriptors), labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    violation = positive - negative
    return (F.softplus(violation) if margin is None else F.relu(violation + margin)).mean()


def _distances(descriptors: Tensor) -> Tensor:
    """Compute pairwise Euclidean distances, (B, B)."""
    squares = descriptors.pow(2).sum(dim=1)
    squared_distances = squares[:, None] + squares[None, :] - 2 * descriptors @ descriptors.T
    return squared_distances.clamp(min=1e-12).sqrt()


def _masked_softmax(values: Tensor, mask: Tensor) -> Tensor:
    weights = torch.softmax(values.masked_fill(~mask, torch.finfo(values.dtype).min), dim=1)
    return weights * mask  # an anchor without any such pair gets zero weights, not NaN
