"""The files of a feature store as pieces of work: which are free, and how their features are extracted."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from progeo.engine.log import LOGGER
from progeo.features.batches import feature_batches
from progeo.features.claims import Claims
from progeo.features.extractor import FeatureExtractor
from progeo.features.store import ShardedRows, can_be_compared
from progeo.places.catalogue import Catalogue
from progeo.progress import Progress


@dataclass(frozen=True)
class ShardFeatures:
    """Features of the images of one file."""

    shard: int
    values: np.ndarray
    """Features (n, D), zeros for unreadable images."""
    unreadable: dict[int, str]
    """Why images could not be read, by catalogue row."""


Compute = Callable[..., Iterator[ShardFeatures]]
"""Extracts the features of shards, with the arguments of `shards_here`."""


@dataclass
class SharedShards:
    """The missing files of a store, which several processes divide among themselves as they get to them."""

    rows: ShardedRows
    claims: Claims
    left: list[int]
    """Shards that were neither written when last looked at, nor given to this process."""
    bar: Progress
    """Counts the images of shards that others wrote."""
    _waits: bool = field(default=False, init=False)

    def free(self) -> Iterator[int]:
        """Claim shards one by one, as they are asked for; those that others have claimed stay left."""
        shards, of_others = self.left, list[int]()
        for index, shard in enumerate(shards, start=1):
            of_others = [each for each in of_others if not self._is_written(each)]
            if self._is_written(shard):
                continue
            if not self.claims.take(_claim(shard)):
                of_others.append(shard)
            elif self._is_written(shard):  # since it was looked at
                self.claims.release(_claim(shard))
            else:
                self.left = [*of_others, *shards[index:]]
                yield shard
        self.left = of_others

    def written(self, shard: int) -> None:
        """Give up the claim of a shard that this process has written."""
        self.claims.release(_claim(shard))

    def wait(self) -> None:
        """Wait a moment for others to write the shards that are left."""
        if not self._waits:
            holder = self.claims.holder(_claim(self.left[0]))
            LOGGER.info("waiting for %d files of %s, which %s writes", len(self.left), self.rows.folder, holder)
        self._waits = True
        self.claims.wait()

    def _is_written(self, shard: int) -> bool:
        if not self.rows.path(shard).is_file():
            return False
        self.bar.update(len(self.rows.shard_rows(shard)))
        return True


def remove_old_claims(rows: ShardedRows, claims: Claims) -> None:
    """Remove the claims of files that are written, whose processes were killed before they could."""
    written = {_claim(shard) for shard in rows.shards} - {_claim(shard) for shard in rows.missing_shards()}
    for name in written.intersection(claims.names()):
        claims.release(name)


def shards_here(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    rows: ShardedRows,
    shards: Iterable[int],
    *,
    batch_size: int,
    full_batch: int | None,
    num_workers: int,
    bar: Progress,
) -> Iterator[ShardFeatures]:
    """Extract the features of shards in this process; the next shard is asked for when its images can be decoded.

    Args:
        rows: says which rows a shard holds, and at what precision.
        full_batch: see `FeatureExtractor.full_batch`.

    Raises:
        ValueError: features are not finite.
    """
    images, asked = extractor.images(catalogue), deque[int]()

    def batches() -> Iterator[np.ndarray]:
        for shard in shards:
            asked.append(shard)
            yield from extractor.batches(images, rows.shard_rows(shard), batch_size)

    found = feature_batches(
        extractor.extract,
        images,
        batches(),
        width=extractor.width,
        num_workers=num_workers,
        bar=bar,
        filled_to=full_batch,
    )
    num_missing = 0
    for batch in found:
        if num_missing == 0:
            shard_rows = rows.shard_rows(asked[0])
            num_missing = len(shard_rows)
            features = ShardFeatures(asked.popleft(), np.zeros((num_missing, rows.width), rows.dtype), {})
        with np.errstate(over="ignore"):  # reported with the name of the image
            values = batch.values.astype(rows.dtype, copy=False)
        _check_finite(values, batch.rows, extractor.what, catalogue)
        features.values[batch.rows - shard_rows.start] = values
        features.unreadable.update(batch.unreadable)
        num_missing -= len(batch.rows) + len(batch.unreadable)
        if num_missing == 0:
            yield features


def _claim(shard: int) -> str:
    return f"{shard:05}"


def _check_finite(values: np.ndarray, rows: np.ndarray, what: str, catalogue: Catalogue) -> None:
    infinite = rows[~can_be_compared(values)]
    if len(infinite):
        raise ValueError(
            f"The {what} of {catalogue.path(int(infinite[0]))} are not finite, or too large for {values.dtype}: are "
            f"the weights finite, and those of this architecture? With `mixed_precision` fp16, try bf16."
        )
