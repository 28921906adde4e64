"""Image-text matching accuracy: how well each prompt matches the images of its class."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """Top-1 accuracies in percent."""

    image_to_text: float
    """Percentage of images whose nearest text is that of their class."""
    text_to_image: float
    """Percentage of classes whose text is nearest to one of their images; classes without images are excluded."""


@torch.inference_mode()
def matching_accuracy(images: Iterable[tuple[Tensor, Tensor]], texts: Tensor) -> Matching:
    """Compute matching accuracies from the dot products of all images and texts; normalize both for cosines.

    Args:
        images: batches of image features (B, E) and their labels, int64 (B,).
        texts: text features of each class, (C, E).
    """
    num_classes = len(texts)
    num_correct = count = 0
    largest = texts.new_full((num_classes,), -torch.inf)
    found = torch.full((num_classes,), -1, device=texts.device)
    present = torch.zeros(num_classes, dtype=torch.bool, device=texts.device)
    for features, labels in images:
        similarity = features @ texts.T
        num_correct += int((similarity.argmax(dim=1) == labels).sum())
        count += len(labels)
        values, rows = similarity.max(dim=0)
        found = torch.where(values > largest, labels[rows], found)
        largest = torch.maximum(largest, values)
        present[labels] = True
    matched = (found == torch.arange(num_classes, device=texts.device))[present]
    return Matching(100 * num_correct / count, 100 * matched.double().mean().item())
