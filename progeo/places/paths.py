"""Where the image files of a folder are: found on the disk, or named by a list beside the folder."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from progeo.image_files import EXTENSIONS, unread_in_words
from progeo.places.folders import changed_ns, scan_folder

_LOGGER = logging.getLogger("progeo")
_NEVER_IN_A_PATH = "\x1f"
_LIST_BYTES_AT_ONCE = 2**23
_PATHS_AT_ONCE = 2**16


@dataclass(frozen=True)
class FoundPaths:
    """The image files of a folder, and by what one sees that they changed."""

    batches: Iterator[pa.Array]
    """Relative to the folder, with `/`, in the order of the list or sorted; large_string, to be gone through once."""
    seen: Mapping[str, int | None]
    """When each folder that was looked into was changed last, in nanoseconds; relative to the folder."""
    list_changed_ns: int | None
    """The same of the list; None where there is none."""


def find_paths(folder: Path) -> FoundPaths:
    """Find the images of a folder: named by `<folder>_images_paths.txt` beside it, or else at any depth below it.

    Raises:
        FileNotFoundError: no such folder, no image in it, or a list of images that are not there.
        OSError: a folder that may not be looked into.
        ValueError: a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    listing = _list_of(folder)
    return _listed(listing, folder) if listing.is_file() else _scanned(folder)


def changes_since(folder: Path, seen: Mapping[str, int | None], list_changed_ns: int | None) -> Iterator[Path]:
    """What changed, came or is gone of the folders and the list that `find_paths` saw."""
    if not seen and list_changed_ns is None:
        return  # made from something else than a folder
    if changed_ns(_list_of(folder)) != list_changed_ns:
        yield _list_of(folder)
    for name, then_ns in seen.items():
        if changed_ns(folder / name) != then_ns:
            yield folder / name


def portable_names(names: pa.Array | pa.ChunkedArray, folder: Path) -> pa.Array | pa.ChunkedArray:
    """Paths relative to a folder as they are called here: slashes for Windows' backslashes, no `./` in front.

    Where the first name with a backslash is that of a file, they all stay as they are.
    """
    with_backslash = names.filter(pc.match_substring(names, "\\"))
    if len(with_backslash) and not (folder / with_backslash[0].as_py()).is_file():
        names = pc.replace_substring(pc.replace_substring_regex(names, r"^(\.?\\)+", ""), "\\", "/")
    return pc.replace_substring_regex(names, r"^(\./+)+", "")


def beside(folder: Path, ending: str) -> Path:
    """The file beside a folder that has its name and an ending."""
    named = folder.resolve() if folder.name in ("", "..") else folder  # `.` has no name, a link's is its own
    return named.with_name(f"{named.name}{ending}")


def _list_of(folder: Path) -> Path:
    return beside(folder, "_images_paths.txt")


def _scanned(folder: Path) -> FoundPaths:
    scan = scan_folder(folder)
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
    batches = _lines(listing)
    first = next(batches, None)
    if first is None:
        raise FileNotFoundError(f"The list {listing} names no image; fill it or remove it.")
    batches = chain([first], batches)
    if _is_of_windows(first, folder):
        batches = (pc.replace_substring(paths, "\\", "/") for paths in batches)
        first = pc.replace_substring(first, "\\", "/")
    if not (folder / first[0].as_py()).is_file():
        raise FileNotFoundError(f"The list {listing} names {first[0].as_py()}, which does not lie in {folder}.")
    return FoundPaths(batches, {}, list_changed_ns)


def _is_of_windows(paths: pa.Array, folder: Path) -> bool:
    """Whether the first path with a backslash lies in the folder with `/` for it alone."""
    row = pc.index(pc.match_substring(paths, "\\"), True).as_py()
    path = "" if row < 0 else paths[row].as_py()
    return bool(path) and not (folder / path).is_file() and (folder / path.replace("\\", "/")).is_file()


def _lines(listing: Path) -> Iterator[pa.Array]:
    """The lines of a text without those that are empty, some at a time; no Python string is made of any."""
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
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise ValueError(f"The list {listing} cannot be read: {error}.") from None
