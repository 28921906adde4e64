"""The run folder, which holds settings, environment, log, metrics, checkpoints and models."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

import yaml
from msgspec import Meta

from progeo.atomic import remove_abandoned, replacing
from progeo.disk import make_folder, sync
from progeo.engine.checkpoint import newest_checkpoint
from progeo.engine.environment import ENVIRONMENT, environment
from progeo.engine.log import LOGGER, log_to_file
from progeo.engine.options import Keep
from progeo.files import write_json
from progeo.json_files import as_kind

_GROUP = re.compile(r"group_(0|[1-9]\d*)")


class _Epoch(TypedDict):
    epoch: Annotated[int, Meta(ge=0)]


class _Line(_Epoch, total=False):
    """Line of the metrics file, as far as it is read: that of an epoch, or of some steps of one, which has `step`."""

    group: Annotated[int, Meta(ge=0)]
    step: Annotated[int, Meta(ge=1)]
    steps_per_epoch: Annotated[int, Meta(ge=1)]
    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """YAML file with the settings of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """JSON-lines file of metrics, one object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints to resume from."""
        return self.path / "checkpoints"

    def group_checkpoints(self, index: int) -> Path:
        """Return the folder of checkpoints of one group that is trained independently."""
        return self.checkpoints / f"group_{index}"

    def group_file(self, index: int) -> Path:
        """Return the file with the result of one group that is trained independently; it exists once that is done."""
        return self.checkpoints / f"group_{index}.safetensors"

    @property
    def begun(self) -> bool:
        """Whether there is anything to resume from: a checkpoint of the run or of a group, or a finished group."""
        return any(path.is_file() for path in self._groups()) or bool(self.newest_checkpoints())

    def newest_checkpoints(self) -> list[Path]:
        """Return the newest checkpoint of the run and those of its groups, where there are some."""
        found = [newest_checkpoint(folder) for folder in (self.checkpoints, *self._groups())]
        return [path for path in found if path is not None]

    def former_checkpoints(self) -> list[Path]:
        """Return the checkpoints of unfinished groups that an earlier version named `epoch_000001`."""
        found = [state.parent for state in self.checkpoints.glob("group_*/epoch_??????/state.json")]
        return [path for path in found if not path.parent.with_suffix(".safetensors").is_file()]

    def _groups(self) -> list[Path]:
        beside = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return [path for path in beside if _GROUP.fullmatch(path.name.removesuffix(".safetensors"))]

    def kept(self, keep: Keep) -> Path:
        """Return the folder of the model that the run keeps, the best so far or the last."""
        return self.path / keep

    def kept_of_epoch(self, epoch: int) -> Path:
        """Return the folder of the model as it was after an epoch."""
        return self.path / "epochs" / f"epoch_{epoch:06d}"

    def append_metrics(self, values: Mapping[str, Any], *, durable: bool = True) -> None:
        """Append a line to the metrics file.

        Args:
            values: values by name.
            durable: wait until the line is on the disk.
        """
        # Bytes reach the file in one write, which lines of other processes cannot come into.
        with self.metrics.open("ab") as stream:
            stream.write(f"{json.dumps(dict(values))}\n".encode())
        if durable:
            self.sync_metrics()

    def sync_metrics(self) -> None:
        """Wait until the metrics file, if there is one, is on the disk."""
        if self.metrics.is_file():
            sync(self.metrics)
            sync(self.path)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all lines of the metrics file, without an incomplete last line.

        Raises:
            ValueError: a complete line is not that of an epoch or its steps; the message names the file.
        """
        if not self.metrics.is_file():
            return []
        try:
            lines = [
                json.loads(line) for line in self.metrics.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
            ]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.metrics} is corrupt: a line is not JSON ({error}). Remove that line.") from None
        as_kind(lines, list[_Line], self.metrics, advice="Remove that line.")
        return lines

    def keep_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the lines for which `keep` is false: their steps will be run again."""
        try:
            kept = [row for row in self.read_metrics() if keep(row)]
        except LookupError as error:
            raise ValueError(f"{self.metrics} has a line of another kind of training: remove it. ({error!r})") from None
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def is_of_steps(row: Mapping[str, Any]) -> bool:
    """Return whether a line of metrics is of some steps of an epoch, not of an epoch and its validation."""
    return "step" in row


def is_done(row: Mapping[str, Any], epochs: int, steps: int) -> bool:
    """Return whether a line of metrics is of the first `epochs` epochs, or of the first `steps` steps of the next."""
    if is_of_steps(row):
        return row["step"] <= epochs * row["steps_per_epoch"] + steps
    return row["epoch"] <= epochs


def check_run(
    run: RunFolder,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
    may_change: Collection[str] = (),
    check: Callable[[RunFolder, Mapping[str, Any]], None] = lambda run, changed: None,
) -> None:
    """Check that a folder can be that of a new run, or that its run can be resumed, before `open_run`.

    Args:
        settings: nested dicts of plain values.
        resume: resume the run in the folder; a folder without a checkpoint starts a new run.
        defaults: default settings by dotted name, for a run that was started before a setting existed.
        renamed: renamed settings: former dotted name -> current dotted name.
        may_change: dotted names of settings that may differ in a resumed run.
        check: called with the run to resume and the former values of the settings that changed, by dotted names; raises
            ValueError if it cannot be resumed.

    Raises:
        ValueError: the folder holds a run and `resume` is off, or the run to resume has different or unreadable
            settings.
    """
    if not run.config.is_file():
        return
    if not resume:
        raise ValueError(f"{run.path} already holds a run: set `resume` to resume it, or name another `out`.")
    if run.begun:
        stored = {renamed.get(name, name): value for name, value in stored_settings(run).items()}
        before, now = flat_settings(defaults) | stored, flat_settings(settings)
        changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
        _refuse_changes(run, sorted(changed.difference(may_change)), before, now)
        check(run, {name: before.get(name) for name in changed})


def open_run(run: RunFolder, settings: Mapping[str, Any]) -> None:
    """Create the folder of a new run, or open that of a run to resume, after `check_run`; start the log in it."""
    make_folder(run.path)
    for folder in (run.path, *(each for each in run.path.rglob("*") if each.is_dir())):
        remove_abandoned(folder)
    with replacing(run.config) as temporary:
        temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    write_json(run.path / ENVIRONMENT, environment())
    log_to_file(run.path / "log.txt")
    LOGGER.info("run folder %s", run.path)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings into a dict by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def stored_settings(run: RunFolder) -> dict[str, Any]:
    """Read the settings that a run was started with, by dotted names.

    Raises:
        ValueError: the file is corrupt.
    """
    try:
        stored = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{run.config} does not hold the settings of the run: it is corrupt. Name another `out`.")
    return flat_settings(stored)


def _refuse_changes(run: RunFolder, names: Collection[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    sections = {name.partition(".")[0] for name in now}
    unknown = [name for name in names if name.partition(".")[0] not in sections]
    if unknown:
        raise ValueError(
            f"The run in {run.config} has settings that are not known now: {', '.join(unknown)}. Name the `plugin` "
            f"that adds them, or another `out`."
        )
    changes = [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names]
    if changes:
        raise ValueError(f"The run in {run.config} has other settings: {'; '.join(changes)}. Name another `out`.")
