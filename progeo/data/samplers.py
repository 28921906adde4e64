"""Which images form a batch. Every order is a function of (seed, epoch, step), so a run can go on at any step."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class ClassBatches(Sampler[list[int]]):
    """Batches with one random image from each of `batch_size` classes; every class before any class again.

    Args:
        offsets: images of class c are offsets[c]..offsets[c + 1] - 1, int64 (C + 1,).
        batch_size: images of a batch.
        num_batches: batches of an epoch, however many images there are.
        seed, epoch: what the order depends on.
        first_batch: leave out those before it.
        process, num_processes: give this process its part of each batch.
    """

    def __init__(
        self,
        offsets: np.ndarray,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        epoch: int,
        first_batch: int = 0,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.offsets = offsets
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.epoch = epoch
        self.first_batch = first_batch
        self.part = slice(process * batch_size // num_processes, (process + 1) * batch_size // num_processes)

    def __len__(self) -> int:
        return self.num_batches - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        num_classes = len(self.offsets) - 1
        for step in range(self.first_batch, self.num_batches):
            places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            classes = np.empty(self.batch_size, np.int64)
            for turn in np.unique(places // num_classes):
                order = np.random.default_rng([self.seed, self.epoch, 0, turn]).permutation(num_classes)
                now = places // num_classes == turn
                classes[now] = order[places[now] % num_classes]
            chances = np.random.default_rng([self.seed, self.epoch, 1, step]).random(self.batch_size)
            starts, ends = self.offsets[classes], self.offsets[classes + 1]
            yield (starts + (chances * (ends - starts)).astype(np.int64))[self.part].tolist()


def permuted_batches(count: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """All of 0..count-1 once, in random order, in batches; the last one may be smaller, none is empty."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]
