"""What a process holds stays the same, however long it works."""

import json

import numpy as np
import pytest
from running import start
from writing_commands import prepare

pytestmark = pytest.mark.slow
ALLOWED_MB = 10
"""Growth from the first to the last of the samples by the slope of a line through them."""


def growth(name, rows):
    """What is held more at the end than after the first quarter of the work, by a straight line."""
    rows = rows[len(rows) // 4 :]
    found = {}
    for key in rows[0]:
        slope, _ = np.polyfit(np.arange(len(rows)), [row[key] for row in rows], 1)
        found[key] = slope * (len(rows) - 1)
    print(f"\n{name}: {len(rows)} samples from {rows[0]} to {rows[-1]}, growth {found}")
    return found


def check(name, *words):
    (started,) = start("tests/soak.py", *words)
    assert started.wait() == 0, started.said
    (line,) = (line for line in started.said.splitlines() if line.startswith("rows "))
    found = growth(name, json.loads(line.removeprefix("rows ")))
    assert found["memory_kb"] < 1024 * ALLOWED_MB
    assert all(abs(found[key]) < 0.5 for key in ("files", "threads", "children"))


def test_300_localizations_hold_nothing(world):
    prepare(world, "index add")
    check("300 localizations", "localize", world.work / "index", world.city / "val/queries", 300)


def test_50_evaluations_hold_nothing(world):
    folder = prepare(world, "evaluate")
    folders = ("--folder", world.city / "test", "--out", folder / "results", "--descriptor_cache", folder / "cache")
    check("50 evaluations", "evaluate", 50, world.run, *folders, "--num_workers", 0)


def test_2000_steps_hold_nothing(world):
    folder = prepare(world, "train encoder, last")
    steps = ("--training.epochs", 40, "--training.iterations_per_epoch", 50, "--text.weight", 0)
    check("2,000 steps", "train", "--config", world.config, "--out", folder / "run", *steps)
