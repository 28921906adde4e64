"""Cache folders of features: found by what the features depend on, and checked for images that changed since."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.atomic import replacing
from progeo.data.contents import SEEN, changed_files, rows_looked_at, see_files
from progeo.engine.log import LOGGER
from progeo.features.store import ShardedRows, load_array
from progeo.files import read_json, write_json
from progeo.places.catalogue import Catalogue

IMAGE_FOLDER = "image_folder"
"""The only entry of a cache's metadata that features do not depend on: the folder of the images."""
_METADATA = "description.json"
_CATALOGUE = "catalogue.arrow"
_FILES = "files.npy"
_NAME = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Cache:
    """Location and precision of cached features."""

    folder: Path
    keep_as: str
    """Precision of the cached features: float16 or float32."""
    setting: str
    """Name of the setting that gives the cache folder, for errors."""
    is_kept: bool = True
    """Whether the folder stays, so that logs name it."""
    wait: bool = False
    """Whether to wait for another process that extracts the same features."""


def prepared_folder(cache: Cache, depends_on: Mapping[str, Any], catalogue: Catalogue, shard_size: int) -> Path:
    """Return the folder of these features: check it if it exists, create it with its metadata otherwise.

    Args:
        depends_on: all metadata that features depend on, and the `IMAGE_FOLDER`, as JSON restores it.
        shard_size: rows per file.

    Raises:
        ValueError: the folder is corrupt, or images changed since their features were extracted.
    """
    folder = cache.folder / hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    if (folder / _METADATA).is_file():
        rows = ShardedRows(folder, num_rows=len(catalogue), width=0, shard_size=shard_size)
        try:
            _check_folder(rows, depends_on, catalogue)
        except ValueError as error:
            raise ValueError(f"{error}: remove that folder, or name another `{cache.setting}`.") from None
        return folder
    if (moved := _folder_before_move(cache.folder, depends_on, catalogue)) is not None:
        return moved
    catalogue.save(folder / _CATALOGUE)
    _save_files(folder, catalogue)
    write_json(folder / _METADATA, depends_on)
    return folder


def _check_folder(rows: ShardedRows, depends_on: Mapping[str, Any], catalogue: Catalogue) -> None:
    """Check that a cache folder holds the expected metadata and that its images are unchanged."""
    folder, stored, missing = rows.folder, read_json(rows.folder / _METADATA), rows.missing_shards()
    if not isinstance(stored, dict):
        raise ValueError(f"{folder / _METADATA} is corrupt")
    for name, value in depends_on.items():
        if stored.get(name) != value:
            raise ValueError(f"What is in {folder} was made with {name} = {stored.get(name)}, now it is {value}")
    before = _load_files(folder, len(catalogue))
    changed = changed_files(before, catalogue)
    changed = changed[~np.isin(changed // rows.shard_size, missing)]  # these may have been repaired meanwhile
    if len(changed):
        raise ValueError(
            f"{len(changed)} of {len(before)} images looked at changed since their features were extracted to "
            f"{folder}, the first is {catalogue.path(changed[0])}"
        )
    if missing:
        _save_files(folder, catalogue)


def _folder_before_move(cache: Path, depends_on: Mapping[str, Any], catalogue: Catalogue) -> Path | None:
    """Find a cache folder with features of the same images under another path.

    Two data sets may share file names, so the file sizes and sampled contents must match as well.
    """
    beside = sorted(cache.iterdir()) if cache.is_dir() else []
    for folder in (path for path in beside if _NAME.fullmatch(path.name) and (path / _METADATA).is_file()):
        try:
            stored = read_json(folder / _METADATA)
            if not isinstance(stored, dict) or {**stored, IMAGE_FOLDER: depends_on[IMAGE_FOLDER]} != depends_on:
                continue
            before = _load_files(folder, len(catalogue))
        except ValueError:  # corrupt; a caller that needs this very folder reports it
            continue
        if not len(changed_files(before, catalogue)):
            LOGGER.info("%s has the features of these images, extracted in %s", folder, stored[IMAGE_FOLDER])
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
