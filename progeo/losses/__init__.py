"""Losses as pure functions of tensors."""

from progeo.losses.contrastive import image_text_cross_entropy, supervised_contrastive
from progeo.losses.smoothing import distance_smoothed_labels
from progeo.losses.triplet import batch_hard_triplet, weighted_triplet

__all__ = [
    "batch_hard_triplet",
    "distance_smoothed_labels",
    "image_text_cross_entropy",
    "supervised_contrastive",
    "weighted_triplet",
]
