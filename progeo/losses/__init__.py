"""Losses as pure functions of tensors."""

from progeo.losses.contrastive import image_text_cross_entropy, supervised_contrastive
from progeo.losses.triplet import weighted_triplet

__all__ = ["image_text_cross_entropy", "supervised_contrastive", "weighted_triplet"]
