"""Losses between a student and its teacher (WAKD, ICPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_maps(feature_map: Tensor) -> Tensor:
    """Compute the attention of feature maps: a mean over channels, weighted as Grad-CAM weights them.

    With p the spatial means of the positive parts of the channels and s = softmax(p), the weight of a channel is the
    gradient of max(s), in closed form: s_m (1[c = m] - s_c), where m is the channel of the largest s. Weights are
    constants, and their common scale cancels, since maps are divided by their maximum. Divided by s_m (1 - s_m), which
    rounds to 0 where one channel is far ahead, they are 1 for m and minus the softmax of the other channels.

    Args:
        feature_map: (B, C, h, w).

    Returns:
        (B, h w), in 0..1 with the maximum 1; all 0, without a gradient, for a map that is nowhere positive.
    """
    zero = feature_map.new_zeros(())
    activations = torch.maximum(feature_map, zero)  # half of the gradient passes at 0, as in the published code
    means = activations.detach().mean(dim=(2, 3))
    is_largest = F.one_hot(means.argmax(dim=1), means.shape[1]).bool()
    weights = torch.where(is_largest, 1, -means.masked_fill(is_largest, -torch.inf).softmax(dim=1))
    weighted = (activations * weights[:, :, None, None]).mean(dim=1).flatten(1)
    positive = torch.maximum(weighted, zero)
    peak = positive.max(dim=1, keepdim=True).values
    return torch.where(peak > 0, positive / torch.where(peak > 0, peak, 1), 0)


def gram_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of the similarities that student and teacher see among images.

    Similarities are the dot products of all images with all, each row L2-normalized. The dimensions of student and
    teacher may differ.

    Args:
        student: descriptors, attention or other features of images (N, ...).
        teacher: those of the teacher for the same images (N, ...); no gradient flows to them.

    Returns:
        The loss, a scalar.
    """
    return F.mse_loss(_similarities(student), _similarities(teacher.detach()))


def cosine_distillation(descriptors: Tensor, targets: Tensor) -> Tensor:
    """Compute 1 - cosine of descriptors (B, D) and the teacher's (B, D), averaged: a scalar."""
    return (1 - F.cosine_similarity(descriptors, targets.detach())).mean()


def _similarities(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)
