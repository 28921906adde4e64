"""Localize the photos of several requests together, which takes less time than one by one."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from progeo.localization.localizations import Localization
from progeo.localization.place_index import PlaceIndex
from progeo.service.queries import Query


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Photos of a request, and the results that it waits for."""

    index: PlaceIndex
    query: Query
    photos: Sequence[np.ndarray]
    results: "asyncio.Future[list[Localization]]"

    def localized_with(self, other: "_Waiting") -> bool:
        return self.index is other.index and self.query == other.query


class Batcher:
    """One thread that localizes photos, always those of all requests that wait and fit in a batch.

    Nothing waits for a batch to fill up: while one runs, the next one gathers.
    """

    def __init__(self, batch_size: int, *, on_batch: Callable[[int], object]) -> None:
        """Prepare the thread.

        Args:
            batch_size: maximum number of photos of a batch, unless one request has more.
            on_batch: called with the number of photos of every batch.
        """
        self._batch_size = batch_size
        self._on_batch = on_batch
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, "localize")
        self._work: asyncio.Task[None] | None = None

    async def localize(self, index: PlaceIndex, query: Query, photos: Sequence[np.ndarray]) -> list[Localization]:
        """Localize photos, uint8 (H, W, 3).

        Raises:
            ValueError: as `PlaceIndex.localize`.
        """
        waiting = _Waiting(index, query, photos, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._localize_waiting())
        return await waiting.results

    def close(self) -> None:
        """End the thread, after its batch."""
        self._thread.shutdown()

    async def _localize_waiting(self) -> None:
        while batch := self._next():
            self._on_batch(sum(len(each.photos) for each in batch))
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._localized, batch)
            for each, results in zip(batch, found, strict=True):
                if each.results.done():  # its request was given up
                    continue
                if isinstance(results, Exception):
                    each.results.set_exception(results)
                else:
                    each.results.set_result(results)

    def _next(self) -> list[_Waiting]:
        """Take those that wait longest and are localized alike; none if nothing waits."""
        batch: list[_Waiting] = []
        count, others = 0, []
        for each in self._waiting:
            if each.results.done():
                continue
            if not batch or (each.localized_with(batch[0]) and count + len(each.photos) <= self._batch_size):
                batch.append(each)
                count += len(each.photos)
            else:
                others.append(each)
        self._waiting = others
        return batch

    def _localized(self, batch: Sequence[_Waiting]) -> Sequence[list[Localization] | Exception]:
        """Localize a batch in the thread; an error of one request is not one of the others."""
        index, query = batch[0].index, batch[0].query
        try:
            results = query.localize(index, [photo for each in batch for photo in each.photos], self._batch_size)
        except Exception as error:  # for the request that waits, whatever it is
            return [error] if len(batch) == 1 else [self._localized([each])[0] for each in batch]
        ends = np.cumsum([len(each.photos) for each in batch])
        return [results[end - len(each.photos) : end] for each, end in zip(batch, ends, strict=True)]
