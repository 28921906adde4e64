"""Open the run folder of a stage; a run is resumed only with the settings and the data it was started with."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from progeo.config.settings import default_values, plain_values
from progeo.config.training import RunSettings
from progeo.config.yaml_files import RENAMED
from progeo.disk import make_folder
from progeo.engine.environment import write_script
from progeo.engine.run_folder import RunFolder, check_run, open_run, stored_settings
from progeo.locks import locked
from progeo.training.places import LearnedFrom, check_pixels
from progeo.training.trainer import check_checkpoints

_MAY_CHANGE = (
    "out",
    "resume",
    "wait",
    "data.train_folder",  # if the images are the same, see `LearnedFrom`
    "data.license",
    "data.num_workers",
    "data.max_unreadable_fraction",
    *(f"model.{name}" for name in ("normalization", "mean", "std", "resize")),  # if pixels are the same
)

_FORMER_RESIZE = "bilinear"
"""Interpolation by which earlier versions, which had no setting for it, resized all images."""
_Settings = TypeVar("_Settings", bound=RunSettings)


def resized_as_begun(settings: _Settings, stage: str) -> _Settings:
    """Let a run that is resumed resize images as before if the settings leave it open, see `ModelOptions.resize`.

    Args:
        settings: settings of the stage.
        stage: name of the folder inside that of the run; without a checkpoint there, that of stage 1 counts.
    """
    if not settings.resume or settings.model.resize is not None:
        return settings
    runs = [run for name in (stage, "stage1") if (run := RunFolder(settings.out / name)).config.is_file() and run.begun]
    resize = stored_settings(runs[0]).get("model.resize", _FORMER_RESIZE) if runs else None
    return replace(settings, model=replace(settings.model, resize=resize))


@contextmanager
def open_stage(
    settings: RunSettings,
    stage: str,
    source: LearnedFrom,
    *,
    may_change: Collection[str],
    is_main: bool,
    dry_run: bool = False,
    inputs: Sequence[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    check: Callable[[RunFolder, Mapping[str, Any]], None] = lambda run, changed: None,
) -> Iterator[RunFolder]:
    """Open the folder of a stage, save what it learns from, and keep other processes out meanwhile.

    Args:
        settings: settings of the stage.
        stage: name of the folder inside that of the run.
        source: the data that the stage learns from.
        may_change: dotted names of settings that may differ in a resumed run, besides those of every stage.
        is_main: whether this process checks and writes.
        dry_run: only check the folder, and write nothing.
        inputs: see `write_script`.
        defaults: former defaults that differ from today's, by dotted name, for a run from before a setting existed.
        check: further check of a run to resume, see `check_run`.
    """

    def check_all(run: RunFolder, changed: Mapping[str, Any]) -> None:
        check_pixels(run, settings.model, changed)
        check(run, changed)
        source.check(run, changed)

    run, writes = RunFolder(settings.out / stage), is_main and not dry_run
    if writes:
        make_folder(run.path)
    with locked(run.path, wait=settings.wait) if writes else nullcontext():
        if is_main or dry_run:
            if settings.resume:
                check_checkpoints(run)
            check_run(
                run,
                plain_values(settings),
                resume=settings.resume,
                defaults={**default_values(type(settings)), "model.resize": _FORMER_RESIZE, **defaults},
                renamed=RENAMED,
                may_change=(*_MAY_CHANGE, *may_change),
                check=check_all,
            )
        if writes:
            open_run(run, plain_values(settings))
            source.keep(run)
            data = source.fingerprints(settings.data.train_folder)
            write_script(run.path, "train", settings.out, data, inputs=inputs)
        yield run
