"""The image files of a folder: found on disk, or listed in a file next to the folder."""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from progeo.files import is_file
from progeo.image_files import EXTENSIONS, unread_in_words
from progeo.places.folders import Scan, changed_ns, scan_folder
from progeo.places.remote_folders import scan_remote_folder
from progeo.printable import first_line
from progeo.remote_files import RemotePath, path_in

_LOGGER = logging.getLogger("progeo")
_NEVER_IN_A_PATH = "\x1f"
_LIST_BYTES_AT_ONCE = 2**23
_PATHS_AT_ONCE = 2**16
_LONGEST = 4096
_MOST_LISTED = 1000
_FEW_FOLDERS = 8


@dataclass(frozen=True)
class FoundPaths:
    """The image files of a folder, and the modification times by which later changes are detected."""

    batches: Iterator[pa.Array]
    """Paths relative to the folder, with `/`, in the order of the list or sorted; large_string; iterate only once."""
    seen: Mapping[str, int | None]
    """Last modification time of each scanned folder in nanoseconds, by path relative to the folder."""
    list_changed_ns: int | None
    """Last modification time of the list in nanoseconds; None if there is no list."""


def find_paths(folder: Path | RemotePath) -> FoundPaths:
    """Find the images of a folder: those listed in `<folder>_images_paths.txt` next to it, or else all images below it.

    Behind a URL there is no such list, and nothing that changes could be detected by.

    Raises:
        FileNotFoundError: the folder does not exist, it has no image, or the first listed image does not exist.
        OSError: a folder is not readable.
        ValueError: a name is not UTF-8.
    """
    if isinstance(folder, RemotePath):
        return _found(scan_remote_folder(folder), folder)
    if not folder.is_dir():
        missing = next((each for each in [*folder.parents][-2::-1] if not each.exists()), folder)
        raise FileNotFoundError(f"There is no folder {missing}{_beside(missing)}.")
    listing = list_of(folder)
    return _listed(listing, folder) if listing.is_file() else _found(scan_folder(folder), folder)


def _beside(folder: Path) -> str:
    """Name the folders and catalogues that a missing folder would lie beside, if they are few."""
    if not folder.parent.name or not folder.parent.is_dir():
        return ""
    with os.scandir(folder.parent) as entries:  # of a folder of millions of images, the first ones
        first = list(islice(entries, _MOST_LISTED))
    there = {entry.name.removesuffix(".arrow") for entry in first if entry.is_dir() or entry.name.endswith(".arrow")}
    return f" beside {', '.join(sorted(there))}" if 0 < len(there) <= _FEW_FOLDERS else ""


def changes_since(
    folder: Path | RemotePath, seen: Mapping[str, int | None], list_changed_ns: int | None
) -> Iterator[Path]:
    """Yield the folders and the list that were changed, created or removed since `find_paths` returned these times."""
    if not seen and list_changed_ns is None:
        return  # the catalogue was not made from a folder
    assert isinstance(folder, Path)  # behind a URL nothing is noted
    if changed_ns(list_of(folder)) != list_changed_ns:
        yield list_of(folder)
    yield from changes_of(folder, seen)


def changes_of(folder: Path | RemotePath, seen: Mapping[str, int | None]) -> Iterator[Path]:
    """Yield the files and folders in a local folder that have not the given modification times, None for missing."""
    for name, then_ns in seen.items():
        path = path_in(folder, name)
        if isinstance(path, Path) and changed_ns(path) != then_ns:
            yield path


def list_of(folder: Path) -> Path:
    """Return the path of the list of the images of a folder, whether or not it exists."""
    return beside(folder, "_images_paths.txt")


def portable_names(names: pa.Array | pa.ChunkedArray, folder: Path | RemotePath) -> pa.Array | pa.ChunkedArray:
    """Normalize paths relative to a folder: replace Windows' backslashes by slashes, and remove a leading `./`.

    Backslashes are kept in all paths if the first path with a backslash is an existing file.
    """
    with_backslash = names.filter(pc.match_substring(names, "\\"))
    if len(with_backslash) and not is_file(folder / with_backslash[0].as_py()):
        names = pc.replace_substring(pc.replace_substring_regex(names, r"^(\.?\\)+", ""), "\\", "/")
    return pc.replace_substring_regex(names, r"^(\./+)+", "")


def beside(folder: Path, ending: str) -> Path:
    """Return the path next to a folder that has the folder's name and an ending."""
    named = folder.resolve() if folder.name in ("", "..") else folder  # `.` has no name; links are not resolved
    return named.with_name(f"{named.name}{ending}")


def _found(scan: Scan, folder: Path | RemotePath) -> FoundPaths:
    paths = pa.table({"path": pa.chunked_array(scan.parts, pa.large_string())}).sort_by("path")
    if not len(paths):
        sentence = f"There is no image ({', '.join(EXTENSIONS)}) in {folder} or in a folder below it"
        if scan.hidden:
            sentence += f", but for hidden ones and those of the system, which do not count, such as {min(scan.hidden)}"
        others = f" Not read: {unread_in_words(scan.unread)}." if scan.unread else ""
        raise FileNotFoundError(f"{sentence}.{others}")
    if scan.unread:
        _LOGGER.warning("%s also holds files that are not read: %s", folder, unread_in_words(scan.unread))
    batches = (batch["path"] for batch in paths.to_batches(_PATHS_AT_ONCE))
    return FoundPaths(batches, dict(sorted(scan.seen.items())), None)


def _listed(listing: Path, folder: Path) -> FoundPaths:
    list_changed_ns = changed_ns(listing)
    batches = lines_of(listing)
    first = next(batches, None)
    if first is None:
        raise FileNotFoundError(f"The list {listing} names no image; fill it or remove it.")
    batches = chain([first], batches)
    if _is_of_windows(first, folder):
        batches = (pc.replace_substring(paths, "\\", "/") for paths in batches)
        first = pc.replace_substring(first, "\\", "/")
    name = first[0].as_py()
    if not is_file(folder / name):
        raise FileNotFoundError(f"The list {listing} names {name[:_LONGEST]}, which does not lie in {folder}.")
    return FoundPaths(batches, {}, list_changed_ns)


def _is_of_windows(paths: pa.Array, folder: Path) -> bool:
    """Return whether the first path with a backslash exists only with `/` instead."""
    row = pc.index(pc.match_substring(paths, "\\"), True).as_py()
    path = "" if row < 0 else paths[row].as_py()
    return bool(path) and not is_file(folder / path) and is_file(folder / path.replace("\\", "/"))


def lines_of(listing: Path) -> Iterator[pa.Array]:
    """Yield the non-empty lines of a text file, which may be compressed, in batches, without creating Python strings.

    Raises:
        ValueError: it is not UTF-8, or corrupt.
    """
    try:
        reader = pa_csv.open_csv(
            listing,
            pa_csv.ReadOptions(column_names=["path"], block_size=_LIST_BYTES_AT_ONCE),
            pa_csv.ParseOptions(delimiter=_NEVER_IN_A_PATH, quote_char=False, escape_char=False),
            pa_csv.ConvertOptions(column_types={"path": pa.large_string()}, strings_can_be_null=False),
        )
        for batch in reader:
            paths = batch["path"]
            if any(pc.any(test(paths, blank)).as_py() for test in (pc.starts_with, pc.ends_with) for blank in " \t"):
                paths = pc.utf8_trim_whitespace(paths)
                paths = paths.filter(pc.not_equal(paths, ""))
            if len(paths):
                yield paths
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if "Empty CSV file" not in str(error):
            raise ValueError(f"The list {listing} cannot be read: {first_line(error)}.") from None
