"""Batch sampling. Every order is a function of (seed, epoch, step), so that training can resume at any step."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True, eq=False)
class ClassSampler(Sampler[list[int]]):
    """Batches with random images of some classes; all classes are used once before any is used again.

    Args:
        offsets: images of class c are offsets[c]..offsets[c + 1] - 1, int64 (C + 1,).
        batch_size: images per batch.
        images_per_class: K, which must divide the batch size; they are different images unless the class has fewer.
        num_batches: batches per epoch, regardless of the number of images.
        seed, epoch: determine the order.
        first_batch: batches before this one are skipped.
        process, num_processes: this process's share of each batch.
        regions: region of each class from 0, int64 (C,), whose classes are used one after the other; None mixes all.
    """

    offsets: np.ndarray
    _: KW_ONLY
    batch_size: int
    images_per_class: int = 1
    num_batches: int
    seed: int
    epoch: int
    first_batch: int = 0
    process: int = 0
    num_processes: int = 1
    regions: np.ndarray | None = None

    @property
    def part(self) -> slice:
        """The indices of this process's images in each batch."""
        start, end = (process * self.batch_size // self.num_processes for process in (self.process, self.process + 1))
        return slice(start, end)

    def __len__(self) -> int:
        return self.num_batches - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        num_classes, all_classes = self.batch_size // self.images_per_class, len(self.offsets) - 1

        @lru_cache(maxsize=2)  # the order of millions of images takes longer than a step
        def order_of(turn: int) -> np.ndarray:
            generator = np.random.default_rng([self.seed, self.epoch, 0, turn])
            order = generator.permutation(all_classes)
            if self.regions is None:
                return order
            ranks = generator.permutation(int(self.regions.max()) + 1)
            return order[np.argsort(ranks[self.regions[order]], kind="stable")]

        for step in range(self.first_batch, self.num_batches):
            indices = np.arange(step * num_classes, (step + 1) * num_classes)
            classes = np.empty(num_classes, np.int64)
            for turn in np.unique(indices // all_classes).tolist():
                now = indices // all_classes == turn
                classes[now] = order_of(turn)[indices[now] % all_classes]
            generator = np.random.default_rng([self.seed, self.epoch, 1, step])
            starts = self.offsets[classes, None]
            picks = _picks(self.offsets[classes + 1] - self.offsets[classes], self.images_per_class, generator)
            yield (starts + picks).ravel()[self.part].tolist()


def permuted_batches(count: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Split a random permutation of 0..count-1 into batches; the last one may be smaller, none is empty."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def _picks(sizes: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw integers below each size, int64 (S, count), without replacement; repeat them if a size is below `count`."""
    picks = np.empty((len(sizes), count), np.int64)
    for k in range(count):
        taken = np.sort(picks[:, :k], axis=1)
        pick = (generator.random(len(sizes)) * np.maximum(sizes - k, 1)).astype(np.int64)
        for other in taken.T:  # the pick is a rank among the remaining numbers: skip taken ones in ascending order
            pick += pick >= other
        picks[:, k] = np.where(k < sizes, pick, picks[np.arange(len(sizes)), k % sizes])
    return picks
