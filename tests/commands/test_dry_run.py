"""`--dry_run` of training and indexing: the checks and the estimate of a command that writes nothing."""

import json
import shutil

import pytest
import yaml
from running import files_in

from progeo.cli import main


def shown(capsys, *words):
    """What a command prints as JSON, one object for each dry run."""
    capsys.readouterr()
    main([*map(str, words), "--dry_run", "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def failure(*words):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--dry_run"])
    return str(stop.value.code)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty current folder, which stays empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not any(folder.iterdir())


def phases(dry_run):
    return {each["name"]: (each["count"], each["unit"]) for each in dry_run["phases"]}


def test_both_stages_are_estimated_before_the_first_has_learned_anything(config, city, empty, capsys):
    before = files_in(city)
    words = ("train", "--config", config, "--out", "run", "--prompts.feature_cache", "features")
    stage1, stage2 = shown(capsys, *words)
    # The two largest groups of the toy city have 84 images, which are 3 + 3 batches of 16 in each of 2 epochs.
    assert stage1["command"] == "train prompts" and phases(stage1)["image features"] == (84, "images")
    assert phases(stage1)["prompts"] == (12, "steps")
    # 3 epochs of 2 steps; 18 images are validated before the first and after each.
    assert phases(stage2) == {"training": (6, "steps"), "validation": (72, "images")}
    assert all(each["seconds"] > 0 for run in (stage1, stage2) for each in run["phases"])
    features, prompts = stage1["spaces"]
    assert (features["path"], features["needed_bytes"]) == ("features", 84 * 128 * 2)
    assert stage2["spaces"][0]["path"] == "run/stage2" and prompts["path"] == "run/stage1"
    assert files_in(city) == before


def test_checkpoints_and_encoders_take_the_space_that_a_dry_run_says(config, run, empty, capsys):
    (again,) = shown(capsys, "train", "encoder", "--config", config, "--out", "run", "--text.prompts", run / "stage1")
    written = [path.stat().st_size for path in (run / "stage2").rglob("*.safetensors")]
    # 2 checkpoints and 1 encoder with its classifier are there; one more of each is while it is written.
    assert 1.4 * sum(written) <= again["spaces"][0]["needed_bytes"] <= 1.6 * sum(written)


def test_a_run_that_is_there_is_refused_and_a_finished_one_takes_no_more_steps(config, run, empty, capsys):
    words = ("train", "encoder", "--config", config)
    assert "already holds a run: set --resume to resume it" in failure(*words)
    (finished,) = shown(capsys, *words, "--resume")
    assert phases(finished) == {"training": (0, "steps"), "validation": (0, "images")}
    assert "has other settings: training.batch_size was 4, now 8" in failure(
        *words, "--resume", "--training.batch_size", 8
    )
    left = shown(capsys, *words, "--resume", "--training.epochs", 5)[0]
    assert phases(left)["training"] == (4, "steps")


def test_what_the_training_would_refuse_is_refused(config, empty):
    assert "There are no prompts in" in failure("train", "encoder", "--config", config, "--out", "run")
    wrong = ("train", "--config", config, "--out", "run", "--model.weights", "no_such_tag")
    assert "no_such_tag" in failure(*wrong)


def test_too_little_space_ends_with_status_1_after_the_estimate(config, empty, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    assert "There is not enough space. " in failure("train", "prompts", "--config", config, "--out", "run")
    assert capsys.readouterr().out.startswith("dry run of progeo train prompts: nothing was written\nimages ")


def test_a_final_test_takes_time_without_a_validation_too(config, run, city, empty, capsys):
    words = ("train", "encoder", "--config", config, "--out", "run", "--text.prompts", run / "stage1")
    words = (*words, "--validation.kind", "none", "--training.keep", "last", "--test.folder", city / "val")
    (found,) = shown(capsys, *words)
    assert phases(found) == {"training": (6, "steps"), "final test": (18, "images")}
    assert found["phases"][1]["seconds"] > 0


def test_mined_tuples_and_a_cached_teacher_are_estimated_without_extracting_everything(config, run, empty, capsys):
    values = yaml.safe_load(config.read_text()) | {"head": {"weight": 0}, "text": {"weight": 0}}
    values |= {"tuples": {"weight": 1.0}, "cosine": {"weight": 1.0}}
    values |= {"teacher": {"encoder": str(run), "features": "cache", "descriptor_cache": "teacher"}}
    values["mining"] = {"queries": 4, "pool": 20, "negatives": 3}
    values["training"] |= {"batches": "tuples", "iterations_per_epoch": 3, "keep": "last"}
    file = empty.parent / "tuples.yaml"
    file.write_text(yaml.safe_dump(values))
    (found,) = shown(capsys, "train", "encoder", "--config", file, "--out", "run")
    images = phases(found)["descriptors of the teacher"][0]
    assert phases(found)["mining"] == (3 * 3 * images, "images")
    assert phases(found)["training"] == (9, "steps")


def test_an_index_is_estimated_and_what_the_cache_holds_is_not_extracted_again(run, city, empty, tmp_path, capsys):
    words = ("index", "build", run, "--folder", city / "train", "--num_workers", 0)
    words = (*words, "--descriptor_cache", tmp_path / "cache", "--out")
    (new,) = shown(capsys, *words, "city.index")
    count, dim = phases(new)["descriptors"][0], 32
    assert new["spaces"][0]["needed_bytes"] == count * dim * 4
    main([*map(str, words), str(tmp_path / "city.index")])
    (again,) = shown(capsys, *words, "city.index")
    assert phases(again)["descriptors"] == (0, "images")
    written = sum(path.stat().st_size for path in (tmp_path / "city.index").rglob("*") if path.is_file())
    assert again["spaces"][1]["needed_bytes"] == pytest.approx(written, rel=0.2)
    assert "holds a place index already" in failure(*words, tmp_path / "city.index")
    before = files_in(tmp_path / "city.index")
    added = ("index", "add", tmp_path / "city.index", "--num_workers", 0, "--descriptor_cache", "cache", "--folder")
    assert phases(shown(capsys, *added, city / "train")[0]) == {}
    assert phases(shown(capsys, *added, city / "val/queries")[0]) == {"descriptors": (6, "images")}
    assert files_in(tmp_path / "city.index") == before


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--of", "classes"), []),
        (("--of", "means", "--folder", "train"), ["descriptors"]),
        (("--verify", "--folder", "train"), ["descriptors", "local features"]),
        (("--faiss", "cells", "--folder", "train"), ["descriptors"]),
        (("--faiss", "IVF4,PQ4", "--folder", "train"), ["descriptors"]),
    ],
    ids=lambda each: " ".join(each),
)
def test_every_kind_of_index_is_estimated(run, city, empty, capsys, options, names):
    options = [city / "train" if each == "train" else each for each in options]
    common = ("--num_workers", 0, "--descriptor_cache", "cache", "--out", "city.index")
    (found,) = shown(capsys, "index", "build", run, *options, *common)
    assert list(phases(found)) == names
    assert found["spaces"][-1]["what"] == "place index" and found["spaces"][-1]["needed_bytes"] > 0


def test_a_kind_of_index_that_does_not_exist_is_refused(run, city, empty):
    words = ("index", "build", run, "--folder", city / "train", "--num_workers", 0, "--out", "city.index")
    assert "There is no index 'IVF0,Flat'" in failure(*words, "--descriptor_cache", "cache", "--faiss", "IVF0,Flat")
