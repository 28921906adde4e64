"""Batches for the encoder of what several threads ask for at the same time."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from progeo.features.extractor import FeatureExtractor
from progeo.localization.place_index import PlaceIndex

Extract = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Images of one caller, and the features that it waits for."""

    extract: Extract
    images: Tensor
    features: "Future[Tensor]" = field(default_factory=Future)

    def fits(self, other: "_Waiting") -> bool:
        """Whether the images of another caller can be in the same batch."""
        return self.extract is other.extract and self.images.shape[1:] == other.images.shape[1:]


class Batcher:
    """One thread that runs the encoder, always on all images that wait for it and fit in a batch.

    Nothing waits for a batch to fill up: while one runs, the next one gathers.
    """

    def __init__(self, batch_size: int, *, on_batch: Callable[[int], object] = lambda count: None) -> None:
        """Start the thread.

        Args:
            batch_size: maximum images of a batch, unless one caller gives more.
            on_batch: called with the number of images of every batch.
        """
        self._batch_size = batch_size
        self._on_batch = on_batch
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def batched(self, extract: Extract) -> Extract:
        """Return a function that computes what `extract` does, in batches with what other threads give it."""

        def extract_in_batch(images: Tensor) -> Tensor:
            waiting = _Waiting(extract, images)
            with self._changed:
                self._waiting.append(waiting)
                self._changed.notify()
            return waiting.features.result()

        return extract_in_batch

    def close(self) -> None:
        """End the thread, after what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            try:
                features = batch[0].extract(torch.cat([each.images for each in batch]))
                self._on_batch(len(features))
                for each, part in zip(batch, features.split([len(each.images) for each in batch]), strict=True):
                    each.features.set_result(part)
            except Exception as error:  # what the encoder raises is for the threads that wait for it
                for each in batch:
                    if not each.features.done():
                        each.features.set_exception(error)

    def _next(self) -> list[_Waiting]:
        """Wait for images and take a batch; empty once all is done after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch: list[_Waiting] = []
            count, others = 0, []
            for each in self._waiting:
                if not batch or (batch[0].fits(each) and count + len(each.images) <= self._batch_size):
                    batch.append(each)
                    count += len(each.images)
                else:
                    others.append(each)
            self._waiting = others
            return batch


@dataclass(frozen=True)
class BatchedIndex(PlaceIndex):
    """A place index whose `localize` shares batches of its encoder with other threads."""

    batcher: Batcher = field(kw_only=True)

    @classmethod
    def of(cls, index: PlaceIndex, batcher: Batcher) -> "BatchedIndex":
        """Wrap an opened place index."""
        return cls(**{name: getattr(index, name) for name in PlaceIndex.__dataclass_fields__}, batcher=batcher)

    @cached_property
    def query_extractors(self) -> list[FeatureExtractor]:
        """The feature extractors of queries; those whose features depend on other images of a batch share none."""
        extractors = super().query_extractors
        return [
            each if each.depends_on_batch else replace(each, extract=self.batcher.batched(each.extract))
            for each in extractors
        ]
