"""Files behind URLs that fsspec opens: of object storage (s3, gs), web servers, and archives.

Archives are named by chains such as `tar://::s3://bucket/city.tar`: the path inside of the archive, then its URL.
"""

import os
import posixpath
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from progeo.printable import first_line

_DRIVE = "[a-zA-Z]:/|" if sys.platform == "win32" else ""
IS_ABSOLUTE = rf"^({_DRIVE}/|([a-z0-9]+::)*[a-z][a-z0-9+.-]+://)"
"""Regular expression of paths and URLs that need no folder before them; a drive of Windows is a single letter."""
_URL = re.compile(r"((?:[a-z0-9]+::)*[a-z][a-z0-9+.-]+://)(.*?)((?:::.*)?)", re.DOTALL)
"""Protocol, with caches before it, then path, then the archive that the path lies in."""
_QUOTED = ("http://", "https://")
_PROTOCOLS = frozenset(
    "abfs abfss adl az file ftp gcs gs hdfs hf http https local memory oss s3 s3a sftp simplecache ssh tar webhdfs "
    "zip".split()
)
"""Protocols of files and archives. Others that fsspec knows may run what a file says, as `reference` its templates."""
_PASSWORD = re.compile("(?:https?|ftp|sftp|ssh|(?:web)?hdfs)://[^/@]*:[^/@]*@")
_WAITS_S = (0.5, 2.0)
"""Seconds before each further attempt to reach a file."""
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Names of the modification time among the details that file systems give of a file."""
_REFUSALS = (401, 403, 404, 410)
"""Answers of a web server, of which trying again gives no other."""
_MAX_ARCHIVES = 64
"""Number of archives that are kept open."""
_MAX_MEMBER_BYTES = 2**30
"""Maximum size of a file in an archive, which may hold it compressed to a thousandth."""
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class RemoteStatus:
    """Size and modification time of a remote file, named as in `os.stat_result`."""

    st_size: int
    st_mtime_ns: int
    """0 if the server does not say it."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind a URL, with the methods of `pathlib.Path` that images need.

    Its methods raise `FileNotFoundError` if there is no such file, other `OSError`s after three attempts to reach it,
    and `ValueError` if no installed package opens such URLs. A URL that is refused is a `ValueError` when it is made.
    """

    url: str

    def __post_init__(self) -> None:
        if _PASSWORD.search(self.url):
            raise ValueError(
                "A URL of images must not hold a password, as it is stored in catalogues: give it by the environment "
                "or the configuration files of fsspec."
            )
        for link in self.url.split("::"):
            if (protocol := link.partition("://")[0]) not in _PROTOCOLS:
                raise ValueError(
                    f"{self.url}: {protocol} is none of the protocols {', '.join(sorted(_PROTOCOLS))}. A local archive "
                    f"is called tar://::file:///folder/city.tar."
                )

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        before, quoted, after = self.around
        if "::" in (inner := quoted(name)):
            raise ValueError(f"{self.url} holds {name!r}, which no URL can name: :: ends a path.")
        return RemotePath(f"{before}{inner}{after}") if name not in ("", ".") else self

    @cached_property
    def around(self) -> tuple[str, Callable[[str], str], str]:
        """What comes before and after a name in the URL of a file of this folder, and how the name is quoted there."""
        protocol, path, archive = self.parts
        if protocol.endswith(_QUOTED) and "?" in path:
            raise ValueError(f"{self.url} is no folder: what follows ? would come before the names of its files.")
        before = f"{protocol}{path}" if not path or path.endswith("/") else f"{protocol}{path}/"
        return before, quote if protocol.endswith(_QUOTED) else str, archive

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.parts[1].rstrip("/").rsplit("/", 1)[-1]

    def relative(self, url: str) -> str:
        """Return the name in this folder of a file that is found in it."""
        before, quoted, after = self.around
        name = url.removeprefix(before).removesuffix(after)
        return name if quoted is str else unquote(name)

    def resolve(self) -> "RemotePath":
        """Return the path itself: there are no links."""
        return self

    def read_bytes(self) -> bytes:
        """Read the content of the file; one in an archive may have a GiB at most."""
        if self.parts[2] and (size := self.stat().st_size) > _MAX_MEMBER_BYTES:
            raise OSError(f"{self.url} has {size:,} bytes, and a file in an archive at most {_MAX_MEMBER_BYTES:,}.")
        return self._attempt(lambda system, path: system.cat_file(path))

    def stat(self) -> RemoteStatus:
        """Ask for the size and the modification time of the file."""
        details = self._attempt(_details)
        changed = next((details[name] for name in _TIMES if details.get(name)), 0)
        return RemoteStatus(int(details.get("size") or 0), _nanoseconds(changed))

    def entries(self) -> list[tuple[str, bool]]:
        """List the names of what the folder holds, and whether they are folders."""
        unquoted = str if self.around[1] is str else unquote
        names = [(unquoted(name), is_folder) for name, is_folder in self._attempt(self._entries)]
        return [(name, is_folder) for name, is_folder in names if name and "/" not in name]

    def _entries(self, system: Any, path: str) -> list[tuple[str, bool]]:
        inside = f"{path.rstrip('/')}/" if path else ""
        details = system.ls(path, detail=True)
        system.invalidate_cache(path)  # or a city of millions would stay in memory
        return [(each["name"].rstrip("/").removeprefix(inside), each["type"] == "directory") for each in details]

    @property
    def is_parallel(self) -> bool:
        """Whether several threads may share one connection; else each would open its own, or wait for the others."""
        return self._attempt(lambda system, path: bool(system.async_impl))

    def is_file(self) -> bool:
        """Return whether there is such a file."""
        try:
            return self._attempt(_details)["type"] == "file"
        except FileNotFoundError:
            return False

    @property
    def parts(self) -> tuple[str, str, str]:
        """The protocol, the path, and the archive that the path lies in, "" for none."""
        found = _URL.fullmatch(self.url)
        if found is None:
            raise ValueError(f"{self.url!r} is no URL, such as s3://bucket/city.")
        return found[1], found[2], found[3]

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """Yield the file system and the path in it."""
        from fsspec.core import url_to_fs

        protocol, path, archive = self.parts
        if not archive:
            yield url_to_fs(self.url)
            return
        opened = _archive(f"{protocol}{archive}", os.getpid())
        with opened.lock:
            yield opened.system, path.strip("/")

    def _attempt(self, act: Callable[[Any, str], _Found]) -> _Found:
        for wait_s in (*_WAITS_S, None):
            try:
                with self._opened() as opened:
                    return act(*opened)
            except FileNotFoundError:
                raise FileNotFoundError(f"There is no {self.url}.") from None
            except ImportError as error:
                raise ValueError(f"{self.url}: {first_line(error)}: pip install 'progeo[remote]'.") from None
            except Exception as error:  # each file system has kinds of its own
                if wait_s is None or isinstance(error, PermissionError):
                    raise OSError(f"{self.url} cannot be reached: {first_line(error, type(error).__name__)}.") from None
            time.sleep(wait_s)
        raise AssertionError  # the last attempt returns or raises


def _details(system: Any, path: str) -> dict[str, Any]:
    """Ask for the details of a file; what fsspec takes for a missing file where a web server failed is an error."""
    try:
        return system.info(path)
    except FileNotFoundError as error:
        cause = error.__cause__
        if "http" in system.protocol and isinstance(cause, Exception) and getattr(cause, "status", 0) not in _REFUSALS:
            raise cause from None
        raise


class _Archive:
    """An archive, read by one thread at a time: threads would move the position of each other in it."""

    def __init__(self, url: str) -> None:
        self.url, self.lock = url, threading.Lock()

    @cached_property
    def system(self) -> Any:
        """The open archive; fsspec would read the list of its files again for each file."""
        from fsspec.core import url_to_fs

        return url_to_fs(self.url)[0]


@lru_cache(_MAX_ARCHIVES)
def _archive(url: str, process: int) -> _Archive:
    """Return an archive, the same in all threads of a process."""
    return _Archive(url)


def is_remote(text: str) -> bool:
    """Return whether a text is a URL, and not the path of a local file."""
    return "://" in text and _URL.fullmatch(text) is not None


def path_of(text: str) -> Path | RemotePath:
    """Return the path that a text stands for: a URL or the path of a local file."""
    return RemotePath(text) if is_remote(text) else Path(text)


def path_in(folder: Path | RemotePath, name: str) -> Path | RemotePath:
    """Return the path of a file in a folder; a name that is a URL or an absolute path stands for itself."""
    if is_remote(name):
        return RemotePath(name)
    return Path(name) if Path(name).is_absolute() and isinstance(folder, RemotePath) else folder / name


def shared_folder(folders: Sequence[Path | RemotePath]) -> Path | RemotePath:
    """Return the deepest folder that holds all folders, absolute paths or URLs; the root folder if only parts can be.

    URLs of several protocols or archives have none, nor have URLs and local folders.
    """
    remote = [folder.parts for folder in folders if isinstance(folder, RemotePath)]
    if not remote:
        return Path(os.path.commonpath([folder for folder in folders if isinstance(folder, Path)]))
    protocols, paths, archives = zip(*remote, strict=True)
    if len(remote) < len(folders) or len({*protocols}) > 1 or len({*archives}) > 1:
        return Path("/")
    return RemotePath(f"{protocols[0]}{posixpath.commonpath([path.rstrip('/') for path in paths])}{archives[0]}")


def name_in(root: Path | RemotePath, folder: Path | RemotePath) -> str:
    """Return the path of a folder relative to a `shared_folder`; its URL if that holds local folders only."""
    if isinstance(folder, Path) and isinstance(root, Path):
        return folder.relative_to(root).as_posix()
    return root.relative(str(folder)) if isinstance(root, RemotePath) else str(folder)


def _nanoseconds(changed: Any) -> int:
    """Convert a time as a file system gives it to nanoseconds since 1970; 0 if it has an unknown form."""
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed)
        except ValueError:
            return 0
    if isinstance(changed, datetime):
        changed = (changed if changed.tzinfo else changed.replace(tzinfo=UTC)).timestamp()
    return round(changed * 1e9) if isinstance(changed, int | float) else 0
