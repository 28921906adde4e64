"""Loaders: pixels of given batches of a dataset, decoded in worker processes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from progeo.data.datasets import CachedImages, CatalogueImages, Replaced, Unreadable
from progeo.files import each_file
from progeo.plugins import import_in_worker, imported_plugins
from progeo.progress import followed


@dataclass(frozen=True)
class Loaded:
    """A loaded batch."""

    items: Any
    """The readable items, collated; None if there are none."""
    unreadable: dict[int, str]
    """Why an item could not be read and is missing, by its index in the batch."""
    replaced: dict[int, str]
    """Why an item could not be read and was replaced by another, by its index in the batch."""

    def pin_memory(self) -> "Loaded":
        """Return the batch with its items in pinned memory, as a loader asks for."""
        if self.items is None:
            return self
        is_one = isinstance(self.items, Tensor)
        return replace(self, items=self.items.pin_memory() if is_one else [each.pin_memory() for each in self.items])


def build_loader(
    dataset: Dataset, batches: Iterable[Sequence[Any] | np.ndarray], *, num_workers: int, pin: bool = False
) -> DataLoader:
    """Build a loader that yields each batch, of indices or other keys of the dataset, as `Loaded`.

    Args:
        num_workers: processes that read items; 0 reads them in this one.
        pin: put the items into pinned memory, which a GPU reads while this process goes on.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type] # it takes other sequences than lists, too
        num_workers=num_workers,
        pin_memory=pin,
        collate_fn=_collated,
        worker_init_fn=partial(import_in_worker, imported_plugins()),
    )


def batches_by_shape(rows: np.ndarray, shapes: np.ndarray, *, batch_size: int, max_pixels: int) -> list[np.ndarray]:
    """Group rows into batches of one shape each, keeping their order within a shape.

    Args:
        rows: int64 (n,).
        shapes: shape of each row's pixels, (n, ...), whose product is the number of pixels.
        batch_size: maximum rows per batch.
        max_pixels: maximum pixels per batch; a batch of a single row may have more.
    """
    kinds, kind = np.unique(shapes, axis=0, return_inverse=True)
    batches = []
    for which, shape in enumerate(kinds):
        size = min(batch_size, max(1, max_pixels // max(1, int(shape.prod()))))
        alike = rows[kind.reshape(-1) == which]
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches


def read_batches(loader: DataLoader) -> Iterator[Any]:
    """Iterate over the items of a loader's batches.

    Raises:
        ValueError: an image cannot be read; the message names it.
    """
    for batch in loader:
        for reason in batch.unreadable.values():
            raise ValueError(reason)
        yield batch.items


def cache_images(images: CatalogueImages, *, num_workers: int) -> CachedImages:
    """Decode all images once and keep them in memory.

    Raises:
        ValueError: an image cannot be read; the message names it.
    """
    count = len(images)
    shapes = each_file(images.shape, range(count), total=count, description="reading image sizes")
    cached = CachedImages(np.array([shape or (0, 0) for shape in shapes]))  # unreadable ones raise an error below
    loader = build_loader(images, ([row] for row in range(count)), num_workers=num_workers)
    for row, image in enumerate(followed(read_batches(loader), "decoding images", total=count)):
        cached[row].copy_(image[0])
    return cached


def _collated(items: list[Tensor | tuple[Tensor, int, int] | Replaced | Unreadable]) -> Loaded:
    unreadable = {index: item.reason for index, item in enumerate(items) if isinstance(item, Unreadable)}
    replaced = {index: item.reason for index, item in enumerate(items) if isinstance(item, Replaced)}
    usable = [item.item if isinstance(item, Replaced) else item for item in items if not isinstance(item, Unreadable)]
    return Loaded(_collated_items(usable) if usable else None, unreadable, replaced)


def _collated_items(items: list[Any]) -> Any:
    if isinstance(items[0], Tensor):
        return _stacked(items)
    images, *others = zip(*items, strict=True)
    return [_stacked(images), *(default_collate(list(values)) for values in others)]


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Stack images (..., 3, H, W), channels last in memory, as they are decoded, resized fastest and convolved."""
    return default_collate([image.movedim(-3, -1) for image in images]).movedim(-1, -3)
