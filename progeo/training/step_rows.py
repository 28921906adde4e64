"""Rows of the metrics file within epochs: losses, learning rates, throughput and memory of the last steps."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import device

from progeo.engine.loop import Means, MeansState, StepResult
from progeo.engine.memory import used_memory
from progeo.engine.run_folder import RunFolder, is_of_steps
from progeo.json_files import converted
from progeo.training.task import Task

_Batch = TypeVar("_Batch")


class StepRows:
    """Writes a row of means every so many steps.

    Args:
        task: what is trained.
        run: run folder of the rows; None counts, but writes none.
        every: number of steps between two rows; None writes none, but counts for those of a resumed training.
        device: where the training runs.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        task: Task,
        run: RunFolder | None,
        *,
        every: int | None,
        device: device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task, self.run, self.every, self.device, self.clock = task, run, every, device, clock
        self.means = Means()
        """Running means of the loss terms since the last row."""
        self._began_s = self._last_s = clock()
        self._timed_steps, self._timed_s, self._waited_s = 0, 0.0, 0.0
        """Steps since the last row that this process took itself, their time, and how long they waited for images."""
        self._before_s: float | None = None
        """Time of former processes that trained the same; None before the first row."""

    def begin_epoch(self) -> None:
        """Let the time start here, so that the validation of the epoch before does not count as that of steps."""
        self._last_s = self.clock()

    def timed(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Yield batches, and measure how long each is waited for."""
        remaining = iter(batches)
        while True:
            began_s = self.clock()
            try:
                batch = next(remaining)
            except StopIteration:
                return
            self._waited_s += self.clock() - began_s
            yield batch

    def add(self, result: StepResult, learning_rates: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Add a step, and write a row if it is due.

        Args:
            result: of the step.
            learning_rates: those of the step, by name.
            epoch: number of the current epoch, from 1.
            step: number of finished steps over all epochs.
        """
        now = self.clock()
        self._timed_steps, self._timed_s, self._last_s = self._timed_steps + 1, self._timed_s + now - self._last_s, now
        self.means.add(result)
        if self.every is not None and step % self.every == 0:
            if self.run is not None:
                self.run.append_metrics(self._row(self.run, learning_rates, epoch=epoch, step=step), durable=False)
            self.means, self._timed_steps, self._timed_s, self._waited_s = Means(), 0, 0.0, 0.0

    def sync(self) -> None:
        """Write the rows to the disk."""
        if self.run is not None:
            self.run.sync_metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume between two rows."""
        return dict(vars(self.means))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.means = Means(**converted(dict(state), MeansState))

    def _row(self, run: RunFolder, learning_rates: Mapping[str, float], *, epoch: int, step: int) -> dict[str, Any]:
        if self._before_s is None:
            self._before_s = self._seconds_before(run)
        images = self._timed_steps * self.task.images_per_step
        return {
            **self.task.metrics,
            "epoch": epoch,
            "step": step,
            "steps_per_epoch": self.task.steps_per_epoch,
            **self.means.values(),
            **learning_rates,
            "images_per_s": round(images / max(self._timed_s, 1e-9), 1),
            "waited_share": round(self._waited_s / max(self._timed_s, 1e-9), 3),
            **used_memory(self.device),
            "seconds": round(self._before_s + self.clock() - self._began_s, 3),
        }

    def _seconds_before(self, run: RunFolder) -> float:
        """Return the time of the last row of this task, which a former process wrote."""
        rows = [row for row in run.read_metrics() if is_of_steps(row) and self.task.metrics.items() <= row.items()]
        return rows[-1].get("seconds", 0.0) if rows else 0.0
