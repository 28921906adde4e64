"""Recursive search for image files: the files that Python's `glob` finds, which programs of the field use.

Files and folders whose names begin with a dot are skipped, and links to folders are followed. To stop at circular
links, a folder is never entered from within itself; a folder linked under two names counts under both. Unlike with
`glob`, extensions may be in upper case, and folders created by operating systems are skipped.
"""

import errno
import logging
import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from progeo.image_files import EXTENSIONS, UNREAD_EXTENSIONS
from progeo.printable import escaped
from progeo.progress import Progress

_LOGGER = logging.getLogger("progeo")
OF_SYSTEMS = {
    "__macosx": "archives of macOS",
    "@eadir": "Synology",
    "#recycle": "Synology",
    "#snapshot": "Synology",
    "@recycle": "QNAP",
    "@recently-snapshot": "QNAP",
    "$recycle.bin": "Windows",
    "system volume information": "Windows",
    "lost+found": "Linux",
}
"""Folders that operating systems and NAS devices create, in lower case; those of others begin with a dot."""
_DANGLING_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass
class Scan:
    """The files found below a folder, with paths relative to it."""

    parts: list[pa.Array] = field(default_factory=list)
    """Image files, large_string, in any order."""
    seen: dict[str, int | None] = field(default_factory=dict)
    """Last modification time of each folder, see `changed_ns`; None for dangling links, as targets may appear later."""
    hidden: list[str] = field(default_factory=list)
    """Skipped image files and folders."""
    unread: Counter[str] = field(default_factory=Counter)
    """Number of image files for each extension in `UNREAD_EXTENSIONS`."""


def scan_folder(folder: Path) -> Scan:
    """Search a folder and all folders below it in parallel: on a network disk most of the time is spent waiting.

    Raises:
        OSError: a folder is not readable.
        ValueError: a name is not UTF-8.
    """
    scan = Scan()
    dangling: list[str] = []
    circular: list[str] = []
    real = folder.resolve()
    top = _Folder("", real, frozenset([real, *real.parents]))
    with ThreadPoolExecutor(16) as pool, Progress(f"finding images in {folder}", leave=True) as bar:
        waiting: dict[Future[_Contents], _Folder] = {pool.submit(_read_folder, folder, top): top}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    contents = future.result()
                    scan.seen[waiting.pop(future).name or "."] = contents.changed_ns
                    scan.parts.append(utf8_paths(contents.images, folder))
                    scan.hidden += contents.hidden
                    scan.unread += contents.unread
                    dangling += contents.dangling
                    circular += contents.circular
                    bar.update(len(contents.images))
                    waiting |= {pool.submit(_read_folder, folder, below): below for below in contents.folders}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    scan.seen |= dict.fromkeys(dangling)
    for names, what in ((dangling, "lead nowhere"), (circular, "lead back to a folder that they lie in")):
        if names:
            _LOGGER.warning("%s: %d links %s and are skipped, such as %s", folder, len(names), what, min(names))
    return scan


def utf8_paths(paths: list[str], folder: Path = Path()) -> pa.Array:
    """Convert paths relative to a folder to an Arrow column, large_string.

    Raises:
        ValueError: a name is not UTF-8.
    """
    try:
        return pa.array(paths, pa.large_string())
    except UnicodeEncodeError as error:
        raise ValueError(f"The name of {escaped(str(folder / error.object))} is not UTF-8: rename it.") from None


def changed_ns(path: Path) -> int | None:
    """Return the last modification time of a file or folder in nanoseconds, or None if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        if error.errno not in _DANGLING_ERRORS:
            raise
        return None


@dataclass(frozen=True)
class _Folder:
    """A folder to be searched."""

    name: str
    """Path relative to the scanned folder, which itself is ""."""
    real: Path
    """Path with all links resolved."""
    ancestors: frozenset[Path]
    """Resolved paths of the folder itself and of all folders that it was reached through."""


@dataclass
class _Contents:
    """The contents of a folder, with paths relative to the scanned folder."""

    changed_ns: int
    images: list[str] = field(default_factory=list)
    folders: list[_Folder] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    dangling: list[str] = field(default_factory=list)
    """Dangling links."""
    circular: list[str] = field(default_factory=list)
    """Links to folders that they lie in."""


def _read_folder(scanned: Path, folder: _Folder) -> _Contents:
    path, prefix = scanned / folder.name, f"{folder.name}/" if folder.name else ""
    try:
        contents = _Contents(path.stat().st_mtime_ns)
        with os.scandir(path) as entries:
            for entry in entries:
                _note(entry, prefix + entry.name, folder, contents)
    except OSError as error:
        raise OSError(
            f"{error.filename or path} cannot be looked into ({error.strerror}): make it readable for you, or take it "
            f"out of {scanned}."
        ) from None
    return contents


def _note(entry: os.DirEntry[str], name: str, folder: _Folder, contents: _Contents) -> None:
    """Add a directory entry to the contents of its folder."""
    is_image = entry.name.lower().endswith(EXTENSIONS)
    if entry.name.startswith("."):
        if is_image or entry.is_dir(follow_symlinks=False):
            contents.hidden.append(name)
        return
    try:
        is_file, is_dir = entry.is_file(), entry.is_dir()  # of the target for a link
    except OSError as error:
        if error.errno not in _DANGLING_ERRORS:
            raise
        is_file = is_dir = False
    if is_image and is_file:
        contents.images.append(name)
    elif is_file and (extension := Path(entry.name).suffix.lower()) in UNREAD_EXTENSIONS:
        contents.unread[extension] += 1
    elif is_dir and entry.name.lower() in OF_SYSTEMS:
        contents.hidden.append(name)
    elif is_dir:
        real = Path(entry.path).resolve() if entry.is_symlink() else folder.real / entry.name
        if real in folder.ancestors:
            contents.circular.append(name)
        else:
            contents.folders.append(_Folder(name, real, folder.ancestors | {real}))
    elif not is_file and entry.is_symlink() and changed_ns(Path(entry.path)) is None:
        contents.dangling.append(name)
