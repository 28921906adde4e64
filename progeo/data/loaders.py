"""Loaders: datasets and samplers -> batches, decoded in worker processes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from progeo.data.datasets import CachedImages, Unreadable


def build_train_loader(dataset: Dataset, batches: Sampler[list[int]], *, num_workers: int) -> DataLoader:
    """Load the batches that a sampler names."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=_collated)


def build_ordered_loader(dataset: Dataset, *, batch_size: int, num_workers: int) -> DataLoader:
    """Load all images in their order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=_collated)


def read_batches(loader: DataLoader) -> Iterator[Any]:
    """Iterate over a loader's batches.

    Raises:
        ValueError: an image that cannot be read; the sentence names it.
    """
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise ValueError(batch.reason)
        yield batch


def cache_images(dataset: Dataset, *, num_workers: int) -> CachedImages:
    """Decode all images once and keep them in memory."""
    loader = build_ordered_loader(dataset, batch_size=64, num_workers=num_workers)
    return CachedImages(torch.cat(list(read_batches(loader))))


def _collated(items: list[Any]) -> Tensor | list[Tensor] | Unreadable:
    return next((item for item in items if isinstance(item, Unreadable)), None) or default_collate(items)
