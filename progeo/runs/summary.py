"""Summarize runs in a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from progeo.printable import plain_table
from progeo.runs.reading import MEMORY, Stage, final_of_groups, number
from progeo.terminal import rich_table

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("run", "stage", "epochs", "best", "loss", "images/s", "memory")


@dataclass(frozen=True)
class Summary:
    """A stage of a run in a few numbers; what is not known yet, or was not written by an earlier version, is None."""

    run: str
    stage: str
    epochs: int
    """Number of finished epochs, over all groups."""
    planned_epochs: int | None
    """Number of epochs that the settings name, of the groups that were begun."""
    num_groups: int
    """Number of groups that are trained independently; 0 if there is a single training."""
    measure: str | None
    """Name of the primary measure."""
    best: float | None
    """Its best value; for groups, the mean of their last values."""
    best_epoch: int | None
    loss: float | None
    """Of the last epoch, or else of the last steps; for groups, their mean."""
    images_per_s: float | None
    """Median over the rows of steps."""
    memory_bytes: float | None
    """Highest value."""

    @property
    def cells(self) -> list[str]:
        """Texts of the columns of `HEADER`."""
        planned = "" if self.planned_epochs is None else f"/{self.planned_epochs:,}"
        groups = f" in {self.num_groups:,} groups" if self.num_groups > 1 else ""
        return [
            self.run,
            self.stage,
            f"{self.epochs:,}{planned}{groups}",
            self.best_in_words,
            _text(self.loss, "{:.4g}"),
            _text(self.images_per_s, "{:,.0f}" if (self.images_per_s or 0) >= 10 else "{:.1f}"),
            _text(None if self.memory_bytes is None else self.memory_bytes / 1e9, "{:.2f} GB"),
        ]

    @property
    def best_in_words(self) -> str:
        """The best value of the primary measure, and its epoch."""
        if self.measure is None or self.best is None:
            return "-"
        when = (
            f", epoch {self.best_epoch:,}" if self.best_epoch else ", mean of the groups" if self.num_groups > 1 else ""
        )
        return f"{self.measure.replace('_', ' ')} {self.best:.1f}{when}"


@dataclass(frozen=True)
class Summaries:
    """Summaries of all stages; as text, a table."""

    stages: Sequence[Summary]

    @property
    def rows(self) -> list[list[str]]:
        """Texts of all rows, the column names first."""
        return [list(HEADER), *(each.cells for each in self.stages)]

    def __str__(self) -> str:
        return "\n".join(plain_table(self.rows, num_texts=len(HEADER)))

    def __rich__(self) -> "Table":
        return rich_table(self.rows, num_texts=len(HEADER))


def summarize(stage: Stage) -> Summary:
    """Summarize a stage.

    Raises:
        ValueError: the description of the prompts is corrupt.
    """
    groups = max(len(stage.groups), 1)
    best_epoch, best = _best(stage)
    memory = [number(row[name]) for row in stage.steps for name in MEMORY if name in row]
    return Summary(
        run=stage.run,
        stage=stage.title,
        epochs=sum(row["epoch"] > 0 for row in stage.epochs),
        planned_epochs=None if stage.planned_epochs is None else stage.planned_epochs * groups,
        num_groups=len(stage.groups),
        measure=_primary(stage),
        best=best,
        best_epoch=best_epoch,
        loss=_last_loss(stage),
        images_per_s=_of_known(median, [number(row.get("images_per_s")) for row in stage.steps]),
        memory_bytes=_of_known(max, memory),
    )


def different_settings(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Return the settings that differ between stages, by dotted name, one text for each stage."""
    names = dict.fromkeys(name for stage in stages for name in stage.settings if name not in ("out", "resume", "wait"))
    texts = {name: [setting_text(stage.settings, name) for stage in stages] for name in names}
    return {name: values for name, values in texts.items() if len(set(values)) > 1}


def setting_text(settings: Mapping[str, Any], name: str) -> str:
    """Write a setting as a text; a dash if there is none."""
    if name not in settings:
        return "-"
    value = settings[name]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _primary(stage: Stage) -> str | None:
    measured = {name for row in final_of_groups(stage).values() for name in row if name.endswith("_accuracy")}
    by_rank = ("held_out_image_to_text_accuracy", "image_to_text_accuracy")
    return next((name for name in by_rank if name in measured), next(iter(stage.measures), None))


def _best(stage: Stage) -> tuple[int | None, float | None]:
    """Return the epoch of the best value of the primary measure, and that; of groups, the mean of their last values."""
    name = _primary(stage)
    if name is None:
        return None, None
    if stage.groups:
        return None, _of_known(fmean, [number(row.get(name)) for row in final_of_groups(stage).values()])
    values = [(number(row.get(name)), row["epoch"]) for row in stage.epochs if row["epoch"]]
    best, epoch = max((each for each in values if math.isfinite(each[0])), key=lambda each: each[0])
    return epoch, best


def _last_loss(stage: Stage) -> float | None:
    rows = stage.epochs if any("loss" in row for row in stage.epochs) else stage.steps
    last = {row.get("group"): number(row["loss"]) for row in rows if "loss" in row}
    return _of_known(fmean, list(last.values()))


def _of_known(function: Any, values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return function(known) if known else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
