"""Losses as pure functions of tensors."""

from progeo.losses.contrastive import image_text_cross_entropy, supcon, supervised_contrastive
from progeo.losses.distillation import attention_maps, cosine_distillation, gram_distillation
from progeo.losses.multi_similarity import multi_similarity
from progeo.losses.smoothing import distance_smoothed_labels
from progeo.losses.triplet import batch_hard_triplet, weighted_triplet
from progeo.losses.tuples import hardest_regions, region_similarity, sare, triplet_margin

__all__ = [
    "attention_maps",
    "batch_hard_triplet",
    "cosine_distillation",
    "distance_smoothed_labels",
    "gram_distillation",
    "hardest_regions",
    "image_text_cross_entropy",
    "multi_similarity",
    "region_similarity",
    "sare",
    "supcon",
    "supervised_contrastive",
    "triplet_margin",
    "weighted_triplet",
]
