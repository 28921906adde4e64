"""What a long command would take: the result of a dry run, which checks and measures but writes nothing."""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from progeo.disk import nearest_folder
from progeo.progress import duration
from progeo.unwritten import ProblemsError


@dataclass(frozen=True)
class Phase:
    """Steps or images of the same kind, one after the other."""

    name: str
    count: int
    unit: str
    """What is counted, such as `steps`."""
    seconds: float
    """Estimated time of all of them, of which some were measured."""

    def __str__(self) -> str:
        if not self.count:
            return f"{self.name}: nothing is left to do"
        one = self.seconds / self.count
        speed = f"{1 / one:,.3g} per second" if 0 < one < 0.1 else f"{one:.3g} s each"
        return f"{self.name}: {self.count:,} {self.unit}, {speed}, {duration(self.seconds)}"


@dataclass(frozen=True)
class Space:
    """Files that are written to a disk."""

    what: str
    path: Path
    needed_bytes: int
    free_bytes: int
    disk: int
    """Number of the disk, on which others may take space, too."""

    @property
    def is_enough(self) -> bool:
        """Whether the files fit."""
        return self.needed_bytes <= self.free_bytes

    def __str__(self) -> str:
        only = "" if self.is_enough else "only "
        return f"{self.what}: {in_bytes(self.needed_bytes)} in {self.path}, {only}{in_bytes(self.free_bytes)} are free"


@dataclass(frozen=True)
class DryRun:
    """What a command would do; as text, a table of names and texts."""

    command: str
    found: Sequence[str]
    """What was checked, in lines of a name and a text."""
    phases: Sequence[Phase]
    spaces: Sequence[Space]

    @property
    def seconds(self) -> float:
        """Estimated time of the whole command."""
        return sum(phase.seconds for phase in self.phases)

    def __str__(self) -> str:
        lines = [f"dry run of progeo {self.command}: nothing was written", *self.found]
        lines += named("time", [*map(str, self.phases), f"about {duration(self.seconds)} in all"])
        lines += named("space", map(str, self.spaces))
        return "\n".join(lines)


def named(name: str, texts: Iterable[str]) -> list[str]:
    """Write texts as lines, the first with a name before it."""
    return [f"{'' if number else name:12}{text}" for number, text in enumerate(texts)]


def free_space(what: str, path: Path, needed_bytes: int) -> Space:
    """Compare files that are to be written to a folder, which need not exist yet, with the free space of its disk."""
    there = nearest_folder(path)
    return Space(what, path, needed_bytes, shutil.disk_usage(there).free, there.stat().st_dev)


def checked(runs: list[DryRun]) -> list[DryRun]:
    """Return dry runs if all files that the commands would write fit on their disks together.

    Raises:
        ProblemsError: they do not; it has the dry runs as its result.
    """
    spaces = [space for run in runs for space in run.spaces if space.needed_bytes]
    needed: Counter[int] = Counter()
    for space in spaces:
        needed[space.disk] += space.needed_bytes
    lacking = [str(space) for space in spaces if needed[space.disk] > space.free_bytes]
    if lacking:
        together = "" if len(lacking) == 1 else " They are on one disk."
        raise ProblemsError(f"There is not enough space. {'. '.join(lacking)}.{together}", runs)
    return runs


def in_bytes(count: float) -> str:
    """Write a number of bytes in MB or GB."""
    return f"{count / 1e9:,.1f} GB" if count > 1e9 else f"{count / 1e6:,.1f} MB"
