"""Text, CSV and JSON files, digests of files, and reading of many files."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element, indent, tostring

from progeo.atomic import completing, replacing, temporary_file
from progeo.disk import sync
from progeo.printable import escaped
from progeo.progress import Progress
from progeo.remote_files import RemotePath

Item = TypeVar("Item")
Found = TypeVar("Found")
_BLOCK_BYTES = 2**24
_THREADS = max(16, os.cpu_count() or 1)
_AT_ONCE = 4096
_FORMULA = re.compile("(^|[;\t])(?=[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20])")
"""Place before a formula: at the start of a cell, or after what separates cells for some spreadsheets."""
_NO_CHARACTER = re.compile("[\ufffe\uffff]")
"""Code points that XML excludes, besides those that are not safe to display."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


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

    Threads pay off because on a network disk most of the time is spent waiting. A `description` shows the progress.
    """
    names, bar = iter(names), Progress(description or "", total=total, hidden=description is None)
    with ThreadPoolExecutor(_THREADS) as pool, bar:
        while some := list(islice(names, _AT_ONCE)):
            for found in pool.map(look, some):
                bar.update()
                yield found


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write text in UTF-8, atomically; `errors` is what to do with characters that it lacks, see `str.encode`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


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
    """Write `value` as indented JSON to a file that must not exist, see `write_new`."""
    write_new(path, _as_json(value).encode())


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist: of several concurrent writers exactly one succeeds.

    Raises:
        FileExistsError: the file exists.
    """
    with temporary_file(path) as temporary:
        with completing(temporary):
            temporary.write_bytes(content)
        exists = not _linked(temporary, path)
    if exists:
        raise FileExistsError(f"{path} exists already.")


def check_can_be_written(path: Path) -> None:
    """Check a path before the work whose results a file will hold.

    Raises:
        OSError: it is a folder, or its folder is a file or may not be written to.
    """
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise OSError(f"{path} could not be written: it is a folder.")
    if not nearest.is_dir():
        raise OSError(f"{path} could not be written: {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise OSError(f"{path} could not be written: {nearest} may not be written to.")


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


def write_xml(path: Path, root: Element) -> None:
    """Write an XML document in UTF-8, atomically.

    Characters of texts and attributes that XML cannot hold, or that are not safe to display, are escaped.
    """
    for element in root.iter():
        element.text = element.text and _as_xml_text(element.text)
        for name, value in element.items():
            element.set(name, _as_xml_text(value))
    indent(root)
    write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n')


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the deepest folder that holds all files, given by absolute paths; the root folder for none."""
    folders = [path.parent for path in paths]
    return Path(os.path.commonpath(folders)) if folders else Path("/")


def is_file(path: Path | RemotePath) -> bool:
    """Return whether a path is a file; False for a name that is too long for one or has a zero byte, too."""
    return path.is_file() if isinstance(path, RemotePath) else os.path.isfile(path)  # noqa: PTH113, as pathlib raises errors for such names


def _as_xml_text(text: str) -> str:
    return _NO_CHARACTER.sub(lambda match: f"\\u{ord(match[0]):x}", escaped(text))


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
