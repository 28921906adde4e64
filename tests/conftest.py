import gc
import os
import resource
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from progeo.cli import main
from progeo.locks import locked

pytest.register_assert_rewrite("contracts", "indexes", "running", "tiny_clips")
# The tests themselves run side by side; more threads would only fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait must sleep: spinning, those of one process would starve those of another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# onnxruntime would write to the home folder and to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


SETTINGS = {
    "data": {"num_workers": 0, "eval_batch_size": 16},
    "cells": {"groups_per_side": 2, "groups_per_heading": 1, "min_images_per_class": 4, "num_groups": 2},
    "model": {"architecture": "tiny-resnet", "weights": "random"},
    "encoder": {"image_size": 64, "descriptor_dim": 32},
    "prompts": {"image_size": 64, "epochs": 2, "batch_size": 16},
    "training": {
        "epochs": 3,
        "iterations_per_epoch": 2,
        "batch_size": 4,
        "encoder_learning_rate": 1e-3,
    },
}
"""Of a run of both stages on a toy city small enough for seconds."""


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    """Write stand-ins for the tokenizers of all CLIPs into a hub cache."""
    from tiny_clips import write_hub

    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return folder


@pytest.fixture
def hub_cache(hub_folder, monkeypatch):
    """Use them, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def pytest_collectstart():
    """Do not search for garbage among all that is imported, which would take seconds."""
    gc.disable()


def pytest_collection_finish():
    """Keep modules out of the search for garbage, which would take seconds, and search less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 10, 10)
    gc.enable()


@pytest.fixture
def full_disk():
    """A block in which no file can grow beyond 100 kB, as if the disk were full."""

    @contextmanager
    def block():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return block


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def as_nobody():
    """A block in which permissions count, also where root runs the tests."""

    @contextmanager
    def block():
        is_root = os.geteuid() == 0
        if is_root:
            os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            if is_root:
                os.setresuid(0, 0, 0)

    return block


@pytest.fixture
def plugins_forgotten(monkeypatch, tmp_path):
    """Plugins, and their rows, are gone after the test."""
    from progeo import plugins
    from progeo.export.encoders import ENCODERS
    from progeo.models.aggregation import AGGREGATIONS
    from progeo.models.backbones import FAMILIES
    from progeo.training.batch_kinds import BATCHES
    from progeo.training.loss_terms import LOSS_TERMS
    from progeo.training.validation import VALIDATIONS

    tables = (ENCODERS, AGGREGATIONS, FAMILIES, BATCHES, LOSS_TERMS, VALIDATIONS)
    rows, modules = [dict(table) for table in tables], set(sys.modules)
    monkeypatch.setattr(plugins, "_IMPORTED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - modules:
        if name in plugins._IMPORTED or str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    for table, before in zip(tables, rows, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(scope="session")
def city(tmp_path_factory):
    """A toy city, which the first process that needs it renders for all that run the tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out = folder / "toy"
    out.mkdir(exist_ok=True)
    with locked(out, wait=True):
        if not (out / "city").exists():
            main(["demo", "--only_city", "--out", str(out), "--num_images", "120", "--image_size", "64"])
    return out / "city"


@pytest.fixture(scope="session")
def config(city, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    settings = {
        **SETTINGS,
        "out": str(folder / "run"),
        "data": {**SETTINGS["data"], "train_folder": str(city / "train")},
        "validation": {"folder": str(city / "val")},
        "prompts": {**SETTINGS["prompts"], "feature_cache": str(folder / "features")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def run(config):
    """A run of both stages."""
    main(["train", "prompts", "--config", str(config)])
    main(["train", "encoder", "--config", str(config)])
    return config.parent / "run"
