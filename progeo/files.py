"""Atomic and durable file writing, through which every file of progeo is written, and reading of many files."""

import csv
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from tqdm import tqdm

from progeo.locks import Lock, NoLocks, is_lock_file, try_lock

Item = TypeVar("Item")
Found = TypeVar("Found")
_OWNER = ".progeo"
"""Ending of the lock of a temporary file or folder, whose name is the same but for the ending."""
_OWNER_NAME = re.compile(r"\..*[-_][0-9a-f]{8,12}\.progeo", re.DOTALL)
_MAX_STEM, _MAX_SUFFIX = 32, 16
"""Characters of a name that a temporary name repeats, so that it is no longer than file systems allow."""
_MOVES = "moves.json"
_UNFINISHED = ".unfinished-"
"""Prefix of the names of temporary folders."""
_BLOCK_BYTES = 2**24
_THREADS = max(16, os.cpu_count() or 1)
_AT_ONCE = 4096
_FORMULA = re.compile("(^|[;\t])(?=[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20])")
"""Place before a formula: at the start of a cell, or after what separates cells for some spreadsheets."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path that is renamed to `path` if the block succeeds, else removed.

    Once the block is left, the file survives a loss of power.

    Raises:
        OSError: writing failed, for example because the disk is full; the message names `path`.
    """
    with temporary_beside(path) as temporary:
        with completing(temporary):
            yield temporary
        temporary.replace(path)
        sync(path.parent)


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

    A lock tells others that this process lives; temporary files of processes that have ended are removed first.

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
        message = str(error).replace(str(temporary), str(shown))
        is_named = message.startswith(str(shown))
        raise OSError(message if is_named else f"{shown} could not be written: {message}") from None
    finally:
        _remove(temporary)
        if owner is not None:
            owner.release()


@contextmanager
def completing(temporary: Path) -> Iterator[None]:
    """Create a file with the permissions of new files, have it written by the block, and complete it on the disk."""
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    yield
    temporary.chmod(mode)  # because safetensors creates files that only their owner can read
    sync(temporary)


def sync(path: Path) -> None:
    """Have the operating system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and (os.name == "nt" or not os.access(path, os.R_OK)):  # which cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and write their names to the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


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


def file_digest(path: Path) -> str:
    """Compute a digest of a file: the SHA-256, in hex, of the SHA-256s of its blocks, which threads compute."""

    def of_block(start: int) -> bytes:
        with path.open("rb") as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(_BLOCK_BYTES)).digest()

    starts = range(0, max(path.stat().st_size, 1), _BLOCK_BYTES)
    if len(starts) == 1:
        return hashlib.sha256(of_block(0)).hexdigest()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(of_block, starts))).hexdigest()


def each_file(
    look: Callable[[Item], Found], names: Iterable[Item], *, total: int, description: str | None = None
) -> Iterator[Found]:
    """Apply `look` to many files in parallel threads and yield the results in the order of `names`.

    Threads pay off because on a network disk most of the time is spent waiting. A `description` shows a progress bar.
    """
    names, hidden = iter(names), True if description is None else None
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(desc=description, total=total, unit="img", disable=hidden) as bar:
        while some := list(islice(names, _AT_ONCE)):
            for found in pool.map(look, some):
                bar.update()
                yield found


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[Any]], *, spreadsheet_safe: bool = False) -> None:
    """Write rows, the column names first, as a CSV file, atomically.

    Args:
        spreadsheet_safe: whether formulas that a spreadsheet would run get an apostrophe in front.
    """
    if spreadsheet_safe:
        rows = ([_spreadsheet_safe(cell) for cell in row] for row in rows)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _spreadsheet_safe(cell: Any) -> Any:
    text = "" if cell is None else str(cell)
    return cell if _NUMBER.fullmatch(text) or not _FORMULA.search(text) else _FORMULA.sub(r"\1'", text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, _as_json(value))


def write_new_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to a file that must not exist: of several concurrent writers exactly one succeeds.

    Raises:
        FileExistsError: the file exists.
    """
    with temporary_beside(path) as temporary:
        with completing(temporary):
            temporary.write_text(_as_json(value), encoding="utf-8")
        exists = not _linked(temporary, path)
        sync(path.parent)
    if exists:
        raise FileExistsError(f"{path} exists already.")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not valid JSON; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if r"\u" in text:  # half a pair of surrogates is no text: it could be neither printed nor written
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from None


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False for a name that is too long for one or has a zero byte, too."""
    return os.path.isfile(path)  # noqa: PTH113, as pathlib raises errors for such names


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _linked(temporary: Path, path: Path) -> bool:
    """Give a file a second name, or copy it where there are no hard links; returns False if the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            with path.open("xb") as stream:
                stream.write(temporary.read_bytes())
        except FileExistsError:
            return False
        sync(path)
    return True


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
        shutil.rmtree(path, ignore_errors=True)
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
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ValueError(f"{folder} exists already: name another folder with `out`.") from None
    sync(folder.parent)


def _can_be_replaced(folder: Path) -> bool:
    """Return whether another folder can get the name of an empty one: no mount point, nor in a folder of others.

    In the current folder, the shell of the user would be in a folder that is gone.
    """
    with suppress(OSError), temporary_beside(folder, _UNFINISHED) as probe:
        if folder.samefile(os.curdir):
            return False
        probe.mkdir()
        shutil.copymode(folder, probe)
        probe.rename(folder)
        return True
    return False


def _move_files(temporary: Path, folder: Path) -> None:
    """Move all files to a folder that has others; `_undo_moves` removes them again if this process is killed."""
    _sync_below(temporary)
    moved = {path.name: path.lstat().st_mtime_ns for path in sorted(temporary.iterdir())}
    write_json(temporary.parent / _MOVES, moved)
    for name in moved:
        (temporary / name).replace(folder / name)
    sync(folder)


def _undo_moves(outer: Path, folder: Path) -> None:
    """Remove the files that a process moved to a folder if it was killed before the last, unless they changed since."""
    if not (outer / _MOVES).is_file() or not (left := {path.name for path in outer.glob("*/*")}):
        return
    moved = read_json(outer / _MOVES)
    for path in folder.iterdir():  # so that no name leads out of the folder
        if path.name not in left and path.name in moved and path.lstat().st_mtime_ns == moved[path.name]:
            _remove(path)
