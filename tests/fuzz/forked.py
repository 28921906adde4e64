"""Read damaged files in a forked child with bounded memory, which a crash ends instead of the tests."""

import json
import os
import resource
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fuzz.mutations import mutations

_MEMORY_ABOVE_START = 2**30


@dataclass(frozen=True)
class Reader:
    """A reader of files of one kind."""

    name: str
    file: str
    """The file that is damaged, relative to a folder."""
    make: Callable[[Path], object]
    """Write complete files to the folder."""
    read: Callable[[Path], Any]
    """Read the folder."""
    may_crash: bool = False
    """Whether the reader runs in a process of its own in the program, so that a crash or much memory is no failure."""


@dataclass
class Outcome:
    """What a reader made of damaged files."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of values, sentences and failures."""
    failures: list[str] = field(default_factory=list)


def read_damaged(reader: Reader, folder: Path, *, seed: int, count: int) -> Outcome:
    """Read `count` damaged versions of the file of a reader; a child that dies is replaced for the rest."""
    reader.make(folder)
    reader.read(folder)  # the complete files
    content = (folder / reader.file).read_bytes()
    log, outcome, done = folder.with_name(f"{folder.name}.log"), Outcome(), 0
    while done < count:
        log.write_text("")
        pid = os.fork()
        if pid == 0:
            _read_all(reader, folder, islice(mutations(content, seed, count), done, None), log)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for kind, text in lines:
            outcome.counts[kind] += 1
            outcome.failures += [f"{kind}: {text}"] if kind == "failure" else []
        done += len(lines)
        if status != 0:
            done += 1
            outcome.counts["crash"] += 1
            if not reader.may_crash:
                saved = folder.with_name(f"{folder.name}.{done}")
                saved.write_bytes((folder / reader.file).read_bytes())
                outcome.failures.append(f"ended by {status}: {saved}")
    return outcome


def _read_all(reader: Reader, folder: Path, contents: Any, log: Path) -> None:
    """Read each content, and log what came of it; never returns."""
    status = 1
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _MEMORY_ABOVE_START
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with log.open("a", buffering=1) as stream:
            for content in contents:
                (folder / reader.file).write_bytes(content)
                stream.write(json.dumps(_attempt(reader, folder)) + "\n")
        status = 0
    finally:
        os._exit(status)


def _attempt(reader: Reader, folder: Path) -> tuple[str, str]:
    try:
        reader.read(folder)
    except (ValueError, OSError) as error:
        text = str(error)
        is_sentence = str(folder) in text and "\n" not in text and len(text.encode()) < 8000
        return ("sentence", "") if is_sentence else ("failure", f"{type(error).__name__}: {text[:300]!r}")
    except MemoryError:
        if reader.may_crash:
            return "memory", ""
        return "failure", "MemoryError" + traceback.format_exc()[-1500:]
    except BaseException:
        return "failure", traceback.format_exc()[-1500:]
    return "value", ""
