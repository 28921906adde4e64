"""Extract the features of a catalogue with a network, cached on disk for later runs."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from accelerate import Accelerator

from progeo.atomic import remove_abandoned
from progeo.data.datasets import max_unreadable
from progeo.engine.accelerator import of_main_process
from progeo.engine.log import LOGGER
from progeo.features.cache import Cache, find_folder, prepared_folder
from progeo.features.claims import Claims
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import Share
from progeo.features.shards import Compute, ShardFeatures, SharedShards, remove_old_claims, shards_here
from progeo.features.store import ShardedRows
from progeo.features.unreadable import check_unreadable, read_reasons, report_unreadable, write_reasons
from progeo.models.preprocessing import depends_on_shape
from progeo.places.catalogue import Catalogue
from progeo.progress import Progress


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
    share: Share | None = None,
    compute: Compute = shards_here,
) -> ExtractedFeatures:
    """Extract features for every image of a catalogue, computing only those missing from the cache.

    The cache subfolder is found by all metadata that features depend on and the contents of the images. All processes
    that reach it, of this command and of others, divide the missing files among themselves, and each returns when all
    are written, those of processes that ended before by another; an interrupted extraction resumes where it stopped.

    Args:
        accelerator: gives the precision and the processes.
        num_workers: decoding processes, for each process.
        max_unreadable_fraction: maximum fraction of unreadable images, 0 to 1.
        share: extract a share of the files only, and return when it is written; others have no features then.
        compute: extracts the features of files.

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
    missing = sorted(set(rows.missing_shards()).intersection(share.of(rows.shards) if share else rows.shards))
    with Claims(folder) as claims:
        if of_main_process(bool(missing)):
            if extractor.prepare is not None:
                extractor.prepare(rows, claims)
            total, hidden = sum(len(rows.shard_rows(shard)) for shard in missing), not accelerator.is_main_process
            with Progress(extractor.what, total=total, hidden=hidden) as bar:
                found = partial(
                    compute,
                    extractor,
                    catalogue,
                    rows,
                    batch_size=batch_size,
                    full_batch=extractor.full_batch(catalogue, batch_size),
                    num_workers=num_workers,
                    bar=bar,
                )
                shared = SharedShards(rows, claims, missing, bar)
                _write_shards(shared, found, catalogue, allowed=allowed, num_processes=accelerator.num_processes)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:  # of processes that were killed
            remove_abandoned(folder)
            remove_old_claims(rows, claims)
    if cache.is_kept:
        done = "written to" if missing else "found in"
        part = "" if share is None else f"share {share} of the "
        LOGGER.info("%s%s of %d images %s %s", part, extractor.what, len(catalogue), done, folder)
    reasons = read_reasons(rows, catalogue)
    check_unreadable(reasons, allowed, len(catalogue))
    report_unreadable(reasons, folder, catalogue)
    return ExtractedFeatures(rows, np.array(sorted(reasons), np.int64))


def num_missing(
    extractor: FeatureExtractor, catalogue: Catalogue, accelerator: Accelerator, *, cache: Cache, batch_size: int
) -> int:
    """Count the images whose features `extract_features` would extract, as the cache does not hold them.

    Raises:
        ValueError: the cached features were made from something else.
    """
    shard_size = _shard_size(len(catalogue), extractor, batch_size)
    depends_on = _depends_on(extractor, catalogue, accelerator.mixed_precision, cache.keep_as, shard_size)
    found = find_folder(cache, depends_on, catalogue, shard_size)
    if found is None:
        return len(catalogue)
    rows = ShardedRows(found[0], num_rows=len(catalogue), width=extractor.width, shard_size=shard_size)
    return sum(len(rows.shard_rows(shard)) for shard in rows.missing_shards())


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
    shared: SharedShards,
    compute: Callable[[Iterable[int]], Iterator[ShardFeatures]],
    catalogue: Catalogue,
    *,
    allowed: int,
    num_processes: int,
) -> None:
    """Write the missing shards with others, each with a list of its unreadable images, of which `allowed` may be here.

    A loader reads ahead, so that it may claim several small shards at once: of `num_processes` no more than its part.
    """
    rows, unreadable = shared.rows, dict[int, str]()
    while shared.left:
        free = islice(shared.free(), math.ceil(len(shared.left) / num_processes))
        first = next(free, None)
        if first is None:
            if shared.left:
                shared.wait()
            continue
        for features in compute(chain([first], free)):
            unreadable |= features.unreadable
            check_unreadable(unreadable, allowed, len(rows))
            write_reasons(rows, features.shard, features.unreadable, catalogue)
            rows.write_shard(features.shard, features.values)
            shared.written(features.shard)
