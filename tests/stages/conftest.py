"""A run of both stages on a toy city small enough for seconds."""

import pytest
import yaml

from progeo.cli import main

SETTINGS = {
    "data": {"num_workers": 0, "eval_batch_size": 16},
    "cells": {"groups_per_side": 2, "groups_per_heading": 1, "min_images_per_class": 4, "num_groups": 2},
    "model": {"architecture": "tiny-resnet", "weights": "random", "image_size": 64, "descriptor_dim": 32},
    "prompts": {"image_size": 64, "epochs": 2, "batch_size": 16},
    "training": {
        "epochs": 3,
        "iterations_per_epoch": 2,
        "batch_size": 4,
        "encoder_learning_rate": 1e-3,
    },
}


@pytest.fixture(scope="session")
def city(tmp_path_factory):
    out = tmp_path_factory.mktemp("city") / "toy"
    main(["toy-city", str(out), "--num_images", "120", "--image_size", "64"])
    return out


@pytest.fixture(scope="session")
def config(city, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    settings = {
        **SETTINGS,
        "run": str(folder / "run"),
        "data": {**SETTINGS["data"], "train_folder": str(city / "train"), "val_folder": str(city / "val")},
        "prompts": {**SETTINGS["prompts"], "feature_cache": str(folder / "features")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def run(config):
    """A run of both stages."""
    main(["stage1", "--config", str(config)])
    main(["stage2", "--config", str(config)])
    return config.parent / "run"
