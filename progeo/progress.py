"""Progress of a long job: a bar on a terminal, and an entry of the log now and then elsewhere, as under Slurm."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from progeo.log_format import logs_json

Item = TypeVar("Item")
_LOGGER = logging.getLogger("progeo")
INTERVAL_S = 30.0
"""Time between two lines of text."""
JSON_INTERVAL_S = 2.0
"""Time between two lines of JSON, which a program shows in place of the bar."""
_TICK_S = 0.5
_UNITS_S = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}


class Progress:
    """Shows how far a job is; used as a context, it ends with it.

    Where the log is JSON, its entries have these fields too: `doing`, the numbers `done` and `total` of what `unit`
    says, `rate` in these units per second, `left_s` in seconds, and `numbers` that are shown beside.

    Args:
        doing: what is done.
        total: number of steps; None if it is not known.
        done: number of steps that were done before.
        later: number of such steps that come after this job, as in later epochs.
        images_per_step: number of images that each step takes; None counts the images themselves as steps.
        unit: what is counted if it is not images; empty if nothing is, and only time passes.
        leave: whether the bar stays on the terminal at the end.
        hidden: show nothing, as where the log is for warnings only.
        interval_s: time between two entries, and before the first; None for that of the format.
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
        unit: str = "images",
        leave: bool = False,
        hidden: bool = False,
        interval_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.doing, self.total, self.done, self.images_per_step = doing, total, done, images_per_step
        self.later, self.unit, self.clock = later, unit, clock
        self._is_json = logs_json()
        self.interval_s = interval_s or (JSON_INTERVAL_S if self._is_json else INTERVAL_S)
        self.numbers: Mapping[str, float] = MappingProxyType({})
        is_hidden = hidden or _LOGGER.level > logging.INFO
        # tqdm itself finds out whether there is a terminal.
        self.bar = tqdm(
            desc=doing,
            total=total,
            initial=done,
            unit="img" if unit == "images" else f" {unit}",
            unit_scale=images_per_step or unit == "bytes",
            bar_format=None if unit else "{desc} [{elapsed}]",
            leave=leave,
            disable=True if is_hidden or self._is_json else None,
        )
        self._logs, self._has_logged = bool(self.bar.disable) and not is_hidden, False
        self._began_s, self._began_at = self._logged_s, self._logged_at = clock(), done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()
        if self._is_json and self._has_logged and error is None:
            self._logged_s, self._logged_at = self._began_s, self._began_at  # the rate of all of it
            self._log(self.clock())

    def describe(self, doing: str) -> None:
        """Set what is done."""
        self.doing = doing
        self.bar.set_description(doing)

    def expect(self, total: int | None) -> None:
        """Set the number of steps, once it is known."""
        self.total = self.bar.total = total

    def show(self, numbers: Mapping[str, float]) -> None:
        """Set the numbers that are shown beside, such as losses; seen with the next update."""
        self.numbers = numbers
        if not self.bar.disable:
            self.bar.set_postfix({name: _text(number) for name, number in numbers.items()}, refresh=False)

    def update(self, count: int = 1) -> None:
        """Count steps that were done, and log an entry if the last was long ago."""
        self.done += count
        self.bar.update(count)
        self._log_if_due()

    def tick(self) -> None:
        """Show that time passes."""
        self.bar.refresh()
        self._log_if_due()

    def _log_if_due(self) -> None:
        if self._logs and (now := self.clock()) - self._logged_s >= self.interval_s:
            self._log(now)

    def _log(self, now: float) -> None:
        steps_per_s = (self.done - self._logged_at) / (now - self._logged_s)
        line = self._line(steps_per_s) if self.unit else f"{self.doing}: {duration(now - self._began_s)} so far"
        _LOGGER.info("%s", line, extra={"progress": self._fields(steps_per_s)})
        self._logged_s, self._logged_at, self._has_logged = now, self.done, True

    def _line(self, steps_per_s: float) -> str:
        """Say what is done, how far it is, its numbers and, as fast as since the last entry, the time that is left."""
        rate = steps_per_s * (self.images_per_step or 1)
        of_total = "" if self.total is None else f"/{self.total:,}"
        parts = [
            f"{self.done:,}{of_total} {self.unit}" if self.images_per_step is None else f"step {self.done:,}{of_total}",
            *(f"{name} {_text(number)}" for name, number in self.numbers.items()),
            f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s",
        ]
        if (left_s := self._left_s(steps_per_s)) is not None:
            parts.append(f"{duration(left_s)} left")
            if self.later:
                parts.append(f"{duration(left_s + self.later / steps_per_s)} with all that follows")
        return f"{self.doing}: {', '.join(parts)}"

    def _fields(self, steps_per_s: float) -> dict[str, Any]:
        """Return what an entry of JSON has besides its text."""
        if not self.unit:
            return {"doing": self.doing, "done": None, "total": None, "rate": None, "left_s": None}
        left_s = self._left_s(steps_per_s)
        fields: dict[str, Any] = {
            "doing": self.doing,
            "done": self.done,
            "total": self.total,
            "unit": self.unit if self.images_per_step is None else "steps",
            "rate": round(steps_per_s, 3),
            "left_s": None if left_s is None else round(left_s, 1),
        }
        if self.later and left_s is not None:
            fields["left_with_later_s"] = round(left_s + self.later / steps_per_s, 1)
        if self.numbers:
            finite = {name: number if math.isfinite(number) else None for name, number in self.numbers.items()}
            fields["numbers"] = finite
        return fields

    def _left_s(self, steps_per_s: float) -> float | None:
        if self.total is None or steps_per_s <= 0:
            return None
        return (self.total - self.done) / steps_per_s


def followed(
    items: Iterable[Item],
    doing: str,
    *,
    total: int | None = None,
    size: Callable[[Item], int] = lambda _: 1,
    unit: str = "images",
    hidden: bool = False,
) -> Iterator[Item]:
    """Yield items, and show how many were worked on.

    Args:
        total: the sizes of all items together; None if it is not known.
        size: how much an item counts.
        doing, unit, hidden: see `Progress`.
    """
    with Progress(doing, total=total, unit=unit, hidden=hidden) as progress:
        for item in items:
            yield item
            progress.update(size(item))


@contextmanager
def phase(doing: str, *, hidden: bool = False) -> Iterator[None]:
    """Show that a job without steps goes on, such as a call of a library, which must let other threads run."""
    if hidden:
        yield
        return
    ended = Event()
    with Progress(doing, unit="") as progress:

        def tick() -> None:
            while not ended.wait(_TICK_S):
                progress.tick()

        thread = Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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
