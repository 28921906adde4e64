"""Triplet losses within a batch."""

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
    squares = descriptors.pow(2).sum(dim=1)
    squared_distances = squares[:, None] + squares[None, :] - 2 * descriptors @ descriptors.T
    distances = squared_distances.clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels[None, :]
    positive = (distances * _masked_softmax(distances, same)).sum(dim=1)
    negative = (distances * _masked_softmax(-distances, ~same)).sum(dim=1)
    return F.softplus(positive - negative).mean()


def _masked_softmax(values: Tensor, mask: Tensor) -> Tensor:
    weights = torch.softmax(values.masked_fill(~mask, torch.finfo(values.dtype).min), dim=1)
    return weights * mask  # zero weights, not NaN, for an anchor with no pair of its kind
