"""Read damaged files in a child process of bounded memory, and tell which end in a traceback or a crash, or never."""

import gc
import mmap
import os
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_ALLOWED_BYTES = 2**30
"""Memory that reading a small file may take."""
_ALLOWED_CPU_S = 30
"""Processor time that reading a small file may take, which ends the child, also inside of a library."""


@dataclass(frozen=True)
class Reader:
    """A kind of file: how a good one is made, and what reads it."""

    build: Callable[[Path], Path]
    """Writes the good file, with what belongs to it, below an empty folder; returns its path."""
    read: Callable[[Path], object]
    """Reads it; raises a ValueError or OSError that names the file, or a part of its path (see `named`)."""
    named: Callable[[Path], str] = lambda path: path.name
    """Part of its path that an error must name."""


def failures(reader: Reader, path: Path, damaged: Iterable[bytes | None]) -> list[str]:
    """Read each of the damaged contents of a file (None: a folder in its place) and say what went wrong.

    A child that is killed is followed by another, which goes on with the next content.
    """
    contents, found, progress = list(damaged), [], mmap.mmap(-1, 8)
    start = 0
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as report:
        while start < len(contents):
            if not (child := os.fork()):
                _read_all(reader, path, contents, start, progress, report.name)
            number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if not number:
                break
            last = int.from_bytes(progress[:], "little")
            found.append(f"content {last}: {signal.Signals(-number).name if number < 0 else f'ended with {number}'}")
            start = last + 1
        found += [line for line in report.read().split("\0") if line]
    return found


def _read_all(
    reader: Reader, path: Path, contents: list[bytes | None], start: int, progress: mmap.mmap, report: str
) -> None:
    """Read contents in this process, which ends here."""
    code = 3
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _ALLOWED_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        gc.disable()
        with Path(report).open("a", encoding="utf-8", errors="backslashreplace") as stream:
            for number in range(start, len(contents)):
                progress[:] = number.to_bytes(8, "little")
                signal.setitimer(signal.ITIMER_VIRTUAL, _ALLOWED_CPU_S)
                if (wrong := _wrong(reader, path, contents[number])) is not None:
                    stream.write(f"content {number}: {wrong}\0")
                    stream.flush()
        code = 0
    finally:
        os._exit(code)


def _wrong(reader: Reader, path: Path, content: bytes | None) -> str | None:
    """Read one content; return what is wrong with the outcome, or None."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)  # what is mapped of the former one stays
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    try:
        reader.read(path)
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeError):
            return f"{type(error).__name__}: {traceback.format_exc()[-1500:]}"
        if reader.named(path) not in str(error) and (content is not None or str(path.parent) not in str(error)):
            return f"does not name {reader.named(path)}: {error!s:.300}\n{traceback.format_exc()[-700:]}"
    except BaseException:
        return traceback.format_exc()[-1500:]
    return None
