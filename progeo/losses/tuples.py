"""Losses of tuples: an anchor (a query), a positive and M negatives, and the regions of their images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def triplet_margin(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float) -> Tensor:
    """Compute the triplet loss on Euclidean distances, averaged over all negatives (as in OpenIBL).

    Args:
        anchors: (B, D).
        positives: (B, D).
        negatives: (B, M, D).
        margin: by how much a positive must be nearer than each negative.

    Returns:
        The loss, a scalar.
    """
    return F.triplet_margin_loss(anchors[:, None], positives[:, None], negatives, margin=margin)


def sare(
    anchors: Tensor, positives: Tensor, negatives: Tensor, *, joint: bool, temperature: float | None = None
) -> Tensor:
    """Compute the stochastic attraction-repulsion loss (SARE; Liu et al., ICCV 2019).

    It is the cross-entropy of the positive against the negatives of an anchor.

    Args:
        anchors: (B, D).
        positives: (B, D).
        negatives: (B, M, D).
        joint: compare the positive with all negatives of the anchor at once, else with each alone and average.
        temperature: divides the dot products of descriptors, as in OpenIBL; None compares minus squared distances.

    Returns:
        The loss, a scalar.
    """
    others = torch.cat([positives[:, None], negatives], dim=1)  # (B, 1 + M, D)
    if temperature is None:
        scores = -(anchors[:, None] - others).square().sum(dim=2)
    else:
        scores = torch.einsum("bd,bmd->bm", anchors, others) / temperature
    if joint:
        return -scores.log_softmax(dim=1)[:, 0].mean()
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean()


def hardest_regions(anchor: Tensor, negative_regions: Tensor) -> Tensor:
    """Select of each negative the region that is most similar to the anchor (SFRS, ECCV 2020).

    Args:
        anchor: descriptors of whole images (B, D).
        negative_regions: descriptors of the regions of negatives (B, M, R, D).

    Returns:
        (B, M, D); the gradient reaches the selected regions only.
    """
    scores = torch.einsum("bd,bmrd->bmr", anchor.detach(), negative_regions.detach())
    index = scores.argmax(dim=2)[:, :, None, None].expand(-1, -1, 1, anchor.shape[1])
    return negative_regions.gather(2, index)[:, :, 0]


def region_similarity(
    scores: Tensor, target_scores: Tensor, *, temperature: float, target_temperature: float
) -> Tensor:
    """Compute the cross-entropy of similarities to regions of positives with soft labels (SFRS, ECCV 2020).

    Args:
        scores: dot products of a query with the regions of its positives (B, P, R), -inf where there is no positive.
        target_scores: those of the network that gives the labels (B, P, R), -inf at the same entries.
        temperature: divides `scores`.
        target_temperature: divides `target_scores`.

    Returns:
        The mean over the queries that have a positive, a scalar; 0 without any.
    """
    scores, target_scores = scores.flatten(1), target_scores.detach().flatten(1)
    absent, lowest = target_scores.isneginf(), torch.finfo(scores.dtype).min  # -inf would give NaN without positives
    log_probabilities = (scores / temperature).masked_fill(absent, lowest).log_softmax(dim=1)
    labels = (target_scores / target_temperature).masked_fill(absent, lowest).softmax(dim=1)
    per_query = -(labels * log_probabilities).masked_fill(absent, 0).sum(dim=1)
    return per_query.sum() / (~absent).any(dim=1).sum().clamp(min=1)
