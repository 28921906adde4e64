"""The multi-similarity loss within a batch; it needs several images per class in a batch (P x K sampling)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_similarity(
    descriptors: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 50.0,
    base: float = 0.0,
    epsilon: float = 0.1,
) -> Tensor:
    """Compute the multi-similarity loss of the mined pairs of a batch (Wang et al., CVPR 2019, eq. 11 to 13).

    Similarities are cosines. A positive is mined if it is less similar than the most similar negative of its anchor
    plus epsilon, a negative if it is more similar than the least similar positive minus epsilon. An anchor without
    mined pairs adds 0. The defaults are those of GSV-Cities.

    Args:
        descriptors: (B, D), L2-normalized here.
        labels: int64 (B,).
        alpha: factor of the similarities of positives.
        beta: factor of the similarities of negatives.
        base: similarity that both are compared with, lambda in the paper.
        epsilon: margin of the mining; a large one takes all pairs of anchors that have positives and negatives.

    Returns:
        The loss, a scalar: the mean over all images as anchors.
    """
    units = F.normalize(descriptors, dim=1)
    cosines = units @ units.T
    same = labels[:, None] == labels[None, :]
    positive = same ^ torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    constant = cosines.detach()
    least_positive = constant.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
    most_negative = constant.masked_fill(same, -torch.inf).amax(dim=1, keepdim=True)
    positive = positive & (constant - epsilon < most_negative)
    negative = ~same & (constant + epsilon > least_positive)
    pull = _log_one_plus_sum(-alpha * (cosines - base), positive) / alpha
    push = _log_one_plus_sum(beta * (cosines - base), negative) / beta
    return (pull + push).mean()


def _log_one_plus_sum(exponents: Tensor, mask: Tensor) -> Tensor:
    """Compute log(1 + sum of exp) over the masked entries of each row, (B,)."""
    masked = exponents.masked_fill(~mask, -torch.inf)
    return torch.cat([masked, masked.new_zeros(len(masked), 1)], dim=1).logsumexp(dim=1)
