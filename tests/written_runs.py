"""Runs written without training, for the tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


def write_stage(folder: Path, settings: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the settings and metrics of a stage."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_run(
    folder: Path, *, gain: float = 0.0, settings: Mapping[str, Any] | None = None, rows_of_steps: bool = True
) -> Path:
    """Write a run of both stages: two groups of two epochs, and an encoder of three epochs of four steps.

    Args:
        gain: added to the best R@1.
        settings: more settings of stage 2.
        rows_of_steps: whether there are any; earlier versions wrote none.
    """
    first = [
        row
        for group in (0, 1)
        for row in (
            _step(1, 2, loss=4.0 - group, group=group),
            {"group": group, "epoch": 1, "loss": 4.0, "image_to_text_accuracy": 50.0},
            _step(2, 4, loss=2.0 - group, group=group),
            {"group": group, "epoch": 2, "loss": 2.0 - group, "image_to_text_accuracy": 60.0 + 10 * group},
        )
    ]
    second: list[dict[str, Any]] = [{"epoch": 0, "val R@1": 90.0, "val R@5": 95.0}]
    for epoch, recall in ((1, 40.0), (2, 55.0 + gain), (3, 55.0)):
        losses = {"loss": 6.0 / epoch, "cosface": 4.0 / epoch, "image_text": 2.0 / epoch}
        rates = {"encoder_learning_rate": 1e-5 / epoch, "head_learning_rate": 1e-2}
        second += [_step(epoch, 4 * epoch - 4 + step, **losses, **rates) for step in (2, 4)]
        second.append({"epoch": epoch, **losses, "val R@1": recall, "val R@5": recall + 20})
    if not rows_of_steps:
        first, second = ([row for row in rows if "step" not in row] for rows in (first, second))
    common = {"out": str(folder), "seed": 0, "data": {"train_folder": f"/data/{folder.name}/train"}}
    write_stage(folder / "stage1", {**common, "prompts": {"epochs": 2}}, first)
    write_stage(folder / "stage2", {**common, "training": {"epochs": 3, **(settings or {})}}, second)
    return folder


def _step(epoch: int, step: int, **values: float) -> dict[str, Any]:
    measured = {"images_per_s": 100.0 + step, "memory_bytes": 10**9 * (1 + step % 4), "seconds": float(step)}
    return {"epoch": epoch, "step": step, "steps_per_epoch": 2 if "group" in values else 4, **values, **measured}
