"""Progress of a long job: a bar on a terminal, and a line of the log now and then elsewhere, as under Slurm."""

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from tqdm import tqdm

_LOGGER = logging.getLogger("progeo")
INTERVAL_S = 30.0
"""Time between two lines."""
_UNITS_S = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}


class Progress:
    """Shows how far a job is; used as a context, it ends with it.

    Args:
        doing: what is done.
        total: number of steps; None if it is not known.
        done: number of steps that were done before.
        later: number of such steps that come after this job, as in later epochs.
        images_per_step: number of images that each step takes; None counts the images themselves as steps.
        leave: whether the bar stays on the terminal at the end.
        hidden: show nothing.
        interval_s: time between two lines, and before the first.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        doing: str = "",
        *,
        total: int | None = None,
        done: int = 0,
        later: int = 0,
        images_per_step: int | None = None,
        leave: bool = False,
        hidden: bool = False,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.doing, self.total, self.done, self.images_per_step = doing, total, done, images_per_step
        self.later, self.interval_s, self.clock = later, interval_s, clock
        self.numbers: Mapping[str, float] = MappingProxyType({})
        # tqdm itself finds out whether there is a terminal.
        self.bar = tqdm(
            desc=doing,
            total=total,
            initial=done,
            unit="img",
            unit_scale=images_per_step or False,
            leave=leave,
            disable=True if hidden else None,
        )
        self._logs = bool(self.bar.disable) and not hidden
        self._logged_s, self._logged_at = clock(), done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def describe(self, doing: str) -> None:
        """Set what is done."""
        self.doing = doing
        self.bar.set_description(doing)

    def show(self, numbers: Mapping[str, float]) -> None:
        """Set the numbers that are shown beside, such as losses; seen with the next update."""
        self.numbers = numbers
        if not self.bar.disable:
            self.bar.set_postfix({name: _text(number) for name, number in numbers.items()}, refresh=False)

    def update(self, count: int = 1) -> None:
        """Count steps that were done, and log a line if the last was long ago."""
        self.done += count
        self.bar.update(count)
        if self._logs and (now := self.clock()) - self._logged_s >= self.interval_s:
            _LOGGER.info("%s", self._line(now))
            self._logged_s, self._logged_at = now, self.done

    def _line(self, now: float) -> str:
        """Say what is done, how far it is, its numbers and, as fast as since the last line, the time that is left."""
        steps_per_s = (self.done - self._logged_at) / (now - self._logged_s)
        rate = steps_per_s * (self.images_per_step or 1)
        of_total = "" if self.total is None else f"/{self.total:,}"
        parts = [
            f"{self.done:,}{of_total} images" if self.images_per_step is None else f"step {self.done:,}{of_total}",
            *(f"{name} {_text(number)}" for name, number in self.numbers.items()),
            f"{rate:,.{0 if rate >= 10 else 1}f} images/s",
        ]
        if self.total is not None and steps_per_s > 0:
            left = self.total - self.done
            parts.append(f"{duration(left / steps_per_s)} left")
            if self.later:
                parts.append(f"{duration((left + self.later) / steps_per_s)} with all that follows")
        return f"{self.doing}: {', '.join(parts)}"


def _text(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.3f}"


def duration(seconds: float) -> str:
    """Write a time in its largest unit and the next, such as `2 h 5 min`."""
    parts: list[str] = []
    rest = max(0, round(seconds))
    for unit, size in _UNITS_S.items():
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or "0 s"
