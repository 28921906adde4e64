"""Atomic and durable writing, through which every file of progeo is written: complete or not at all."""

import errno
import glob
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError

from progeo.disk import make_folder, remove_folder, sync, synced_when_removed
from progeo.locks import Lock, NoLocks, is_lock_file, try_lock

_OWNER = ".progeo"
"""Ending of the lock of a temporary file or folder, whose name is the same but for the ending."""
_OWNER_NAME = re.compile(r"\..*[-_][0-9a-f]{8,12}\.progeo", re.DOTALL)
_MAX_STEM, _MAX_SUFFIX = 32, 16
"""Characters of a name that a temporary name repeats, so that it is no longer than file systems allow."""
_MOVES = "moves.json"
_UNFINISHED = ".unfinished-"
"""Prefix of the names of temporary folders."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path that is renamed to `path` if the block succeeds, else removed.

    Once the block is left, the file survives a loss of power.

    Raises:
        OSError: writing failed, for example because the disk is full; the message names `path`.
    """
    with temporary_file(path) as temporary:
        with completing(temporary):
            yield temporary
        temporary.replace(path)


@contextmanager
def replacing_folder(folder: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary folder that is renamed to `folder` if the block succeeds.

    Args:
        durable: have all files survive a loss of power once the block is left, which takes milliseconds for each.

    Raises:
        ValueError: `folder` is a file, or has files.
        OSError: writing failed; the message names the path in `folder`.
    """
    if folder.is_dir() and not any(folder.iterdir()) and not _can_be_replaced(folder):  # before it takes hours
        raise ValueError(f"{folder} is the current folder, a mount point or a link: name a new folder with `out`.")
    with temporary_beside(folder, _UNFINISHED) as temporary:
        temporary.mkdir()
        yield temporary
        if durable:
            _sync_below(temporary)
        _rename_folder(temporary, folder)


@contextmanager
def written_together(folder: Path, names: Sequence[str] = ()) -> Iterator[Path]:
    """Write several files together: yield a temporary folder whose files move to `folder` if the block succeeds.

    The temporary folder has the same name. A new or empty `folder` appears at once, with all files. If the process is
    killed while files move to a folder that has other files, or that is a mount point, the next writer removes them.

    Args:
        names: names of files that will be written, to refuse a folder that holds one of them before the block.

    Raises:
        ValueError: `folder` is a file, or already holds one of the files.
        OSError: writing failed, for example because the disk is full; the message names the file's path in `folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name another.")
    remove_abandoned(folder)
    refuse_held(folder, names)
    stays = folder.is_dir() and (any(folder.iterdir()) or not _can_be_replaced(folder))
    with temporary_beside(folder / folder.name if stays else folder, _UNFINISHED, shown=folder) as outer:
        temporary = outer / folder.name
        try:
            temporary.mkdir(parents=True)
            yield temporary
            refuse_held(folder, sorted(path.name for path in temporary.iterdir()))
            if stays:
                _move_files(temporary, folder)
            else:
                _sync_below(temporary)
                _rename_folder(temporary, folder)
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(str(error).replace(str(temporary), str(folder))) from None


def refuse_held(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder that holds one of the files that will be written to it.

    Raises:
        ValueError: it does.
    """
    if held := [name for name in names if (folder / name).exists()]:
        raise ValueError(f"{folder} already holds {', '.join(held)}: name another folder with `out`.")


@contextmanager
def temporary_beside(path: Path, prefix: str = ".", *, shown: Path | None = None) -> Iterator[Path]:
    """Yield a path for a temporary file or folder beside `path`, which is removed at last if it is still there.

    A lock tells others that this process lives; temporary files of processes that have ended are removed first. All
    names in the folder are on the disk once the block is left.

    Args:
        prefix: beginning of its name.
        shown: path that an error names; None takes `path`.

    Raises:
        OSError: it could not be created or written; the message names `path`.
    """
    shown = shown or path
    try:
        make_folder(path.parent)
        _remove_abandoned_once(path.parent, os.getpid())
        stem, owner = _new_owner(path, prefix)
    except OSError as error:
        raise OSError(f"{shown} could not be written: {error.strerror or error}") from None
    temporary = path.parent / f"{stem}{path.suffix if len(path.suffix) <= _MAX_SUFFIX else ''}"
    try:
        yield temporary
    except (OSError, SafetensorError) as error:
        message = str(error).replace(str(temporary / path.name), str(shown)).replace(str(temporary), str(shown))
        is_named = message.startswith(str(shown))
        raise OSError(message if is_named else f"{shown} could not be written: {message}") from None
    finally:
        _remove(temporary)
        if owner is not None:
            owner.release()
        else:
            sync(path.parent)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a path for a temporary file of the same name, in a folder of its own with what a library adds beside it.

    Raises:
        OSError: see `temporary_beside`.
    """
    with temporary_beside(path) as folder:
        folder.mkdir()
        yield folder / path.name


@contextmanager
def completing(temporary: Path) -> Iterator[None]:
    """Create a file with the permissions of new files, have it written by the block, and complete it on the disk."""
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    yield
    temporary.chmod(mode)  # because safetensors creates files that only their owner can read
    sync(temporary)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders of processes that have ended, and nothing of others or of the user."""
    for owner in sorted(folder.glob(f".*{_OWNER}")) if folder.is_dir() else ():
        with suppress(OSError, ValueError, TypeError, LookupError), ExitStack() as stack:  # those of another user
            is_ours = _OWNER_NAME.fullmatch(owner.name) and is_lock_file(owner)
            if is_ours and (lock := try_lock(owner)) is not None:
                stack.callback(lock.release)
                stem = owner.name.removesuffix(_OWNER)
                for path in (folder / stem, *folder.glob(f"{glob.escape(stem)}.*")):
                    if path != owner:
                        _undo_moves(path, folder)
                        _remove(path)


@lru_cache(maxsize=256)
def _remove_abandoned_once(folder: Path, process: int) -> None:
    """Remove what is abandoned in a folder at the first write of a process to it."""
    remove_abandoned(folder)


def _new_owner(path: Path, prefix: str) -> tuple[str, Lock | None]:
    """Choose the stem of a temporary name for `path` and take its lock; None where there are no locks."""
    while True:
        stem = f"{prefix}{path.stem[:_MAX_STEM]}-{secrets.token_hex(4)}"
        try:
            lock = try_lock(path.parent / f"{stem}{_OWNER}")
        except NoLocks:
            return stem, None
        if lock is not None:  # or it was taken for abandoned, just before it was locked
            return stem, lock


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_below(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)


def _rename_folder(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to a name that is free, or that of an empty folder."""
    try:
        if folder.is_dir():
            shutil.copymode(folder, temporary)
        with synced_when_removed(folder):  # an empty folder
            _rename_over(temporary, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ValueError(f"{folder} exists already: name another folder with `out`.") from None


def _can_be_replaced(folder: Path) -> bool:
    """Return whether another folder can get the name of an empty one: no mount point, nor in a folder of others.

    In the current folder, the shell of the user would be in a folder that is gone.
    """
    with suppress(OSError), temporary_beside(folder, _UNFINISHED) as probe:
        if folder.samefile(os.curdir):
            return False
        probe.mkdir()
        shutil.copymode(folder, probe)
        _rename_over(probe, folder)
        return True
    return False


def _rename_over(temporary: Path, folder: Path) -> None:
    """Give a folder a name that is free, or that of an empty folder."""
    try:
        temporary.rename(folder)
    except FileExistsError:  # Windows renames to free names only
        folder.rmdir()
        temporary.rename(folder)


def _move_files(temporary: Path, folder: Path) -> None:
    """Move all files to a folder that has others; `_undo_moves` removes them again if this process is killed."""
    _sync_below(temporary)
    moved = {path.name: path.lstat().st_mtime_ns for path in sorted(temporary.iterdir())}
    (moves := temporary.parent / _MOVES).write_text(json.dumps(moved), encoding="utf-8")
    sync(moves)
    sync(moves.parent)
    for name in moved:
        (temporary / name).replace(folder / name)
    sync(folder)


def _undo_moves(outer: Path, folder: Path) -> None:
    """Remove the files that a process moved to a folder if it was killed before the last, unless they changed since."""
    if not (outer / _MOVES).is_file() or not (left := {path.name for path in outer.glob("*/*")}):
        return
    moved = json.loads((outer / _MOVES).read_text(encoding="utf-8"))
    for path in folder.iterdir():  # so that no name leads out of the folder
        if path.name not in left and path.name in moved and path.lstat().st_mtime_ns == moved[path.name]:
            _remove(path)
