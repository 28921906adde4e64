"""The script beside results makes them again, where the images are the same."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from running import ROOT, metrics_of

from progeo.cli import main


@pytest.fixture
def work(city, tmp_path, monkeypatch):
    """A working folder with the images, which paths of the commands are relative to."""
    shutil.copytree(city, tmp_path / "city")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reproduce(script, *words):
    """Run a script from another folder."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", str(script), *words], cwd=script.parent, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_an_evaluation_is_made_again_until_an_image_changes(work):
    words = ["--folder", "city/val", "--descriptor_cache", "cache", "--num_workers", "0"]
    main(["evaluate", "thumbnail", *words, "--out", "results/a"])
    assert reproduce(work / "results/a/reproduce.sh").returncode == 0
    first, second = (work / f"results/{name}" for name in ("a", "a_again"))
    for name in ("recalls.json", "recalls.csv", "predictions.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    command = json.loads((second / "environment.json").read_text())["command"]
    assert command[-2:] == ["--out", "results/a_again"]
    next((work / "city/val/queries").iterdir()).write_bytes(b"no image")
    changed = reproduce(work / "results/a/reproduce.sh", "results/b")
    assert changed.returncode == 1
    assert changed.stderr == "These are not as they were: the contents of the images in city/val/queries.\n"
    assert not (work / "results/b").exists()


@pytest.mark.slow
def test_a_training_is_made_again(work, config):
    data = ["--data.train_folder", "city/train", "--validation.folder", "city/val", "--text.weight", "0"]
    main(["train", "encoder", "--config", str(config), *data, "--training.epochs", "1", "--out", "runs/a"])
    made = reproduce(work / "runs/a/stage2/reproduce.sh", "runs/b")
    assert made.returncode == 0, made.stderr
    assert metrics_of(work / "runs/a/stage2") == metrics_of(work / "runs/b/stage2")
    weights = [(work / f"runs/{name}/stage2/best/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_stage_2_alone_is_made_again_from_the_prompts_that_it_learned_from(work, config):
    settings = ["--config", str(config), "--data.train_folder", "city/train", "--out", "runs/a"]
    main(["train", "prompts", *settings, "--prompts.epochs", "1"])
    main(["train", "encoder", *settings, "--validation.folder", "city/val", "--training.epochs", "1"])
    made = reproduce(work / "runs/a/stage2/reproduce.sh")
    assert made.returncode == 0, made.stderr
    assert metrics_of(work / "runs/a/stage2") == metrics_of(work / "runs/a_again/stage2")
