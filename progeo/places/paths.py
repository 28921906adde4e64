"""Where the image files of a folder are: found on the disk, or named by a list beside the folder."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from tqdm import tqdm

from progeo.image_files import EXTENSIONS, UNREAD_EXTENSIONS, unread_in_words

_LOGGER = logging.getLogger("progeo")
_NEVER_IN_A_PATH = "\x1f"
_LIST_BYTES_AT_ONCE = 2**23
_PATHS_AT_ONCE = 2**16


@dataclass(frozen=True)
class FoundPaths:
    """The image files of a folder, and by what one sees that they changed."""

    batches: Iterator[pa.Array]
    """Relative to the folder, with `/`, in the order of the list or sorted; large_string, to be gone through once."""
    seen: Mapping[str, int]
    """When each folder that was looked into was changed last, in nanoseconds; relative to the folder."""
    list_changed_ns: int | None
    """The same of the list; None where there is none."""


def find_paths(folder: Path) -> FoundPaths:
    """Find the images of a folder: named by `<folder>_images_paths.txt` beside it, or else at any depth below it.

    Raises:
        FileNotFoundError: no such folder, no image in it, or a list of images that are not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    listing = _list_of(folder)
    return _listed(listing, folder) if listing.is_file() else _scanned(folder)


def changes_since(folder: Path, seen: Mapping[str, int], list_changed_ns: int | None) -> Iterator[Path]:
    """What changed, came or is gone of the folders and the list that `find_paths` saw."""
    if not seen and list_changed_ns is None:
        return  # made from something else than a folder
    if _changed_ns(_list_of(folder)) != list_changed_ns:
        yield _list_of(folder)
    for name, changed_ns in seen.items():
        if _changed_ns(folder / name) != changed_ns:
            yield folder / name


def portable_names(names: pa.Array | pa.ChunkedArray, folder: Path) -> pa.Array | pa.ChunkedArray:
    """Paths relative to a folder as they are called here: slashes for Windows' backslashes, no `./` in front.

    Where the first name with a backslash is that of a file, they all stay as they are.
    """
    with_backslash = names.filter(pc.match_substring(names, "\\"))
    if len(with_backslash) and not (folder / with_backslash[0].as_py()).is_file():
        names = pc.replace_substring(pc.replace_substring_regex(names, r"^(\.?\\)+", ""), "\\", "/")
    return pc.replace_substring_regex(names, r"^(\./+)+", "")


def _list_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_images_paths.txt")


def _changed_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _scanned(folder: Path) -> FoundPaths:
    """Read all folders in parallel: on a network disk most of the time is waiting."""
    parts: list[pa.Array] = []
    seen: dict[str, int] = {}
    unread: Counter[str] = Counter()
    with ThreadPoolExecutor(16) as pool, tqdm(desc=f"finding images in {folder}", unit="img", disable=None) as bar:
        waiting: set[Future] = {pool.submit(_read_folder, folder, ".")}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    name, changed_ns, folders, images, passed_over = future.result()
                    unread += passed_over
                    seen[name] = changed_ns
                    parts.append(images)
                    bar.update(len(images))
                    waiting |= {pool.submit(_read_folder, folder, below) for below in folders}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    paths = pa.table({"path": pa.chunked_array(parts, pa.large_string())}).sort_by("path")
    if not len(paths):
        others = f" Not read: {unread_in_words(unread)}." if unread else ""
        raise FileNotFoundError(
            f"There is no image ({', '.join(EXTENSIONS)}) in {folder} or in a folder below it.{others}"
        )
    if unread:
        _LOGGER.warning("%s also holds files that are not read: %s", folder, unread_in_words(unread))
    batches = (batch["path"] for batch in paths.to_batches(_PATHS_AT_ONCE))
    return FoundPaths(batches, dict(sorted(seen.items())), None)


def _read_folder(root: Path, name: str) -> tuple[str, int, list[str], pa.Array, Counter[str]]:
    """The name of a folder, when it changed, the folders and the images in it, and its unread images by extension."""
    prefix = "" if name == "." else f"{name}/"
    changed_ns = (root / name).stat().st_mtime_ns
    folders, images = [], []
    unread: Counter[str] = Counter()
    with os.scandir(root / name) as entries:
        for entry in entries:
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                images.append(prefix + entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(prefix + entry.name)
            elif (extension := Path(entry.name).suffix.lower()) in UNREAD_EXTENSIONS and entry.is_file():
                unread[extension] += 1
    return name, changed_ns, folders, pa.array(images, pa.large_string()), unread


def _listed(listing: Path, folder: Path) -> FoundPaths:
    changed_ns = listing.stat().st_mtime_ns
    batches = _lines(listing)
    first = next(batches, None)
    if first is None:
        raise FileNotFoundError(f"The list {listing} names no image; fill it or remove it.")
    if not (folder / first[0].as_py()).is_file():
        raise FileNotFoundError(f"The list {listing} names {first[0].as_py()}, which does not lie in {folder}.")
    return FoundPaths(chain([first], batches), {}, changed_ns)


def _lines(listing: Path) -> Iterator[pa.Array]:
    """The lines of a text without those that are empty, some at a time; no Python string is made of any."""
    try:
        reader = pa_csv.open_csv(
            listing,
            pa_csv.ReadOptions(column_names=["path"], block_size=_LIST_BYTES_AT_ONCE),
            pa_csv.ParseOptions(delimiter=_NEVER_IN_A_PATH, quote_char=False, escape_char=False),
            pa_csv.ConvertOptions(column_types={"path": pa.large_string()}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return
        raise ValueError(f"The list {listing} cannot be read: {error}.") from None
    for batch in reader:
        paths = batch["path"]
        if any(pc.any(test(paths, blank)).as_py() for test in (pc.starts_with, pc.ends_with) for blank in " \t"):
            paths = pc.utf8_trim_whitespace(paths)
            paths = paths.filter(pc.not_equal(paths, ""))
        if len(paths):
            yield paths
