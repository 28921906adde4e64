"""Images described once by a network, and kept on disk for every later run."""

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
from progeo.models.preprocessing import QueryPreprocessing, depends_on_shape, preprocess_image, preprocessed_shape
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue

_DESCRIPTION = "description.json"
_CATALOGUE = "catalogue.arrow"
_FILES = "files.npy"
_PLACE = "image_folder"
"""The one thing in a description that descriptions do not depend on, where the same images lie elsewhere."""
_NAME = re.compile("[0-9a-f]{16}")
_MAX_REASONS_SHOWN = 10


@dataclass(frozen=True)
class FeatureExtractor:
    """What describes images, and all that its descriptions depend on."""

    extract: Callable[[Tensor], Tensor]
    """uint8 images (B, 3, H, W), or crops of them (B, 5, 3, H, W), on the CPU -> descriptions (B, D) on the CPU."""
    what: str
    """What they are called: image features, descriptors."""
    width: int
    """D."""
    image_size: tuple[int, int]
    """Height and width in pixels that `preprocessing` brings images to, if to any."""
    preprocessing: QueryPreprocessing
    """What becomes of images before."""
    depends_on: Callable[[], Mapping[str, Any]]
    """Weights and all else that changes them; plain values, which only a cache asks for."""
    orientation: Orientation = "exif"
    """Whether images are turned upright first."""
    depends_on_batch: bool = False
    """Whether descriptions depend on the other images of their batch: then a batch is images next to each other in the
    catalogue and nothing else."""
    prepare: Callable[[ShardedRows], None] | None = None
    """What all processes call once before anything is described, with the files to come; not where all are there."""

    def images(self, catalogue: Catalogue) -> CatalogueImages:
        """The images of a catalogue as they are described."""
        preprocess = partial(preprocess_image, kind=self.preprocessing, size=self.image_size)
        return CatalogueImages(catalogue, preprocess, self.orientation)

    def batches(self, catalogue: Catalogue, rows: range, batch_size: int) -> list[np.ndarray]:
        """Batches of one shape each, of at most as many pixels as `batch_size` images of `image_size`."""
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
        """How many images every batch gets, so that no description depends on what else is described.

        Of fewer images than that it is their number, and 1 where shapes differ: most batches are small then. None where
        descriptions do depend on that: zeros would change them.
        """
        if self.depends_on_batch:
            return None
        if depends_on_shape(self.preprocessing):
            return 1
        return len(self.batches(catalogue, range(min(len(catalogue), batch_size)), batch_size)[0])


@dataclass(frozen=True)
class Cache:
    """Where descriptions are kept."""

    folder: Path
    keep_as: str
    """float16 or float32."""
    setting: str
    """The one that names the folder."""
    fraction_setting: str
    """The one that says how many images may be unreadable."""


@dataclass(frozen=True)
class ExtractedFeatures:
    """Descriptions of the images of a catalogue."""

    rows: ShardedRows
    """(N, D), in the order of the catalogue."""
    unreadable: np.ndarray
    """Rows without a description because their image cannot be read, sorted."""


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
    """Descriptions of every image of a catalogue, from the cache as far as they are there.

    They lie in a folder of the cache named after all they depend on and where the images lie; of images that were
    moved or copied, those of the former place are found. Each process writes its share of the missing files, so what
    was stopped goes on where it was.

    Args:
        extractor: the network.
        catalogue: N images.
        accelerator: gives precision and processes.
        cache: where they are kept.
        batch_size: images a batch.
        num_workers: processes that decode images, for each process.
        max_unreadable_fraction: of the images, 0 to 1.

    Raises:
        ValueError: what is cached was made from something else, or too many images cannot be read.
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
    """All that descriptions depend on, as JSON gives it back."""
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
    """Enough files to stop and go on and to share between processes, but not so many that they are a burden.

    The images of a file are put into batches by shape: where shapes differ, it takes many to fill them.
    """
    least = 512 if depends_on_shape(extractor.preprocessing) else 64
    size = min(8192, max(least, num_images // 16))
    return -(-size // batch_size) * batch_size if extractor.depends_on_batch else size


def _prepared_folder(cache: Cache, depends_on: Mapping[str, Any], catalogue: Catalogue, shard_size: int) -> Path:
    """The folder of these descriptions, checked where it is there, and described where it is new."""
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
    """Check that a folder is what it says and that the images are the same."""
    folder, stored, missing = rows.folder, read_json(rows.folder / _DESCRIPTION), rows.missing_shards()
    if not isinstance(stored, dict):
        raise ValueError(f"{folder / _DESCRIPTION} is damaged: {advice}.")
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
    changed = changed[~np.isin(changed // rows.shard_size, missing)]  # these may have been mended in the meantime
    if len(changed):
        raise ValueError(
            f"{len(changed)} of {len(before)} images looked at changed since they were described in {folder}, "
            f"the first is {catalogue.path(changed[0])}: {advice}."
        )
    if missing:
        _save_files(folder, catalogue)


def _of_former_place(cache: Path, depends_on: Mapping[str, Any], catalogue: Catalogue) -> Path | None:
    """A folder of the cache with descriptions of the same images, which lay elsewhere.

    Two sets may have the same names: the sizes and contents that were looked at must be the same as well.
    """
    beside = sorted(cache.iterdir()) if cache.is_dir() else []
    for folder in (path for path in beside if _NAME.fullmatch(path.name) and (path / _DESCRIPTION).is_file()):
        try:
            stored = read_json(folder / _DESCRIPTION)
            if not isinstance(stored, dict) or {**stored, _PLACE: depends_on[_PLACE]} != depends_on:
                continue
            before = _load_files(folder, len(catalogue))
        except ValueError:  # damaged; whoever needs this very folder is told
            continue
        if not len(changed_files(before, catalogue)):
            LOGGER.info("the images of %s were described before, in %s", catalogue.folder, stored[_PLACE])
            return folder
    return None


def _save_files(folder: Path, catalogue: Catalogue) -> None:
    with replacing(folder / _FILES) as temporary:
        np.save(temporary, see_files(catalogue))


def _load_files(folder: Path, num_images: int) -> np.ndarray:
    """Load what `_save_files` saved, see `see_files`.

    Raises:
        ValueError: it is damaged or missing; the sentence names it.
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
    """Write these shards, and beside each one why images of it could not be read, `allowed` of them at most."""
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
        if reasons:  # by names below the folder, as it may be moved
            below = {row: why.replace(str(catalogue.path(row)), catalogue.name(row)) for row, why in reasons.items()}
            write_json(reasons_file, below)
        else:  # of an earlier time, when the image could not be read
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
    """Why images could not be read, by row."""
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
        "%d of %d images cannot be read and are left out; mend them and remove %s to have them in",
        len(reasons),
        len(catalogue),
        folder,
    )
    for reason in list(reasons.values())[:_MAX_REASONS_SHOWN]:
        LOGGER.warning("left out: %s", reason)
    if len(reasons) > _MAX_REASONS_SHOWN:
        LOGGER.warning("and %d more, listed in %s", len(reasons) - _MAX_REASONS_SHOWN, folder / "unreadable_*.json")


def _too_many_unreadable(count: int, first: str, num_images: int, setting: str) -> str:
    return (
        f"{count} of {num_images} images cannot be read, more than --{setting} allows: mend them, take them out, or "
        f"raise it to go on without them. One of them: {first}"
    )
