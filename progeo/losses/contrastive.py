"""Contrastive losses between images and the texts of their classes, and among images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_contrastive(
    anchors: Tensor, others: Tensor, anchor_labels: Tensor, other_labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """Compute the supervised contrastive loss of each anchor against the others (Khosla et al., NeurIPS 2020, eq. 2).

    For each anchor, average the log-probabilities of the others with the same label; the loss is minus the mean over
    anchors. Stage 1 sums both directions, image-to-text and text-to-image, as CLIP-ReID (AAAI 2023, eq. 1 and 2) does.

    Args:
        anchors: (B, E), used as given, without normalization.
        others: (M, E), used as given, without normalization.
        anchor_labels: int64 (B,); each must occur in `other_labels`.
        other_labels: int64 (M,).
        temperature: divides the dot products.

    Returns:
        The loss, a scalar.
    """
    log_probabilities = F.log_softmax(anchors @ others.T / temperature, dim=1)
    positive = anchor_labels[:, None] == other_labels[None, :]
    per_anchor = (log_probabilities * positive).sum(dim=1) / positive.sum(dim=1)
    return -per_anchor.mean()


def supcon(descriptors: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss among the images of a batch (Khosla et al., NeurIPS 2020, eq. 2).

    Similarities are cosines. An image is no positive of its own and is not among those it is compared with. The loss is
    the mean over the images that have a positive.

    Args:
        descriptors: (B, D), L2-normalized here.
        labels: int64 (B,).
        temperature: divides the cosines.

    Returns:
        The loss, a scalar; 0 without any positive.
    """
    units = F.normalize(descriptors, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    lowest = torch.finfo(units.dtype).min  # -inf would give NaN for an image alone
    log_probabilities = (units @ units.T / temperature).masked_fill(itself, lowest).log_softmax(dim=1)
    positive = (labels[:, None] == labels[None, :]) ^ itself
    num_positives = positive.sum(dim=1)
    per_anchor = log_probabilities.masked_fill(~positive, 0).sum(dim=1) / num_positives.clamp(min=1)
    return -per_anchor.sum() / (num_positives > 0).sum().clamp(min=1)


def image_text_cross_entropy(
    descriptors: Tensor, text_features: Tensor, labels: Tensor, label_smoothing: float = 0.1
) -> Tensor:
    """Compute the cross-entropy of each image over the texts of all classes (CLIP-ReID, eq. 8).

    The logits are raw dot products.

    Args:
        descriptors: (B, E).
        text_features: (C, E), one text per class.
        labels: int64 (B,), in 0..C-1.
        label_smoothing: fraction of the target probability distributed uniformly over all classes.

    Returns:
        The loss, a scalar.
    """
    return F.cross_entropy(descriptors @ text_features.T, labels, label_smoothing=label_smoothing)
