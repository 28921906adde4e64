"""The folder of a run: its settings, environment, log, metrics and checkpoints."""

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
import yaml

from progeo.engine.checkpoint import EPOCHS, STEPS, finished_checkpoints
from progeo.engine.log import LOGGER, start_log
from progeo.files import replacing, write_json

Keep = Literal["best", "last"]
"""Which model a run gives, and the name of its folder."""

_GROUP = re.compile(r"group_(0|[1-9]\d*)")
_PACKAGES = ("progeo", "torch", "torchvision", "open_clip_torch", "accelerate", "numpy", "pyarrow", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """States to go on from."""
        return self.path / "checkpoints"

    def group_checkpoints(self, index: int) -> Path:
        """States to go on from of a group that is trained for itself."""
        return self.checkpoints / f"group_{index}"

    def group_file(self, index: int) -> Path:
        """What such a group left when it was finished."""
        return self.checkpoints / f"group_{index}.safetensors"

    @property
    def begun(self) -> bool:
        """Whether there is a state to go on from, of the run or of a group."""
        if finished_checkpoints(self.checkpoints, STEPS):
            return True
        beside = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        groups = [path for path in beside if _GROUP.fullmatch(path.name.removesuffix(".safetensors"))]
        return any(path.is_file() or finished_checkpoints(path, EPOCHS) for path in groups)

    def kept(self, keep: Keep) -> Path:
        """The model that the run gives, ready to be used: the best so far, or the last."""
        return self.path / keep

    def kept_of_epoch(self, epoch: int) -> Path:
        """The model as it was after an epoch."""
        return self.path / "epochs" / f"epoch_{epoch:06d}"

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add a line to the metrics."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(values)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines so far, without one that was torn off.

        Raises:
            ValueError: another line that is no JSON; the sentence names the file.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise ValueError(f"{self.metrics} is damaged: a line is not JSON ({error}). Remove that line.") from None

    def keep_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the lines that `keep` denies: what they tell of is going to be run again."""
        kept = [row for row in self.read_metrics() if keep(row)]
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def open_run(
    path: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
    may_change: Collection[str] = (),
    check: Callable[[RunFolder, Mapping[str, Any]], None] = lambda run, changed: None,
    is_main: bool = True,
) -> RunFolder:
    """Make the folder of a new run, or open that of a run to go on with.

    Args:
        path: the folder.
        settings: plain values, nested dicts.
        resume: go on with what is there; a folder without a checkpoint is a new run all the same.
        defaults: nested as `settings`; a run that was begun before there was a setting has its default.
        renamed: settings whose names have changed: from former dotted names to those of now.
        may_change: dotted names of settings that a resumed run may have otherwise.
        check: called with a run to resume and the former values of those settings that changed, by dotted names, before
            anything is written; raises ValueError where it cannot be resumed.
        is_main: whether this process checks and writes.

    Raises:
        ValueError: the folder holds a run and `resume` is off, or the run there has other settings.
    """
    run = RunFolder(path)
    if is_main:
        if run.config.is_file():
            if not resume:
                raise ValueError(
                    f"{path} already holds a run: add --resume true to go on with it, or name another --run."
                )
            if run.begun:
                stored = {renamed.get(name, name): value for name, value in _stored_settings(run.config).items()}
                before, now = flat_settings(defaults) | stored, flat_settings(settings)
                changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
                _refuse_changes(run, sorted(changed.difference(may_change)), before, now)
                check(run, {name: before.get(name) for name in changed})
        path.mkdir(parents=True, exist_ok=True)
        with replacing(run.config) as temporary:
            temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
        write_json(path / "environment.json", _environment())
    start_log(path / "log.txt", is_main=is_main)
    LOGGER.info("run folder %s", path)
    return run


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _stored_settings(path: Path) -> dict[str, Any]:
    """The settings of a run by their dotted names."""
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"{path} does not hold the settings of the run: it is damaged. Name another --run.")
    return flat_settings(stored)


def _refuse_changes(run: RunFolder, names: Collection[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changes = [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names]
    if changes:
        raise ValueError(f"The run in {run.config} has other settings: {'; '.join(changes)}. Name another --run.")


def _environment() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
