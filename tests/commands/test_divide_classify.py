"""Divide&Classify on small cells: all groups in turn, a head each, validated by classification, with prompts on top."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from contracts import assert_same_state
from running import files_in, kill_before, metrics_of, parsed, run_with_torchrun

from progeo.cli import main
from progeo.engine.accelerator import start_accelerator
from progeo.engine.checkpoint import load_checkpoint, newest_checkpoint
from progeo.export.classifier import load_classifier, load_encoder_and_classifier
from progeo.places.catalogue import read_catalogue
from progeo.places.geographic import positions_m
from progeo.training.validation import build_validation

CELLS = {
    **{"cell_side_m": 5, "heading_bin_deg": 360, "groups_per_side": 2, "groups_per_heading": 1},
    **{"min_images_per_class": 2, "num_groups": None},
}


@pytest.fixture(scope="module")
def settings(config, city, tmp_path_factory):
    """Four groups, an epoch on each and two more; the queries are photos of training places."""
    values = yaml.safe_load(config.read_text())
    values |= {"out": str(tmp_path_factory.mktemp("whole")), "cells": CELLS}
    values["validation"] = {"folder": str(city), "queries": "train", "kind": "classification", "positive_radius_m": 5}
    values["encoder"] = {"image_size": 32, "aggregation": "mean_linear", "descriptor_dim": 16}
    cache = str(tmp_path_factory.mktemp("features"))
    values["prompts"] |= {"image_size": 32, "epochs": 1, "feature_cache": cache}
    values["head"] = {"kind": "arcface", "easy_margin": True, "scale": 100, "margin": 0.2, "smoothing_m": 5}
    values["training"] |= {
        **{"epochs": 6, "checkpoint_every": 1, "keep_checkpoints": 99, "head_schedule": "constant"},
        **{"schedule": "loss_plateau", "decay_epochs": 1, "decay_factor": 0.1, "min_learning_rate": 1e-9},
    }
    return values


@pytest.fixture
def train(settings, tmp_path):
    """Train with changed settings, and return the folder of stage 2."""

    def trained(*words, **changed):
        values = {name: {**part, **changed.pop(name, {})} for name, part in settings.items() if isinstance(part, dict)}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({**settings, **values, "out": str(tmp_path / "run"), **changed}))
        main(["train", "encoder", "--config", str(file), *words])
        return tmp_path / "run/stage2"

    return trained


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The configuration of a run of both stages; its folder."""
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    main(["train", "--config", str(config)])
    return config, config.parent.parent / settings["out"]


def test_every_group_is_trained_and_leaves_its_classes(whole, city):
    _, run = whole
    rows = metrics_of(run / "stage2")
    assert all(row["arcface"] > 0 and row["image_text"] > 0 for row in rows[1:])
    assert {"LR@1", "LR@20"} <= {name.removeprefix("val ") for name in rows[0]}
    state = load_checkpoint(newest_checkpoint(run / "stage2/checkpoints"))
    lost = [row["loss"] for row in rows[1:]]
    assert state["lowest_losses"] == {group: min(lost[group::4]) for group in range(4)}
    decays = [lost[4] >= lost[0], lost[5] >= lost[1]]  # of the first two groups, the second time
    assert state["decays"] == sum(decays)
    rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
    assert rates == pytest.approx([1e-3 * 0.1 ** decays[0]] * 2 + [1e-2] * (len(rates) - 2))
    first = load_checkpoint(run / "stage2/checkpoints/epoch_000000_step_000001")["task"]["terms"]
    names = [f"terms.head.heads.{group}.head.weight" for group in range(4)]
    assert not any(torch.equal(first[name], state["task"]["terms"][name]) for name in names)

    classifier = load_classifier(run)
    assert (classifier.kind, classifier.scale, classifier.classes_per_group) == ("arcface", 100, (5, 8, 7, 5))
    (own,) = positions_m(read_catalogue(city / "train"))
    inside = np.abs(own[:, None] - classifier.centers_m).max(axis=2) <= 2.5
    assert classifier.num_images.tolist() == inside.sum(axis=0).tolist()


def test_what_a_validation_measured_is_measured_again_of_the_kept_files(whole):
    encoder, classifier = load_encoder_and_classifier(whole[1])
    options = parsed("train encoder", "--config", whole[0])["settings"]
    validation = build_validation(options.validation, options.data)
    found = validation.measure(encoder, start_accelerator("no"), classifier=classifier)
    rows = metrics_of(whole[1] / "stage2")[1:]
    assert found.named.items() <= max(rows, key=lambda row: row["val LR@1"]).items()


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_waits_for_a_lower_loss_ends_with_the_same_bits(whole, tmp_path):
    config, run = whole
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    kill_before("/epoch_000004_step_000001", "stage2_image.py", "--config", config, "--out", tmp_path)
    assert newest_checkpoint(tmp_path / "stage2/checkpoints").name == "epoch_000004_step_000000"
    main(["train", "encoder", "--config", str(config), "--out", str(tmp_path), "--resume"])
    assert metrics_of(tmp_path / "stage2") == metrics_of(run / "stage2")
    states = (load_checkpoint(newest_checkpoint(each / "stage2/checkpoints")) for each in (tmp_path, run))
    assert_same_state(*states)
    for name in ("model.safetensors", "classifier.safetensors"):
        assert (tmp_path / "stage2/best" / name).read_bytes() == (run / "stage2/best" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_learn_the_classes_that_one_learns(settings, tmp_path):
    values = {**settings, "model": {"architecture": "tiny-vit", "weights": "random"}, "text": {"weight": 0.0}}
    values["training"] = {**values["training"], "epochs": 4, "keep": "last"}
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**values, "out": str(tmp_path / name)}))
    main(["train", "encoder", "--config", str(tmp_path / "one.yaml")])
    run_with_torchrun("stage2_image.py", "--config", tmp_path / "two.yaml")
    assert files_in(tmp_path / "two") == files_in(tmp_path / "one")
    for mine, theirs in zip(metrics_of(tmp_path / "two/stage2"), metrics_of(tmp_path / "one/stage2"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    mine, theirs = (load_classifier(tmp_path / name) for name in ("two", "one"))
    np.testing.assert_allclose(mine.weight, theirs.weight, atol=1e-4)
    assert (mine.fingerprint, mine.frame, mine.cells) == (theirs.fingerprint, theirs.frame, theirs.cells)


def test_linear_heads_keep_their_bias_and_a_group_without_classes_is_not_there(train):
    few = {"epochs": 1, "iterations_per_epoch": 1}
    folder = train(
        cells={"cell_side_m": 10, "min_images_per_class": 2}, head={"kind": "linear", "easy_margin": False},
        text={"weight": 0.0}, training=few,
    )  # fmt: skip
    classifier = load_classifier(folder)
    assert (classifier.kind, classifier.scale, classifier.classes_per_group) == ("linear", 1.0, (3, 5))
    terms = load_checkpoint(newest_checkpoint(folder / "checkpoints"))["task"]["terms"]
    bias = torch.cat([terms[f"terms.head.heads.{group}.head.bias"] for group in range(2)])
    assert classifier.bias.tolist() == bias.tolist()
    assert classifier.bias[:3].any() and not classifier.bias[3:].any()  # of the group that was trained
    with pytest.raises(SystemExit, match="Every group has a single class, whose cross-entropy is always 0"):
        train("--cells.cell_side_m", "1000", text={"weight": 0.0})
