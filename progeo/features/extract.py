"""Extract the features of a catalogue with a network, cached on disk for later runs."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from progeo.data.contents import SEEN, changed_files, rows_looked_at, see_files
from progeo.data.datasets import CatalogueImages, max_unreadable
from progeo.data.decode import read_shape
from progeo.data.loaders import batches_by_shape
from progeo.engine.accelerator import of_main_process
from progeo.engine.log import LOGGER
from progeo.features.batches import feature_batches
from progeo.features.store import ShardedRows, load_array
from progeo.files import each_file, read_json, replacing, write_json
from progeo.image_files import Orientation
from progeo.models.options import QueryPreprocessing
from progeo.models.preprocessing import depends_on_shape, preprocess_image, preprocessed_shape
from progeo.places.catalogue import Catalogue

_DESCRIPTION = "description.json"
_CATALOGUE = "catalogue.arrow"
_FILES = "files.npy"
_PLACE = "image_folder"
"""The only entry of a cache's metadata that features do not depend on: where the images lie."""
_NAME = re.compile("[0-9a-f]{16}")
_MAX_REASONS_SHOWN = 10


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that extracts features, with everything that its features depend on."""

    extract: Callable[[Tensor], Tensor]
    """Maps uint8 images (B, 3, H, W), or their crops (B, 5, 3, H, W), on the CPU to features (B, D) on the CPU."""
    what: str
    """Name of the features in logs and errors, such as `image features` or `descriptors`."""
    width: int
    """Feature dimension D."""
    image_size: tuple[int, int]
    """Height and width in pixels that `preprocessing` resizes to, unless it is native."""
    preprocessing: QueryPreprocessing
    """Preprocessing of every image."""
    depends_on: Callable[[], Mapping[str, Any]]
    """Returns the weights' fingerprint and all other metadata that changes features, as plain values. Only called for
    the cache."""
    orientation: Orientation = "exif"
    """Whether images are rotated upright by their EXIF orientation first."""
    depends_on_batch: bool = False
    """Whether features depend on the other images of their batch (batch norm). Batches then hold only consecutive
    images of the catalogue, without padding."""
    prepare: Callable[[ShardedRows], None] | None = None
    """Hook that all processes call once before extraction, with the feature files; not called if all files exist."""

    def images(self, catalogue: Catalogue) -> CatalogueImages:
        """Return the preprocessed images of a catalogue as a dataset."""
        preprocess = partial(preprocess_image, kind=self.preprocessing, size=self.image_size)
        return CatalogueImages(catalogue, preprocess, self.orientation)

    def batches(self, catalogue: Catalogue, rows: range, batch_size: int) -> list[np.ndarray]:
        """Split rows into batches of one shape each, with at most the pixels of `batch_size` images of `image_size`."""
        if depends_on_shape(self.preprocessing):
            names = map(catalogue.name, rows)
            found = each_file(
                lambda name: read_shape(catalogue.folder / name, self.orientation), names, total=len(rows)
            )
            own = [shape or self.image_size for shape in found]
            shapes = np.array([preprocessed_shape(self.preprocessing, self.image_size, each) for each in own])
        else:
            shape = preprocessed_shape(self.preprocessing, self.image_size, None)
            shapes = np.broadcast_to(shape, (len(rows), len(shape)))
        max_pixels = batch_size * math.prod(self.image_size)
        return batches_by_shape(np.array(rows), shapes, batch_size=batch_size, max_pixels=max_pixels)

    def full_batch(self, catalogue: Catalogue, batch_size: int) -> int | None:
        """Return the size that every batch is padded to, so that features do not depend on the rest of their batch.

        It is the batch size, or the number of images if there are fewer; 1 where shapes differ, because most batches
        are small then. None where features depend on the images of their batch, since zeros would change them.
        """
        if self.depends_on_batch:
            return None
        if depends_on_shape(self.preprocessing):
            return 1
        return len(self.batches(catalogue, range(min(len(catalogue), batch_size)), batch_size)[0])


@dataclass(frozen=True)
class Cache:
    """Location and precision of cached features."""

    folder: Path
    keep_as: str
    """Precision of the cached features: float16 or float32."""
    setting: str
    """Name of the setting that gives the cache folder, for errors."""
    fraction_setting: str
    """Name of the setting that limits the fraction of unreadable images, for errors."""


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
        extractor: the network.
        catalogue: N images.
        accelerator: gives the precision and the processes.
        cache: location and precision of the cached features.
        batch_size: images per batch.
        num_workers: decoding processes, for each process.
        max_unreadable_fraction: maximum fraction of unreadable images, 0 to 1.

    Raises:
        ValueError: the cached features were made from something else, or too many images cannot be read.
    """
    shard_size = _shard_size(len(catalogue), extractor, batch_size)
    depends_on = _depends_on(extractor, catalogue, accelerator.mixed_precision, cache.keep_as, shard_size)
    folder = _prepared_folder(cache, depends_on, catalogue, shard_size) if accelerator.is_main_process else None
    folder = of_main_process(folder)
    rows = ShardedRows(
        folder, num_rows=len(catalogue), width=extractor.width, shard_size=shard_size, dtype=cache.keep_as
    )
    if extractor.prepare is not None and of_main_process(bool(rows.missing_shards())):
        extractor.prepare(rows)
    mine = rows.missing_shards(accelerator.process_index, accelerator.num_processes)
    allowed = max_unreadable(max_unreadable_fraction, len(catalogue))
    if mine:
        _describe(
            extractor,
            catalogue,
            rows,
            shards=mine,
            hidden=not accelerator.is_main_process,
            batch_size=batch_size,
            num_workers=num_workers,
            allowed=allowed,
            setting=cache.fraction_setting,
        )
    accelerator.wait_for_everyone()
    LOGGER.info("%s of %d images %s %s", extractor.what, len(catalogue), "written to" if mine else "found in", folder)
    reasons = _recorded_reasons(rows, catalogue)
    _report_unreadable(reasons, folder, allowed, catalogue, cache.fraction_setting)
    return ExtractedFeatures(rows, np.array(sorted(reasons), np.int64))


def _depends_on(
    extractor: FeatureExtractor, catalogue: Catalogue, mixed_precision: str, keep_as: str, shard_size: int
) -> dict[str, Any]:
    """Collect all metadata that features depend on, as JSON restores it."""
    depends_on = {
        **extractor.depends_on(),
        "image_size": list(extractor.image_size),
        "preprocessing": extractor.preprocessing,
        "orientation": extractor.orientation,
        "mixed_precision": mixed_precision,
        "kept_as": keep_as,
        _PLACE: str(catalogue.folder.resolve()),
        "image_list": catalogue.fingerprint,
        "num_images": len(catalogue),
        "rows_per_file": shard_size,
    }
    return json.loads(json.dumps(depends_on))


def _shard_size(num_images: int, extractor: FeatureExtractor, batch_size: int) -> int:
    """Return rows per file: enough files to resume and to share between processes, but not too many.

    Images are batched by shape within a file: where shapes differ, it takes many images to fill the batches.
    """
    least = 512 if depends_on_shape(extractor.preprocessing) else 64
    size = min(8192, max(least, num_images // 16))
    return -(-size // batch_size) * batch_size if extractor.depends_on_batch else size


def _prepared_folder(cache: Cache, depends_on: Mapping[str, Any], catalogue: Catalogue, shard_size: int) -> Path:
    """Return the cache folder of these features: check it if it exists, create it with its metadata otherwise."""
    folder = cache.folder / hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    if (folder / _DESCRIPTION).is_file():
        rows = ShardedRows(folder, num_rows=len(catalogue), width=0, shard_size=shard_size)
        _check_folder(rows, depends_on, catalogue, f"remove that folder, or name another --{cache.setting}")
        return folder
    if (elsewhere := _of_former_place(cache.folder, depends_on, catalogue)) is not None:
        return elsewhere
    catalogue.save(folder / _CATALOGUE)
    _save_files(folder, catalogue)
    write_json(folder / _DESCRIPTION, depends_on)
    return folder


def _check_folder(rows: ShardedRows, depends_on: Mapping[str, Any], catalogue: Catalogue, advice: str) -> None:
    """Check that a cache folder holds the expected metadata and that its images are unchanged."""
    folder, stored, missing = rows.folder, read_json(rows.folder / _DESCRIPTION), rows.missing_shards()
    if not isinstance(stored, dict):
        raise ValueError(f"{folder / _DESCRIPTION} is corrupt: {advice}.")
    for name, value in depends_on.items():
        if stored.get(name) != value:
            raise ValueError(
                f"What is in {folder} was made with {name} = {stored.get(name)}, now it is {value}: {advice}."
            )
    try:
        before = _load_files(folder, len(catalogue))
    except ValueError as error:
        raise ValueError(f"{error}: {advice}.") from None
    changed = changed_files(before, catalogue)
    changed = changed[~np.isin(changed // rows.shard_size, missing)]  # these may have been repaired meanwhile
    if len(changed):
        raise ValueError(
            f"{len(changed)} of {len(before)} images looked at changed since they were described in {folder}, "
            f"the first is {catalogue.path(changed[0])}: {advice}."
        )
    if missing:
        _save_files(folder, catalogue)


def _of_former_place(cache: Path, depends_on: Mapping[str, Any], catalogue: Catalogue) -> Path | None:
    """Find a cache folder with features of the same images under another path.

    Two data sets may share file names, so the file sizes and sampled contents must match as well.
    """
    beside = sorted(cache.iterdir()) if cache.is_dir() else []
    for folder in (path for path in beside if _NAME.fullmatch(path.name) and (path / _DESCRIPTION).is_file()):
        try:
            stored = read_json(folder / _DESCRIPTION)
            if not isinstance(stored, dict) or {**stored, _PLACE: depends_on[_PLACE]} != depends_on:
                continue
            before = _load_files(folder, len(catalogue))
        except ValueError:  # corrupt; a caller that needs this very folder reports it
            continue
        if not len(changed_files(before, catalogue)):
            LOGGER.info("the images of %s were described before, in %s", catalogue.folder, stored[_PLACE])
            return folder
    return None


def _save_files(folder: Path, catalogue: Catalogue) -> None:
    with replacing(folder / _FILES) as temporary:
        np.save(temporary, see_files(catalogue))


def _load_files(folder: Path, num_images: int) -> np.ndarray:
    """Load the array that `_save_files` saved, see `see_files`.

    Raises:
        ValueError: the file is corrupt or missing; the message names it.
    """
    if not (folder / _FILES).is_file():
        raise ValueError(f"There is no {folder / _FILES}")
    seen = load_array(folder / _FILES)
    if seen.dtype != SEEN or len(seen) != len(rows_looked_at(num_images)):
        raise ValueError(f"{folder / _FILES} is not what was written there")
    return seen


def _describe(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    rows: ShardedRows,
    *,
    shards: list[int],
    hidden: bool,
    batch_size: int,
    num_workers: int,
    allowed: int,
    setting: str,
) -> None:
    """Extract and write these shards, and list unreadable images, at most `allowed` in all, in a file beside each."""
    by_shard = (extractor.batches(catalogue, rows.shard_rows(shard), batch_size) for shard in shards)
    coming = feature_batches(
        extractor.extract,
        extractor.images(catalogue),
        chain.from_iterable(by_shard),
        total=sum(len(rows.shard_rows(shard)) for shard in shards),
        width=extractor.width,
        num_workers=num_workers,
        what=extractor.what,
        hidden=hidden,
        filled_to=extractor.full_batch(catalogue, batch_size),
    )
    num_unreadable = 0
    for shard in shards:
        mine, reasons, left = rows.shard_rows(shard), {}, len(rows.shard_rows(shard))
        described = np.zeros((len(mine), rows.width), rows.dtype)
        while left:
            batch = next(coming)
            values = batch.values.astype(rows.dtype, copy=False)
            _check_finite(values, batch.rows, extractor, catalogue)
            described[batch.rows - mine.start] = values
            reasons |= batch.unreadable
            left -= len(batch.rows) + len(batch.unreadable)
        num_unreadable += len(reasons)
        if num_unreadable > allowed:
            raise ValueError(_too_many_unreadable(num_unreadable, next(iter(reasons.values())), len(rows), setting))
        reasons_file = _reasons_file(rows, shard)
        if reasons:  # paths relative to the image folder, as it may be moved
            below = {row: why.replace(str(catalogue.path(row)), catalogue.name(row)) for row, why in reasons.items()}
            write_json(reasons_file, below)
        else:  # remove a file of an earlier run, in which an image could not be read
            reasons_file.unlink(missing_ok=True)
        rows.write_shard(shard, described)


def _check_finite(values: np.ndarray, rows: np.ndarray, extractor: FeatureExtractor, catalogue: Catalogue) -> None:
    for place in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
        raise ValueError(
            f"The {extractor.what} of {catalogue.path(int(rows[place]))} do not fit {values.dtype}: "
            f"are the weights those of this architecture? With --mixed_precision fp16, try bf16."
        )


def _reasons_file(rows: ShardedRows, shard: int) -> Path:
    return rows.folder / f"unreadable_{shard:05}.json"


def _recorded_reasons(rows: ShardedRows, catalogue: Catalogue) -> dict[int, str]:
    """Load the reasons why images could not be read, by row."""
    files = [file for shard in rows.shards if (file := _reasons_file(rows, shard)).is_file()]
    found = {int(row): reason for file in files for row, reason in read_json(file).items()}
    return {row: reason.replace(catalogue.name(row), str(catalogue.path(row))) for row, reason in found.items()}


def _report_unreadable(
    reasons: Mapping[int, str], folder: Path, allowed: int, catalogue: Catalogue, setting: str
) -> None:
    if not reasons:
        return
    if len(reasons) > allowed:
        raise ValueError(_too_many_unreadable(len(reasons), next(iter(reasons.values())), len(catalogue), setting))
    if len(reasons) == len(catalogue):
        raise ValueError(
            f"None of the {len(catalogue)} images of {catalogue.folder} can be read. One of them: {reasons[0]}"
        )
    LOGGER.warning(
        "%d of %d images cannot be read and are skipped; repair them and remove %s to have them in",
        len(reasons),
        len(catalogue),
        folder,
    )
    for reason in list(reasons.values())[:_MAX_REASONS_SHOWN]:
        LOGGER.warning("skipped: %s", reason)
    if len(reasons) > _MAX_REASONS_SHOWN:
        LOGGER.warning("and %d more, listed in %s", len(reasons) - _MAX_REASONS_SHOWN, folder / "unreadable_*.json")


def _too_many_unreadable(count: int, first: str, num_images: int, setting: str) -> str:
    return (
        f"{count} of {num_images} images cannot be read, more than --{setting} allows: mend them, take them out, or "
        f"raise it to continue without them. One of them: {first}"
    )
