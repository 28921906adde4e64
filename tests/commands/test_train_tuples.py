"""Mined tuples with regions and a teacher, as a user runs them: killed, on two processes, evaluated and exported."""

import json

import pytest
import yaml
from contracts import assert_same_state
from running import files_in, kill_before, metrics_of, run_on_two_processes

from progeo.cli import main
from progeo.engine.checkpoint import load_checkpoint, newest_checkpoint
from progeo.export.weights import load_encoder


@pytest.fixture(scope="module")
def settings(config, run, tmp_path_factory):
    """Two generations of an epoch, mined twice each, of a network without batch norm."""
    values = yaml.safe_load(config.read_text())
    values |= {"out": str(tmp_path_factory.mktemp("whole")), "head": {"weight": 0}, "text": {"weight": 0}}
    values |= {"tuples": {"weight": 1.0, "hardest_regions": True}, "regions": {"weight": 0.5}}
    values |= {"gram": {"weight": 0.001}, "teacher": {"encoder": str(run)}}
    values["model"] = {"architecture": "tiny-vit", "weights": "random"}
    netvlad = {"aggregation": "netvlad", "aggregation_options": {"num_clusters": 4, "regions": "quarters"}}
    values["encoder"] = {"image_size": 64, **netvlad}
    values["mining"] = {"queries": 4, "pool": 20, "negatives": 3, "difficult_positives": 2}
    values["training"] |= {"batches": "tuples", "batch_size": 4, "iterations_per_epoch": 2, "epochs": 2}
    values["training"] |= {"generations": [1, 1], "checkpoint_every": 1, "optimizer": "sgd", "keep": "last"}
    return values


def written(settings, folder, name):
    """Write the settings of a run to a file, and return it."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**settings, "out": str(folder / name)}))
    return file


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    main(["train", "encoder", "--config", str(written(settings, folder, "run"))])
    return folder / "run"


def test_a_run_leaves_these_files_and_its_encoder_is_evaluated_and_exported(whole, city, tmp_path):
    assert files_in(whole) - {"stage2/log.txt"} == {
        *(f"stage2/{name}" for name in ("centroids.hdf5", "config.yaml", "environment.json", "metrics.jsonl")),
        *(f"stage2/{name}" for name in ("reproduce.sh", "places.json", "last/model.json", "last/model.safetensors")),
        *(
            f"stage2/checkpoints/{step}/{name}"
            for step in ("epoch_000001_step_000001", "epoch_000002_step_000000")
            for name in ("state.json", "tensors.safetensors")
        ),
    }
    names = [set(row) & {"sare", "soft_regions", "gram"} for row in metrics_of(whole / "stage2")]
    assert names == [set(), {"sare", "gram"}, {"sare", "soft_regions", "gram"}]
    folders = ("--folder", city / "val", "--out", tmp_path / "val", "--descriptor_cache", tmp_path / "cache")
    main(["evaluate", str(whole), *map(str, folders)])
    assert json.loads((tmp_path / "val/recalls.json").read_text())
    main(["export", str(whole), "--out", str(tmp_path / "netvlad")])
    assert load_encoder(tmp_path / "netvlad").descriptor_dim == 4 * 128


@pytest.mark.slow
def test_its_encoder_leaves_as_onnx(whole, tmp_path):
    main(["export", str(whole), "--format", "onnx", "--out", str(tmp_path / "netvlad")])
    assert files_in(tmp_path / "netvlad") == {"model.onnx", "README.md"}


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_mines_ends_with_the_same_bits(settings, whole, tmp_path):
    file = written(settings, tmp_path, "run")
    kill_before("rows_00001.npy", "stage2_image.py", "--config", file)
    main(["train", "encoder", "--config", str(file), "--resume", "true"])
    ours, theirs = (
        load_checkpoint(newest_checkpoint(each / "stage2/checkpoints")) for each in (tmp_path / "run", whole)
    )
    assert_same_state(ours, theirs)


@pytest.mark.slow
def test_two_processes_mine_and_train_what_one_does(settings, whole, tmp_path):
    run_on_two_processes("stage2_image.py", "--config", written(settings, tmp_path, "run"))
    assert files_in(tmp_path / "run") == files_in(whole)
    for mine, theirs in zip(metrics_of(tmp_path / "run/stage2"), metrics_of(whole / "stage2"), strict=True):
        without_gram = [{name: row[name] for name in row.keys() - {"gram", "loss"}} for row in (mine, theirs)]
        assert without_gram[0] == pytest.approx(without_gram[1], rel=1e-3)
