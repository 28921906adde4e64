"""Localize the photos of requests: decode them, batch them, answer in time, within what may wait."""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from fastapi import HTTPException

from progeo.engine.log import LOGGER
from progeo.image_files import MAX_PIXELS_VARIABLE, max_pixels
from progeo.localization.localizations import Localization
from progeo.localization.place_index import PlaceIndex, open_index
from progeo.printable import printable
from progeo.service.batching import Batcher
from progeo.service.decoding import Decoders, NoDecoder
from progeo.service.metrics import Metrics
from progeo.service.options import ServiceOptions
from progeo.service.queries import Query
from progeo.service.reloading import ServedIndex
from progeo.service.uploads import UploadedPhoto

_Value = TypeVar("_Value")
_ANSWERS = {True: "known", False: "unknown", None: "no confidence"}
_SOON = {"Retry-After": "1"}
_MAX_PIXELS = 50_000_000
"""Maximum number of pixels of a photo, unless `--max_pixels` gives another."""
_MAX_DECODED_BYTES = 2**31
"""Memory of decoded photos that wait, 2 GiB: they keep all their pixels where they may be verified."""


class Localizer:
    """A place index, the processes that decode photos, and the thread that localizes them."""

    def __init__(self, folder: Path, options: ServiceOptions) -> None:
        """Open the index and start the processes.

        Raises:
            FileNotFoundError, ValueError: as `open_index`.
            NoDecoder: a process cannot be started.
        """
        self.options = options
        self.metrics = Metrics()
        self.index = ServedIndex(
            folder.resolve(),  # a name such as "." would be found in any sentence, see below
            lambda path: open_index(path, device=options.device, mixed_precision=options.mixed_precision),
            on_reload=self._note_reload,
        )
        self._note_index()
        self._decoders = Decoders(
            options.decoders,
            max_pixels=max_pixels() if MAX_PIXELS_VARIABLE in os.environ else _MAX_PIXELS,
            timeout_s=options.answer_s / 2,  # so that there is time to answer the other photos of the request
            on_failure=self.metrics.decoder_restarts.inc,
        )
        self._threads = ThreadPoolExecutor(options.decoders, "decode")
        self._batcher = Batcher(options.batch_size, on_batch=self.metrics.batch_photos.observe)
        self._num_waiting = self._num_decoded_bytes = 0
        self.metrics.waiting_photos.set_function(lambda: self._num_waiting)

    def close(self) -> None:
        """End processes and threads."""
        self._threads.shutdown()
        self._batcher.close()
        self._decoders.close()

    async def follow_index(self) -> None:
        """Look for changes of the index, until cancelled."""
        while True:
            await asyncio.sleep(self.options.reload_s)
            await asyncio.to_thread(self.index.look)

    async def localize(self, photos: Sequence[UploadedPhoto], query: Query) -> tuple[PlaceIndex, list[Localization]]:
        """Localize photos, and return the index that did; the result of one that cannot be decoded has an error.

        Raises:
            HTTPException: too many photos wait, it takes too long, there is only one photo and it cannot be decoded, or
                the index cannot answer the query, or not at the moment.
        """
        index = self.index.current
        with self._waiting(len(photos)):
            results = await self._in_time(self._localized(index, photos, query))
        for result in results:
            if not result.error:
                self.metrics.photos.labels(_ANSWERS[result.known]).inc()
        return index, results

    async def image(self, row: int, side: int, generation: int | None) -> bytes:
        """Return the image of a row of the index as WebP whose longer side is at most `side` pixels.

        Raises:
            HTTPException: there is none, too many photos and images wait, or it takes too long.
        """
        metadata, path = self.index.current.metadata, self.index.image_path(row, generation)
        if self.options.no_images or metadata.holds_classes or path is None:
            raise HTTPException(404, f"There is no image {row} of the index, or not of this generation of it.")
        work = self._in_thread(self._decoders.thumbnail, path, side, metadata.orientation)
        try:
            with self._waiting(1):
                return await self._in_time(work)
        except ValueError:
            raise HTTPException(404, f"The image {row} of the index is not there any more, or corrupt.") from None

    async def _localized(self, index: PlaceIndex, photos: Sequence[UploadedPhoto], query: Query) -> list[Localization]:
        decoded = await asyncio.gather(*(self._decoded(index, photo, query) for photo in photos))
        pixels = [each for each in decoded if isinstance(each, np.ndarray)]
        if not pixels and len(photos) == 1:
            raise HTTPException(422, decoded[0])
        try:
            with self._decoded_memory(pixels):
                found = iter(await self._batcher.localize(index, query, pixels) if pixels else [])
        except ValueError as error:
            raise HTTPException(422, str(error).replace(str(index.folder), "the index")) from None
        except ConnectionError as error:
            LOGGER.error("%s", error)
            raise HTTPException(503, "The index cannot be searched at the moment: try again later.", _SOON) from None
        return [
            Localization(photo.name, error=each) if isinstance(each, str) else next(found)
            for photo, each in zip(photos, decoded, strict=True)
        ]

    async def _decoded(self, index: PlaceIndex, photo: UploadedPhoto, query: Query) -> np.ndarray | str:
        """Decode a photo, or tell why it cannot be decoded."""
        try:
            return await self._in_thread(self._decoders.pixels, photo.content, query.decoding(index))
        except ValueError as error:
            self.metrics.photos.labels("error").inc()
            return f"The photo {photo.name} cannot be decoded: {printable(str(error))}."

    async def _in_thread(self, function: Callable[..., _Value], *arguments: object) -> _Value:
        """Call a function of the decoders.

        Raises:
            HTTPException: there is no process that could decode.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        except NoDecoder as error:
            LOGGER.error("%s", error)
            raise HTTPException(503, "Photos cannot be decoded at the moment: try again later.", _SOON) from None

    @contextmanager
    def _waiting(self, count: int) -> Iterator[None]:
        """Count photos as waiting.

        Raises:
            HTTPException: too many would wait.
        """
        if self._num_waiting + count > self.options.max_waiting:
            raise _too_many()
        self._num_waiting += count
        try:
            yield
        finally:
            self._num_waiting -= count

    @contextmanager
    def _decoded_memory(self, pixels: Sequence[np.ndarray]) -> Iterator[None]:
        """Count the memory of decoded photos.

        Raises:
            HTTPException: others take too much already.
        """
        num_bytes = sum(each.nbytes for each in pixels)
        if self._num_decoded_bytes and self._num_decoded_bytes + num_bytes > _MAX_DECODED_BYTES:
            raise _too_many()
        self._num_decoded_bytes += num_bytes
        try:
            yield
        finally:
            self._num_decoded_bytes -= num_bytes

    async def _in_time(self, work: Awaitable[_Value]) -> _Value:
        limit_s = self.options.answer_s
        try:
            async with asyncio.timeout(limit_s):
                return await work
        except TimeoutError:
            raise HTTPException(
                503,
                f"There was no answer within {limit_s:g} s: try again later.",
                {"Retry-After": str(math.ceil(limit_s))},
            ) from None

    def _note_reload(self, result: str) -> None:
        self.metrics.index_reloads.labels(result).inc()
        self._note_index()

    def _note_index(self) -> None:
        metadata = self.index.current.metadata
        self.metrics.index_images.set(metadata.images)
        self.metrics.index_generation.set(metadata.generation)


def _too_many() -> HTTPException:
    return HTTPException(429, "Too many photos wait for their answer: try again later.", _SOON)
