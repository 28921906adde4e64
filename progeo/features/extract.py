"""Extract the features of a catalogue with a network, cached on disk for later runs."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from accelerate import Accelerator

from progeo.atomic import remove_abandoned
from progeo.data.datasets import max_unreadable
from progeo.engine.accelerator import of_main_process
from progeo.engine.log import LOGGER
from progeo.features.batches import FeatureBatch, feature_batches
from progeo.features.cache import IMAGE_FOLDER, Cache, prepared_folder
from progeo.features.extractor import FeatureExtractor
from progeo.features.store import ShardedRows, can_be_compared
from progeo.features.unreadable import check_unreadable, read_reasons, report_unreadable, write_reasons
from progeo.locks import locked_if_free, was_locked
from progeo.models.preprocessing import depends_on_shape
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of the images of a catalogue."""

    rows: ShardedRows
    """Features (N, D), in the order of the catalogue."""
    unreadable: np.ndarray
    """Sorted row indices of images that cannot be read and have no features."""


def extract_features(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    cache: Cache,
    batch_size: int,
    num_workers: int,
    max_unreadable_fraction: float,
) -> ExtractedFeatures:
    """Extract features for every image of a catalogue, computing only those missing from the cache.

    The cache subfolder is named by a hash of all metadata that features depend on and the image folder; for images that
    were moved or copied, the features of the former folder are reused. Each process writes its share of the missing
    files, so an interrupted extraction resumes where it stopped.

    Args:
        accelerator: gives the precision and the processes.
        num_workers: decoding processes, for each process.
        max_unreadable_fraction: maximum fraction of unreadable images, 0 to 1.

    Raises:
        ValueError: the cached features were made from something else, or too many images cannot be read.
    """
    shard_size = _shard_size(len(catalogue), extractor, batch_size)
    depends_on = _depends_on(extractor, catalogue, accelerator.mixed_precision, cache.keep_as, shard_size)
    folder = prepared_folder(cache, depends_on, catalogue, shard_size) if accelerator.is_main_process else None
    folder = of_main_process(folder)
    rows = ShardedRows(
        folder, num_rows=len(catalogue), width=extractor.width, shard_size=shard_size, dtype=cache.keep_as
    )
    allowed = max_unreadable(max_unreadable_fraction, len(catalogue))
    writes = accelerator.is_main_process and (bool(rows.missing_shards()) or was_locked(folder))
    with locked_if_free(folder, wait=cache.wait) if writes else nullcontext():
        if writes:
            remove_abandoned(folder)
        if extractor.prepare is not None and of_main_process(bool(rows.missing_shards())):
            extractor.prepare(rows)
        accelerator.wait_for_everyone()  # until the main process has the lock
        shards = rows.missing_shards(accelerator.process_index, accelerator.num_processes)
        if shards:
            images = extractor.images(catalogue)
            batches = feature_batches(
                extractor.extract,
                images,
                chain.from_iterable(extractor.batches(images, rows.shard_rows(shard), batch_size) for shard in shards),
                total=sum(len(rows.shard_rows(shard)) for shard in shards),
                width=extractor.width,
                num_workers=num_workers,
                what=extractor.what,
                hidden=not accelerator.is_main_process,
                filled_to=extractor.full_batch(catalogue, batch_size),
            )
            _write_shards(rows, shards, batches, extractor.what, catalogue, allowed=allowed)
        accelerator.wait_for_everyone()
    if cache.is_kept:
        done = "written to" if shards else "found in"
        LOGGER.info("%s of %d images %s %s", extractor.what, len(catalogue), done, folder)
    reasons = read_reasons(rows, catalogue)
    check_unreadable(reasons, allowed, len(catalogue))
    report_unreadable(reasons, folder, catalogue)
    return ExtractedFeatures(rows, np.array(sorted(reasons), np.int64))


def _depends_on(
    extractor: FeatureExtractor, catalogue: Catalogue, mixed_precision: str, keep_as: str, shard_size: int
) -> dict[str, Any]:
    """Collect all metadata that features depend on, as JSON restores it."""
    metadata = {
        **extractor.depends_on(),
        "image_size": list(extractor.image_size),
        "preprocessing": extractor.preprocessing,
        "orientation": extractor.orientation,
        **({} if extractor.resize == "bilinear" else {"resize": extractor.resize}),  # bilinear before it was a choice
        **({"fast_decode": True} if extractor.fast_decode else {}),  # all pixels before it was a choice
        "mixed_precision": mixed_precision,
        "kept_as": keep_as,
        IMAGE_FOLDER: str(catalogue.folder.resolve()),
        "image_list": catalogue.fingerprint,
        "num_images": len(catalogue),
        "rows_per_file": shard_size,
    }
    return json.loads(json.dumps(metadata))


def _shard_size(num_images: int, extractor: FeatureExtractor, batch_size: int) -> int:
    """Return rows per file: enough files to resume and to share between processes, but not too many.

    Images are batched by shape within a file: where shapes differ, it takes many images to fill the batches.
    """
    min_size = 512 if depends_on_shape(extractor.preprocessing) else 64
    size = min(8192, max(min_size, num_images // 16))
    return -(-size // batch_size) * batch_size if extractor.depends_on_batch else size


def _write_shards(
    rows: ShardedRows,
    shards: list[int],
    batches: Iterator[FeatureBatch],
    what: str,
    catalogue: Catalogue,
    *,
    allowed: int,
) -> None:
    """Write these shards from their batches, each with a list of its unreadable images, at most `allowed` in all."""
    unreadable: dict[int, str] = {}
    for shard in shards:
        shard_rows = rows.shard_rows(shard)
        features = np.zeros((len(shard_rows), rows.width), rows.dtype)
        reasons: dict[int, str] = {}
        num_missing = len(shard_rows)
        while num_missing:
            batch = next(batches)
            with np.errstate(over="ignore"):  # reported with the name of the image
                values = batch.values.astype(rows.dtype, copy=False)
            _check_finite(values, batch.rows, what, catalogue)
            features[batch.rows - shard_rows.start] = values
            reasons |= batch.unreadable
            num_missing -= len(batch.rows) + len(batch.unreadable)
        unreadable |= reasons
        check_unreadable(unreadable, allowed, len(rows))
        write_reasons(rows, shard, reasons, catalogue)
        rows.write_shard(shard, features)


def _check_finite(values: np.ndarray, rows: np.ndarray, what: str, catalogue: Catalogue) -> None:
    infinite = rows[~can_be_compared(values)]
    if len(infinite):
        raise ValueError(
            f"The {what} of {catalogue.path(int(infinite[0]))} are not finite, or too large for {values.dtype}: are "
            f"the weights finite, and those of this architecture? With `mixed_precision` fp16, try bf16."
        )
