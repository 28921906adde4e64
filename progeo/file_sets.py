"""Files that belong together: a JSON file names the digest of each, so that a reader never mixes two versions."""

import glob
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from progeo.atomic import completing, remove_abandoned, replacing, temporary_file
from progeo.disk import sync
from progeo.files import file_digest, read_json, write_json

Found = TypeVar("Found")
_State = tuple[int, int, int]
_DIGESTS = "files"
_DIGEST = re.compile("[0-9a-f]{64}")
_LONGEST_NAME = 200


def write_set(
    description: Path,
    values: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], object] | Path],
    *,
    without: Sequence[str] = (),
) -> None:
    """Write files that belong together, and last the JSON file that describes them.

    Each replaces the file of that name in the folder of the description. Until the description is replaced, the files
    that the former one names are kept under hidden names, where `read_set` finds them.

    Args:
        description: path of the JSON file.
        values: its content, to which the digests of the files are added.
        files: file name -> function that writes the file to a path, or a file to copy.
        without: names of files of an earlier version that this one does not have.
    """
    folder = description.parent
    remove_abandoned(folder)
    former = {}
    with suppress(FileNotFoundError, ValueError):  # there is none, or it is corrupt
        former = {
            name: digest for name, digest in _digests(read_json(description)).items() if _DIGEST.fullmatch(digest)
        }
    digests: dict[str, str] = {}
    with ExitStack() as stack:
        written: dict[str, Path] = {}
        for name, source in files.items():
            if isinstance(source, Path) and _holds(folder / name, file_digest(source)):
                digests[name] = file_digest(source)
                continue
            written[name] = temporary = stack.enter_context(temporary_file(folder / name))
            with completing(temporary):
                shutil.copyfile(source, temporary) if isinstance(source, Path) else source(temporary)
            digests[name] = file_digest(temporary)
        for name, digest in former.items():
            if digests.get(name) != digest:
                _keep(folder / name, digest)
        sync(folder)
        for name, temporary in written.items():
            temporary.replace(folder / name)
        ours = {name for name in former.keys() - digests.keys() if _holds(folder / name, former[name])}
        for name in ours | ({*without} - digests.keys()):
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        write_json(description, {**values, _DIGESTS: digests})
    for name in {*former, *digests}:
        for kept in folder.glob(f"{glob.escape(f'.{name}.')}{'[0-9a-f]' * 16}"):
            kept.unlink(missing_ok=True)
    sync(folder)


@dataclass(frozen=True)
class FileSet:
    """One version of files that belong together."""

    file: Path
    """The JSON file that describes them."""
    description: Any
    """Its content."""
    found: dict[Path, _State] = field(default_factory=dict)
    """State of each file as `path` found it."""

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return self.file.parent

    def path(self, name: str) -> Path:
        """Return the path of a file, once its digest is that in the description, if there is one.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it is another file than the one that was written with the description.
        """
        file, digest = self.folder / name, _digests(self.description).get(name)
        for path in (file,) if digest is None else (file, self.folder / _kept(name, digest)):
            if path.is_file():
                self.found[path] = _state(path)
                if digest is None or _holds(path, digest):
                    return path
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file}.")
        raise ValueError(
            f"{file} is not the file that was written with {self.file}, it was damaged or replaced: put it back, or "
            f"remove {_DIGESTS!r} from {self.file.name} to accept it."
        )

    @property
    def is_current(self) -> bool:
        """Whether all files are still as they were found."""
        return all(_state(path) == state for path, state in self.found.items())


def read_set(description: Path, read: Callable[[FileSet], Found]) -> Found:
    """Call `read` with one version of a set of files, and again if another process replaced it meanwhile.

    Raises:
        FileNotFoundError, ValueError: as `read`, or the description is missing or not JSON.
    """
    while True:
        before = _state(description)
        files = FileSet(description, read_json(description))
        try:
            result = read(files)
        except (OSError, ValueError):
            if _state(description) == before:
                raise
            continue
        if _state(description) == before and files.is_current:
            return result


def _digests(description: Any) -> dict[str, str]:
    """Return the digest of each file that a description names; empty for one from before there were digests."""
    digests = description.get(_DIGESTS) if isinstance(description, dict) else None
    if not isinstance(digests, dict):
        return {}
    return {name: digest for name, digest in digests.items() if isinstance(digest, str) and _is_file_name(name)}


def _is_file_name(name: str) -> bool:
    return Path(name).name == name != ".." and name.isprintable() and len(name) < _LONGEST_NAME


def _holds(file: Path, digest: str) -> bool:
    return file.is_file() and file_digest(file) == digest


def _keep(file: Path, digest: str) -> None:
    """Keep the file of a description under its hidden name, unless a process that was killed has done it already."""
    kept = file.parent / _kept(file.name, digest)
    if not _DIGEST.fullmatch(digest) or kept.exists() or not file.is_file():
        return
    try:
        os.link(file, kept)
    except OSError:  # no hard links
        with replacing(kept) as temporary:
            shutil.copyfile(file, temporary)


def _kept(name: str, digest: str) -> str:
    return f".{name}.{digest[:16]}"


def _state(path: Path) -> _State:
    """Return what changes when a file is replaced; zeros if it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return status.st_ino, status.st_mtime_ns, status.st_size
