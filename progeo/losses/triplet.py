"""Triplet losses within a batch: they mean something where a batch holds several images of a class (P x K sampling)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_triplet(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Softmax-weighted triplet loss with a soft margin (Ye et al., AGW, TPAMI 2021, eq. 5).

    Every pair of a batch takes part: positives are averaged with weights softmax(distance), negatives with
    softmax(-distance). An anchor counts among its own positives, as in the published code, so a batch without a
    second image of a class still has a value; it pulls nothing together then.

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
    """Triplet loss of each anchor's farthest positive and nearest negative (Hermans et al., 2017, eq. 5).

    Args:
        descriptors: (B, D).
        labels: int64 (B,), at least two different ones.
        margin: how much nearer, in Euclidean distance, the positive must be; None is the soft margin, softplus.

    Returns:
        The loss, a scalar.
    """
    distances, same = _distances(descriptors), labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    violation = positive - negative
    return (F.softplus(violation) if margin is None else F.relu(violation + margin)).mean()


def _distances(descriptors: Tensor) -> Tensor:
    """Euclidean distances (B, B)."""
    squares = descriptors.pow(2).sum(dim=1)
    squared_distances = squares[:, None] + squares[None, :] - 2 * descriptors @ descriptors.T
    return squared_distances.clamp(min=1e-12).sqrt()


def _masked_softmax(values: Tensor, mask: Tensor) -> Tensor:
    weights = torch.softmax(values.masked_fill(~mask, torch.finfo(values.dtype).min), dim=1)
    return weights * mask  # zero weights, not NaN, for an anchor with no pair of its kind
