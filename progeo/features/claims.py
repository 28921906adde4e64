"""Claims of work by files in a folder, by which processes on any machines divide the work as it comes.

A claim only saves the same work twice: whoever works without one does no harm, so no promise depends on it.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_STALE_S = 30.0
_BEATS = 6
"""Number of times a claim is touched until it would be stale."""
_PREFIX = ".claim_"


class Claims:
    """Claims that this process takes in a folder; as a context, it touches them now and then and releases them at last.

    A claim is abandoned once its file was not touched for a while, by the clock of the process that watches it, or once
    its process has ended on this machine, outside of which numbers of processes say nothing: clocks of machines and of
    file servers may differ.

    Args:
        folder: a folder that all processes reach.
        stale_s: seconds after which an untouched claim is abandoned.
    """

    def __init__(self, folder: Path, *, stale_s: float = _STALE_S) -> None:
        self.folder, self.stale_s = folder, stale_s
        self._held: set[Path] = set()
        self._watched: dict[Path, tuple[int, float]] = {}
        """When each claim of others was touched, and since when that is known."""
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beating.join()
        for path in tuple(self._held):
            self.release(path.name.removeprefix(_PREFIX))

    def take(self, name: str) -> bool:
        """Claim work by its name; returns whether it was free or abandoned.

        Raises:
            OSError: the folder cannot be written to; the message names it.
        """
        path = self._path(name)
        for _ in range(2):
            try:
                with path.open("x", encoding="utf-8") as stream:
                    self._held.add(path)
                    stream.write(f"{socket.gethostname()} {os.getpid()} {_process_space()}\n")
            except FileExistsError:
                if not self._is_abandoned(path):
                    return False
                with suppress(OSError):  # that of another user
                    path.unlink()
            except OSError as error:
                raise OSError(f"{self.folder} could not be written to: {error.strerror}") from None
            else:
                return True
        return True

    def release(self, name: str) -> None:
        """Give up a claim, also that of a process that has ended."""
        self._held.discard(self._path(name))
        with suppress(OSError):  # that of another user
            self._path(name).unlink()

    def names(self) -> list[str]:
        """Return the names of all claimed work, whoever claimed it."""
        return sorted(path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*"))

    def holder(self, name: str) -> str:
        """Name the process that holds a claim."""
        host, number, _ = _content(self._path(name))
        return f"process {number} on {host}" if number.isdecimal() else "another process"

    def wait(self) -> None:
        """Wait a moment for claims of others."""
        time.sleep(min(1.0, self.stale_s / _BEATS))

    def _path(self, name: str) -> Path:
        return self.folder / f"{_PREFIX}{name}"

    def _beat(self) -> None:
        while not self._ended.wait(self.stale_s / _BEATS):
            for path in tuple(self._held):
                with suppress(OSError):  # taken over by another while this process was stopped
                    os.utime(path)

    def _is_abandoned(self, path: Path) -> bool:
        _, number, space = _content(path)  # opening a file has a network file system look at it anew
        if space == _process_space() and _has_ended(number):
            return True
        try:
            touched_ns = path.stat().st_mtime_ns
        except FileNotFoundError:  # released just now
            return True
        now_s = time.monotonic()
        if self._watched.get(path, (None, 0.0))[0] != touched_ns:
            self._watched[path] = touched_ns, now_s
        return now_s - self._watched[path][1] >= self.stale_s


def _content(path: Path) -> tuple[str, str, str]:
    """Read the host, the number and the process space of the process that holds a claim, "" where unknown."""
    try:
        host, number, space, *_ = [*path.read_text(encoding="utf-8").split(), "", "", ""]
    except (OSError, ValueError):  # released just now, or of a user whose files cannot be read
        return "", "", ""
    return host, number, space


@cache
def _process_space() -> str:
    """Name what numbers of processes belong to, as containers share the name of their host, and clones of machines one.

    On Linux it is a machine since its start, and a container on it.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except (OSError, ValueError):
        return socket.gethostname()


def _has_ended(number: str) -> bool:
    """Return whether a process of this process space has ended; False for what is no number."""
    try:
        return psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (ValueError, OverflowError, psutil.Error):
        return False
