"""Watch what a process does to the files of a folder, and kill it, stop it or let a call fail at one of these events.

Python tells audit hooks of most calls before they are made; `os.fsync` is replaced to be told of it, too. Nothing is
seen of what other languages write: `Plan.max_file_bytes` kills a process, or lets a write fail, within any file.
"""

import errno
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATHS: Mapping[str, Callable[[tuple[Any, ...]], list[tuple[Any, Any]]]] = MappingProxyType(
    {
        "open": lambda arguments: [(arguments[0], None)],
        "os.mkdir": lambda arguments: [(arguments[0], arguments[2])],
        "os.remove": lambda arguments: [(arguments[0], arguments[1])],
        "os.rmdir": lambda arguments: [(arguments[0], arguments[1])],
        "os.truncate": lambda arguments: [(arguments[0], None)],
        "os.chmod": lambda arguments: [(arguments[0], arguments[2])],
        "os.rename": lambda arguments: [(arguments[0], arguments[2]), (arguments[1], arguments[3])],
        "os.link": lambda arguments: [(arguments[0], arguments[2]), (arguments[1], arguments[3])],
        "os.symlink": lambda arguments: [(arguments[1], arguments[2])],
        "fcntl.flock": lambda arguments: [(arguments[0], None)],
        "fcntl.lockf": lambda arguments: [(arguments[0], None)],
    }
)
"""Audit events that change files or lock them: the paths in their arguments, each with the folder it is relative to."""


@dataclass(frozen=True)
class Plan:
    """What is watched, and what is done at which event."""

    folder: str
    """Events of paths in this folder count."""
    trace: str = ""
    """File to which a line per event is appended: its kind and its paths, the last one being what it makes."""
    at: int | None = None
    """Number of the event, from 0, before which something is done."""
    matching: str = ""
    """Or a regular expression for its line in the trace: something is done before the first that it is found in."""
    after: int = 0
    """Number of the event that is the first to be compared with `matching`."""
    act: str = "SIGKILL"
    """Name of the signal that the process gets; `tear`, which cuts what was written to the file since it was opened in
    half and kills; or the name of an error that the call fails with, such as `ENOSPC`."""
    max_file_bytes: int | None = None
    """Size in bytes that no file can exceed."""
    lasts: bool = False
    """Whether every event that `matching` is found in counts, not only the first."""
    dies_of_size: bool = False
    """Whether a file that would exceed it kills the process, instead of letting the write fail."""

    @property
    def signal(self) -> int:
        """Number of the signal that the process ends by."""
        return signal.SIGXFSZ if self.dies_of_size else signal.SIGKILL


def install(plan: Plan) -> None:
    """Watch this process from now on."""
    if plan.max_file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if plan.dies_of_size else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.max_file_bytes, resource.RLIM_INFINITY))
    watcher = _Watcher(plan)
    fsync = os.fsync

    def watched_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        watcher.see("fsync", [_absolute(number, None)], descriptor=number)
        fsync(descriptor)

    os.fsync = watched_fsync
    sys.addaudithook(watcher.audit)


class _Watcher:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._process = os.getpid()
        self._trace = os.open(plan.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if plan.trace else None
        self._lock = threading.Lock()
        self._count = 0
        self._busy_thread: int | None = None
        self._sizes: dict[str, int] = {}
        """Size of each file when it was opened."""

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _PATHS or self._busy_thread == threading.get_ident() or os.getpid() != self._process:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        paths = [_absolute(*each) for each in _PATHS[event](arguments)]
        if event == "open" and arguments[2] & os.O_APPEND and Path(paths[0]).is_file():
            self._sizes[paths[0]] = Path(paths[0]).stat().st_size
        self.see(event.rpartition(".")[2], paths)

    def see(self, kind: str, paths: list[str], *, descriptor: int | None = None) -> None:
        if not any(Path(path).is_relative_to(self._plan.folder) for path in paths):
            return
        with self._lock:
            self._busy_thread = threading.get_ident()
            try:
                line = " ".join([kind, *(os.path.relpath(path, self._plan.folder) for path in paths)])
                if self._trace is not None:
                    os.write(self._trace, f"{line}\n".encode())
                is_hit = self._count == self._plan.at or (
                    bool(self._plan.matching)
                    and self._count >= self._plan.after
                    and re.search(self._plan.matching, line) is not None
                )
                self._count += 1
                if is_hit:
                    self._act(paths[0], descriptor)
            finally:
                self._busy_thread = None

    def _act(self, path: str, descriptor: int | None) -> None:
        plan = self._plan
        if plan.matching and not plan.lasts:
            self._plan = Plan(plan.folder, plan.trace)
        if plan.act == "tear" and descriptor is not None and Path(path).is_file():
            before = self._sizes.get(path, 0)
            os.truncate(path, before + (Path(path).stat().st_size - before) // 2)
        if plan.act.startswith("E"):
            number = getattr(errno, plan.act)
            raise OSError(number, os.strerror(number), path)
        os.kill(self._process, signal.SIGKILL if plan.act == "tear" else signal.Signals[plan.act])


def _absolute(path: Any, folder: Any) -> str:
    """Return the absolute path of a path, or of an open file by its number."""
    if isinstance(path, int):
        link = Path(f"/proc/self/fd/{path}")
        return str(link.readlink()) if link.exists() else ""
    start = Path(_absolute(folder, None)) if isinstance(folder, int) and folder >= 0 else Path.cwd()
    return os.path.normpath(start / os.fsdecode(path))
