"""Update the folder of a place index safely from several commands at once.

An update is a generation: `index_<generation>.json`, a file that only one command can create, names parts and files
that were written before it and never change. A command that comes second commits on top of the first. `index.json` is a
copy of the newest generation.
"""

import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from progeo.atomic import remove_abandoned
from progeo.disk import remove_folder, sync
from progeo.files import read_json, write_json, write_new_json
from progeo.localization.index_metadata import IndexMetadata, read_index_metadata
from progeo.locks import Lock, NoLocks, try_lock

_Value = TypeVar("_Value")
_METADATA = "index.json"
_NAME = "index_{}.json"
_GENERATION = re.compile(r"index_([0-9]{1,9})\.json")
_PART = re.compile(r"part_([0-9]{5,9})")
_DATA = re.compile(
    rf"{_PART.pattern}|(trained|places)_[0-9a-f]{{12}}\.faiss|removed_[0-9a-f]{{12}}\.npy"
    r"|(catalogue|features)_[0-9a-f]{12}\.arrow"
)
"""Names of data, also of format 1."""
ENCODER_FOLDER = "model"
CLASSIFIER_FOLDERS = (ENCODER_FOLDER, "classifier")
"""Folders that may hold the classifier of an index of cells: that of its encoder, or one with another network."""


def holds_place_index(folder: Path) -> bool:
    """Return whether a folder holds a place index."""
    return (folder / _METADATA).is_file() or bool(_generations(folder))


def read_metadata(folder: Path) -> IndexMetadata:
    """Read the metadata of the newest generation of a place index.

    Raises:
        FileNotFoundError: there is no place index in the folder.
        ValueError: a file is not as progeo writes it; the message names it.
    """
    if not holds_place_index(folder):
        raise FileNotFoundError(f"There is no place index in {folder}: make one with `progeo index build`.")
    newest = max(_generations(folder), default=0)
    metadata = _read(folder / _METADATA) if (folder / _METADATA).is_file() else None
    if metadata is not None and metadata.generation >= newest:
        return metadata
    try:  # its command has not updated `index.json` yet, or was killed before
        return _read(_path(folder, newest))
    except FileNotFoundError:  # a newer one exists by now
        return read_metadata(folder)


def with_current(folder: Path, use: Callable[[IndexMetadata], _Value]) -> _Value:
    """Call a function that opens files with the metadata that name them; again if they were replaced meanwhile.

    Raises:
        OSError, ValueError: as the function, though no other command changed the index; see also `read_metadata`.
    """
    while True:
        metadata = read_metadata(folder)
        try:
            return use(metadata)
        except (OSError, ValueError):
            if read_metadata(folder) == metadata:
                raise


def holds_uncommitted_parts(folder: Path) -> bool:
    """Return whether a folder holds parts that no generation names: those that another command writes."""
    return not {path.name for path in folder.iterdir() if _PART.fullmatch(path.name)} <= _named(folder)


@contextmanager
def new_parts(folder: Path, count: int) -> Iterator[list[Path]]:
    """Create empty folders for new parts, which no other command gets; those that are not committed are removed.

    Raises:
        OSError: they cannot be created.
    """
    found: list[Path] = []
    taken = [int(match[1]) for path in folder.iterdir() if (match := _PART.fullmatch(path.name))]
    with ExitStack() as locks:
        try:
            for number in itertools.count(max(taken, default=-1) + 1):
                if len(found) == count:
                    break
                is_free, lock = _lock_of_data(folder, name := f"part_{number:05}")
                if lock is not None:
                    locks.callback(lock.release)
                if is_free:
                    with suppress(FileExistsError):
                        (folder / name).mkdir()
                        found.append(folder / name)
            sync(folder)
            yield found
        finally:
            _remove_uncommitted(folder, found)


@contextmanager
def new_file(folder: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """Yield the path of a new data file, which is removed at last if it is not committed."""
    path = folder / f"{prefix}_{secrets.token_hex(6)}{suffix}"
    _, lock = _lock_of_data(folder, path.name)
    with ExitStack() as stack:
        if lock is not None:
            stack.callback(lock.release)
        stack.callback(_remove_uncommitted, folder, [path])
        yield path


def finish_update(folder: Path) -> None:
    """Finish what a command that was killed had begun: publish its generation, or remove its data."""
    remove_abandoned(folder)
    generations, published = _generations(folder), folder / _METADATA
    is_published = published.is_file() and _read(published).generation == max(generations, default=0)
    if generations and not (is_published and len(generations) == 1):
        _publish(folder)
    remove_unused_data(folder)


def remove_unused_data(folder: Path) -> None:
    """Remove data that no generation names: of earlier generations, and of commands that were killed."""
    found = sorted(path for path in folder.glob("*") if _DATA.fullmatch(path.name))
    named = _named(folder)
    for path in found:
        if path.name not in named:
            _, lock = _lock_of_data(folder, path.name)
            if lock is not None:
                if path.name not in _named(folder):  # it may be by now
                    _remove(path)
                lock.release()


def _remove_uncommitted(folder: Path, paths: Sequence[Path]) -> None:
    named = _named(folder)
    for path in paths:
        if path.name not in named:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path, ignore_errors=True)
        sync(path.parent)
    else:
        with suppress(PermissionError):  # Windows removes no file that is mapped; the next command does
            path.unlink(missing_ok=True)


def _named(folder: Path) -> set[str]:
    """Return the names of the data of all generations; one that is removed meanwhile is older than another."""
    found = set()
    for path in (folder / _METADATA, *(_path(folder, each) for each in _generations(folder))):
        with suppress(FileNotFoundError):
            found |= _read(path).data_names
    return found


def _lock_of_data(folder: Path, name: str) -> tuple[bool, Lock | None]:
    """Take the lock of data; returns whether no other command holds it, and the lock, None without locks."""
    stem = f".part_{int(match[1]):012}" if (match := _PART.fullmatch(name)) else f".{Path(name).stem}"
    try:
        lock = try_lock(folder / f"{stem}.progeo")
    except NoLocks:
        return True, None
    return lock is not None, lock


def commit(folder: Path, before: IndexMetadata | None, metadata: IndexMetadata) -> bool:
    """Commit `metadata` as the generation after `before`; returns False if another command came first."""
    if before is None:
        with suppress(FileExistsError):
            write_new_json(folder / _METADATA, metadata.to_json())
            return True
        return False
    generation = before.generation + 1
    path = _path(folder, generation)
    try:
        write_new_json(path, replace(metadata, generation=generation).to_json())
    except FileExistsError:
        return False
    if max(_generations(folder)) > generation:  # this number had been used, and removed for a newer one
        path.unlink(missing_ok=True)
        return False
    _publish(folder)
    return True


def _publish(folder: Path) -> None:
    """Copy the newest generation to `index.json`, repeat if a newer one appears meanwhile, and remove older ones."""
    published = -1
    while published < (newest := max(_generations(folder), default=-1)):
        with suppress(FileNotFoundError):  # a newer one exists by now
            write_json(folder / _METADATA, read_json(_path(folder, newest)))
            published = newest
    for older in _generations(folder) - {published}:
        if older < published:
            _path(folder, older).unlink(missing_ok=True)


def _path(folder: Path, generation: int) -> Path:
    return folder / _NAME.format(generation)


def _generations(folder: Path) -> set[int]:
    found = (_GENERATION.fullmatch(path.name) for path in folder.glob("index_*.json"))
    return {int(match[1]) for match in found if match}


def _read(path: Path) -> IndexMetadata:
    return read_index_metadata(path, _NAME)
