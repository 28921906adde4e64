"""Cache folders of features: found by what the features depend on, and checked for images that changed since."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.atomic import replacing, replacing_folder
from progeo.data.contents import SEEN, changed_files, contents_digest, rows_looked_at, see_files
from progeo.engine.log import LOGGER
from progeo.features.store import ShardedRows, load_array
from progeo.files import read_json, write_json
from progeo.places.catalogue import Catalogue

_IMAGE_FOLDER = "image_folder"
"""The entry of a cache's metadata that features do not depend on: where the images were when it was made."""
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


def prepared_folder(cache: Cache, depends_on: Mapping[str, Any], catalogue: Catalogue, shard_size: int) -> Path:
    """Return the folder of these features: find it, or create it with its metadata.

    It is found by all that features depend on and by the sizes and sampled contents of the images, wherever they lie:
    machines that reach the images by different paths share it, and two data sets with the same file names do not.

    Args:
        depends_on: all metadata that features depend on, as JSON restores it.
        shard_size: rows per file.

    Raises:
        ValueError: the folder is corrupt, or images changed since their features were extracted.
    """
    place, now = str(catalogue.folder.resolve()), see_files(catalogue)
    names = _names(depends_on, now, place)
    if (found := find_folder(cache, depends_on, catalogue, shard_size, now=now)) is not None:
        folder, is_repaired = found
        if is_repaired:
            _save_files(folder, now)
        return folder
    # Where the name by contents is taken, modification times tell these images from those that it is for.
    made = cache.folder / next((name for name in names if not (cache.folder / name).exists()), names[-1])
    try:
        with replacing_folder(made) as temporary:
            catalogue.save(temporary / _CATALOGUE)
            _save_files(temporary, now)
            write_json(temporary / _METADATA, {**depends_on, _IMAGE_FOLDER: place})
    except ValueError:
        if not (made / _METADATA).is_file():
            raise
        return prepared_folder(cache, depends_on, catalogue, shard_size)  # another process made it just now
    return made


def find_folder(
    cache: Cache,
    depends_on: Mapping[str, Any],
    catalogue: Catalogue,
    shard_size: int,
    *,
    now: np.ndarray | None = None,
) -> tuple[Path, bool] | None:
    """Find the folder of these features, see `prepared_folder`; None if there is none.

    Args:
        now: the images as `see_files` returns them; None looks at them.

    Returns:
        The folder, and whether images without features changed since it was made: they may have been repaired.

    Raises:
        ValueError: as `prepared_folder`.
    """
    place, now = str(catalogue.folder.resolve()), see_files(catalogue) if now is None else now
    try:
        found = _find(cache.folder, depends_on, len(catalogue), now, place)
        if found is not None and len(found[1]):
            _check_repaired(*found, now, catalogue, shard_size)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}: remove that folder, or name another `{cache.setting}`.") from None
    return None if found is None else (found[0], len(found[1]) > 0)


def _find(
    cache: Path, depends_on: Mapping[str, Any], count: int, now: np.ndarray, place: str
) -> tuple[Path, np.ndarray] | None:
    """Find the folder whose images are as now, or else that of this place, and the images that changed since."""
    here: tuple[Path, np.ndarray] | None = None
    for folder, its_place in _folders(cache, _names(depends_on, now, place), depends_on):
        try:
            changed = changed_files(_load_files(folder, count), now, count)
        except ValueError:  # corrupt
            if its_place == place:
                raise
            continue
        if not len(changed):
            if its_place != place:
                LOGGER.info("%s has the features of these images, extracted in %s", folder, its_place)
            return folder, changed
        if its_place == place:
            here = folder, changed
    return here


def _names(depends_on: Mapping[str, Any], now: np.ndarray, place: str) -> list[str]:
    return [_name(depends_on, contents_digest(now)), _name(depends_on, contents_digest(now), place)]


def _name(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _folders(cache: Path, own: Sequence[str], depends_on: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the folders with metadata `depends_on`, those named `own` first, and where their images were.

    Raises:
        ValueError: one of the own folders has other metadata. Other folders are skipped.
    """
    beside = sorted(path for path in cache.iterdir() if _NAME.fullmatch(path.name)) if cache.is_dir() else []
    for folder in sorted(beside, key=lambda path: path.name not in own):
        if not (folder / _METADATA).is_file():
            continue
        try:
            stored = read_json(folder / _METADATA)
            if not isinstance(stored, dict):
                raise ValueError(f"{folder / _METADATA} is corrupt")
            place = stored.pop(_IMAGE_FOLDER, None)
            for name in {**depends_on, **stored}:
                if stored.get(name, ...) != depends_on.get(name, ...):
                    here, now = stored.get(name), depends_on.get(name)
                    raise ValueError(f"What is in {folder} was made with {name} = {here}, now it is {now}")
        except ValueError:
            if folder.name in own:
                raise
        else:
            yield folder, place


def _check_repaired(folder: Path, changed: np.ndarray, now: np.ndarray, catalogue: Catalogue, shard_size: int) -> None:
    """Check that images that changed have no features yet.

    Raises:
        ValueError: images changed whose features are there.
    """
    missing = ShardedRows(folder, num_rows=len(catalogue), width=0, shard_size=shard_size).missing_shards()
    changed = changed[~np.isin(changed // shard_size, missing)]
    if len(changed):
        raise ValueError(
            f"{len(changed)} of {len(now)} images looked at changed since their features were extracted to "
            f"{folder}, the first is {catalogue.path(changed[0])}"
        )


def _save_files(folder: Path, seen: np.ndarray) -> None:
    with replacing(folder / _FILES) as temporary:
        np.save(temporary, seen)


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
