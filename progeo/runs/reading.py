"""Read the metrics and the settings of runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from progeo.engine.run_folder import RunFolder, is_of_steps, stored_settings
from progeo.json_files import read_json_as
from progeo.training.prompt_files import DESCRIPTION

MAX_POINTS = 300
"""Maximum number of points of a line; of more, the means of neighbors are taken."""
_MAX_LINES = 8
"""Number of groups that have lines of their own, over all runs; more are averaged."""
_STAGES = {"prompts.epochs": "Stage 1, prompts", "training.epochs": "Stage 2, encoder"}
"""Heading of each stage, by the setting with its number of epochs."""
_NO_LOSSES = {"group", "epoch", "step", "steps_per_epoch", "skipped", "images_per_s", "waited_share", "seconds"}
_MEASURES = ("val ", "_accuracy")
"""Beginning and end of the names of measures."""
MEMORY = ("device_memory_bytes", "memory_bytes")

Row = Mapping[str, Any]


class _Prompts(TypedDict):
    """What is read of the description of learned prompts."""

    groups: list[dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """A stage of a run, as far as it has come."""

    run: str
    """Name of the run, as shown."""
    folder: RunFolder
    settings: Mapping[str, Any]
    """Settings by dotted names."""
    rows: Sequence[Row]
    """Lines of the metrics file."""

    @property
    def title(self) -> str:
        """Heading of the stage."""
        return next((title for name, title in _STAGES.items() if name in self.settings), "Training")

    @property
    def planned_epochs(self) -> int | None:
        """Number of epochs of each group that the settings name."""
        found = next((self.settings[name] for name in _STAGES if name in self.settings), None)
        return found if isinstance(found, int) else None

    @cached_property
    def epochs(self) -> list[Row]:
        """Rows of epochs and their validations; epoch 0 is before training."""
        return [row for row in self.rows if not is_of_steps(row)]

    @cached_property
    def steps(self) -> list[Row]:
        """Rows of steps; earlier versions wrote none."""
        return [row for row in self.rows if is_of_steps(row)]

    @cached_property
    def groups(self) -> list[int]:
        """Groups that are trained independently; empty if there is a single training."""
        return sorted({row["group"] for row in self.rows if "group" in row})

    @cached_property
    def measures(self) -> list[str]:
        """Names of the measures of the validation, the primary one first."""
        names = _names(row for row in self.epochs if row["epoch"])
        found = [name for name in names if name.startswith(_MEASURES[0]) or name.endswith(_MEASURES[1])]
        return sorted(found, key=lambda name: not name.startswith("held_out_"))  # else in their order

    @cached_property
    def losses(self) -> list[str]:
        """Names of the loss and its terms; the loss alone if it has a single term."""
        others = {*self.measures, *self.rates, *MEMORY, *_NO_LOSSES}
        names = [name for name in _names(self.rows) if name not in others]
        return names if len(names) > 2 else names[:1]

    @cached_property
    def rates(self) -> list[str]:
        """Names of the learning rates."""
        return [name for name in _names(self.steps) if name.endswith("learning_rate")]


@dataclass(frozen=True)
class Line:
    """A quantity over steps or epochs."""

    name: str
    x: list[float]
    y: list[float]
    num_rows: int
    """Number of rows that the points are from."""


def read_stages(paths: Sequence[Path]) -> list[Stage]:
    """Read the stages of runs.

    Args:
        paths: folders of runs, with their stages in subfolders, or of single stages.

    Raises:
        FileNotFoundError: a folder holds no run; the message names it.
        ValueError: settings or metrics are corrupt, or a folder is named twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"Name each run once; got {', '.join(map(str, paths))}.")
    stages = []
    for path, name in zip(paths, short_names(paths), strict=True):
        found = [folder for folder in map(RunFolder, stage_folders(path)) if folder.config.is_file()]
        if not found:
            raise FileNotFoundError(
                f"{path} holds no run: name a folder that `progeo train --out` made, or its stage1 or stage2."
            )
        stages += [Stage(name, each, stored_settings(each), each.read_metrics()) for each in found]
    return stages


def stage_folders(path: Path) -> list[Path]:
    """Return the folders that can hold the stages of a run, given its folder or that of a single stage."""
    return [path, path / "stage1", path / "stage2"]


def by_title(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """Put the same stages of several runs together."""
    return {title: [each for each in stages if each.title == title] for title in sorted({s.title for s in stages})}


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name each folder by as many last parts of its path as tell it from the others."""
    parts = [path.resolve().parts for path in paths]

    def name(mine: tuple[str, ...]) -> str:
        ends = (mine[-count:] for count in range(1, len(mine) + 1))
        return "/".join(next((end for end in ends if sum(each[-len(end) :] == end for each in parts) == 1), mine))

    return [name(each) for each in parts]


def number(value: Any) -> float:
    """Return a value of a row as a number; NaN if it is missing or none."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def lines(stages: Sequence[Stage], name: str, *, of_epochs: bool = False, scale: float = 1.0) -> list[Line]:
    """Return a quantity of each stage over its steps or epochs; that of several groups as lines of their own, if few.

    Args:
        name: name of the quantity in rows.
        of_epochs: take rows of epochs, instead of steps.
        scale: factor of the quantity.
    """
    is_split = sum(max(len(stage.groups), 1) for stage in stages) <= _MAX_LINES
    found = []
    for stage in stages:
        rows, x = (stage.epochs, "epoch") if of_epochs else (stage.steps, "step")
        rows = [row for row in rows if math.isfinite(number(row.get(name)))]
        groups = stage.groups if len(stage.groups) > 1 else []
        if groups and is_split:
            parts = {f"{stage.run}, group {each + 1}": [row for row in rows if row["group"] == each] for each in groups}
        else:
            parts = {f"{stage.run}, mean of {len(groups)} groups" if groups else stage.run: rows}
        found += [_line(label, part, x, name, scale) for label, part in parts.items()]
    return found


def final_of_groups(stage: Stage) -> dict[int, Row]:
    """Return the result of each group, or of its last epoch so far.

    Raises:
        ValueError: the description of the prompts is corrupt.
    """
    if not stage.groups:
        return {}
    last = {row["group"]: row for row in stage.epochs}
    description = stage.folder.path / DESCRIPTION
    if description.is_file():
        summaries = dict(enumerate(read_json_as(description, _Prompts)["groups"]))
        last = {group: {**last.get(group, {}), **summary} for group, summary in summaries.items()}
    return last


def _line(label: str, rows: Sequence[Row], x: str, name: str, scale: float) -> Line:
    """Average rows of the same x, of several groups, then neighbors, if there are too many points."""
    if not rows:
        return Line(label, [], [], 0)
    at, which = np.unique([number(row[x]) for row in rows], return_inverse=True)
    values = np.bincount(which, [scale * number(row[name]) for row in rows]) / np.bincount(which)
    points = [(each.mean(), part.mean()) for each, part in zip(_bins(at), _bins(values), strict=True)]
    return Line(label, [float(each) for each, _ in points], [float(each) for _, each in points], len(rows))


def _bins(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(values, min(len(values), MAX_POINTS))


def _names(rows: Iterable[Row]) -> list[str]:
    """Return the names of all numbers of rows, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if math.isfinite(number(value))))
