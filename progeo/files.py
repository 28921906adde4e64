"""Atomic file writing, through which every file of progeo is written, and parallel reading of many files."""

import csv
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from tqdm import tqdm

Item = TypeVar("Item")
Found = TypeVar("Found")
_THREADS = max(16, os.cpu_count() or 1)
_AT_ONCE = 4096
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and in full width
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path that is renamed to `path` if the block succeeds, else removed.

    Raises:
        OSError: writing failed, for example because the disk is full; the message names `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.stem}-{secrets.token_hex(4)}{path.suffix}"
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(mode)  # last, because safetensors creates files that only their owner can read
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written: {str(error).replace(str(temporary), str(path))}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Write several files together: yield a temporary folder whose files move to `folder` if the block succeeds.

    The temporary folder has the same name. If the block fails, its files are removed and `folder` is left unchanged
    (or not created).

    Raises:
        ValueError: `folder` is a file, or already holds one of the files.
        OSError: writing failed, for example because the disk is full; the message names the file's path in `folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name another.")
    beside = folder if folder.exists() else folder.parent  # on the same file system, so that files can be renamed
    try:
        beside.mkdir(parents=True, exist_ok=True)
        outer = tempfile.TemporaryDirectory(dir=beside, prefix=".")
    except OSError as error:
        raise OSError(f"{folder} could not be written: {error.strerror}") from None
    with outer:
        temporary = Path(outer.name) / folder.name
        temporary.mkdir()
        try:
            yield temporary
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(str(error).replace(str(temporary), str(folder))) from None
        names = sorted(path.name for path in temporary.iterdir())
        if held := [name for name in names if (folder / name).exists()]:
            raise ValueError(f"{folder} already holds {', '.join(held)}: name another folder.")
        folder.mkdir(exist_ok=True)
        for name in names:
            (temporary / name).replace(folder / name)


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
        spreadsheet_safe: whether texts that a spreadsheet would run as a formula get an apostrophe in front.
    """
    if spreadsheet_safe:
        rows = ([_spreadsheet_safe(cell) for cell in row] for row in rows)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _spreadsheet_safe(cell: Any) -> Any:
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text) else cell


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_new_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to a file that must not exist: of several concurrent writers exactly one succeeds.

    Raises:
        FileExistsError: the file exists.
    """
    private = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    write_json(private, value)
    try:
        os.link(private, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with path.open("x", encoding="utf-8") as stream:
            stream.write(private.read_text(encoding="utf-8"))
    finally:
        private.unlink()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not valid JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from None


def spelled_out(path: str) -> str:
    r"""Escape the bytes of a path that are not valid UTF-8, such as caf\xe9, so that it can be printed."""
    return path.encode("utf-8", "backslashreplace").decode().replace(r"\udc", r"\x")  # undo surrogateescape
