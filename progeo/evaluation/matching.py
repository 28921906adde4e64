"""How well texts and images find each other: does the prompt describe its place?"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """Top-1 accuracies in percent."""

    image_to_text: float
    """Images whose nearest text is that of their class."""
    text_to_image: float
    """Classes whose text is nearest to an image of theirs; classes without an image do not count."""


@torch.inference_mode()
def matching_accuracy(images: Iterable[tuple[Tensor, Tensor]], texts: Tensor) -> Matching:
    """Compare all images with all texts by their dot products; normalize both for cosines.

    Args:
        images: batches of image features (B, E) and their labels, int64 (B,).
        texts: features of the text of each class, (C, E).
    """
    num_classes = len(texts)
    right = count = 0
    largest = texts.new_full((num_classes,), -torch.inf)
    found = torch.full((num_classes,), -1, device=texts.device)
    present = torch.zeros(num_classes, dtype=torch.bool, device=texts.device)
    for features, labels in images:
        similarity = features @ texts.T
        right += int((similarity.argmax(dim=1) == labels).sum())
        count += len(labels)
        values, rows = similarity.max(dim=0)
        found = torch.where(values > largest, labels[rows], found)
        largest = torch.maximum(largest, values)
        present[labels] = True
    matched = (found == torch.arange(num_classes, device=texts.device))[present]
    return Matching(100 * right / count, 100 * matched.double().mean().item())
