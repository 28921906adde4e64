"""The test that stage 2 ends with where it is asked to."""

import csv
import dataclasses
import json
import re
import shutil

import pytest
from PIL import Image
from running import files_in, metrics_of

from progeo.cli import main
from progeo.commands.final_test import check_final_test, run_final_test
from progeo.commands.train import train
from progeo.commands.train_encoder import train_encoder
from progeo.config.parsing import parse_arguments
from progeo.config.settings import settings_of
from progeo.config.training import EncoderSettings
from progeo.data.options import DataOptions
from progeo.engine.accelerator import start_accelerator
from progeo.engine.run_folder import RunFolder
from progeo.training.options import FinalTestOptions, ValidationOptions


def stage_2(config, run, *arguments):
    main(["train", "encoder", *map(str, ["--config", config, "--out", run, *arguments])])


def failure(config, run, *arguments):
    with pytest.raises(SystemExit) as stop:
        stage_2(config, run, *arguments)
    return str(stop.value.code)


def test_it_evaluates_the_kept_encoder_as_evaluate_does_also_of_a_run_that_is_finished(run, config, city, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    cache = tmp_path / "cache"
    test = ["--test.folder", city / "test", "--test.descriptor_cache", cache, "--resume", "true"]
    stage_2(config, tmp_path / "run", *test)
    stage2, out = tmp_path / "run/stage2", tmp_path / "out"
    assert metrics_of(stage2) == metrics_of(run / "stage2")
    common = ["evaluate", "--folder", city / "test", "--out", out, "--descriptor_cache", cache, "--num_workers", 0]
    main([*map(str, [*common, "--encoder", stage2 / "best", "--batch_size", 16])])
    assert files_in(stage2 / "test") == files_in(out) - {"environment.json", "reproduce.sh"}  # which are in stage2
    assert (stage2 / "test/recalls.json").read_bytes() == (out / "recalls.json").read_bytes()
    assert (stage2 / "test/predictions.csv").read_bytes() == (out / "predictions.csv").read_bytes()


def test_its_settings_are_those_of_validation(config, city, tmp_path):
    shutil.copytree(city / "test", tmp_path / "test")
    (tmp_path / "test/queries").rename(tmp_path / "test/queries_v1")
    cache = tmp_path / "cache"
    stage_2(
        config, tmp_path / "run", "--text.weight", 0, "--training.epochs", 1, "--training.iterations_per_epoch", 1,
        "--training.keep", "last", "--test.folder", tmp_path / "test", "--test.queries", "queries_v1",
        "--validation.preprocessing", "native", "--encoder.image_size", 32, "--data.orientation", "ignore",
        "--validation.positive_radius_m", 40, "--validation.positive_angle_deg", 90, "--mixed_precision", "bf16",
        "--validation.folder", city / "test", "--test.descriptor_cache", cache,
    )  # fmt: skip
    summary = json.loads((tmp_path / "run/stage2/test/recalls.json").read_text())
    validated = metrics_of(tmp_path / "run/stage2")[1]  # on the same images
    assert {f"val {name}": recall for name, recall in summary["recalls"].items()}.items() <= validated.items()
    descriptions = [json.loads((folder / "description.json").read_text()) for folder in cache.iterdir()]
    assert [each["mixed_precision"] for each in descriptions] == ["bf16", "bf16"]
    assert summary["encoder"] == str(tmp_path / "run/stage2/last")
    assert summary["queries"].endswith("images in queries_v1")
    assert (summary["database preprocessing"], summary["queries preprocessing"]) == ("native", "native")
    assert summary["orientation"] == "as stored, EXIF orientation ignored"
    with (tmp_path / "run/stage2/test/recalls.csv").open() as stream:
        assert next(csv.DictReader(stream))["criterion"] == "within 40 m and 90 degrees"


def test_folders_that_cannot_be_tested_on_are_refused_before_the_training(config, city, tmp_path):
    sentence = failure(config, tmp_path / "run", "--test.folder", city / "test", "--test.queries", "queries_v2")
    folder = re.escape(str(city / "test"))
    assert re.search(
        rf"There can be no final test on --test\.folder {folder}: There is no folder {folder}/queries_v2 beside "
        rf"database, queries\. Its folders are --validation\.database database and --test\.queries queries_v2; "
        rf"without --test\.folder there",
        sentence,
    )
    assert not (tmp_path / "run").exists()


def test_images_without_headings_are_refused_before_the_training_where_an_angle_counts(tmp_path):
    for side in ("database", "queries"):
        (tmp_path / side).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / side / "@0@0@.png")
    validation = ValidationOptions(folder=tmp_path)
    test = FinalTestOptions(folder=tmp_path)
    settings = EncoderSettings(
        out=tmp_path / "run", data=DataOptions(train_folder=tmp_path), validation=validation, test=test
    )
    check_final_test(settings)
    validation = dataclasses.replace(validation, positive_angle_deg=40.0)
    with pytest.raises(ValueError, match=r"^There can be no final test on `test\.folder` .*heading"):
        check_final_test(dataclasses.replace(settings, validation=validation))


def test_where_it_fails_the_sentence_says_that_the_training_is_finished(run, config, city, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(city / "test", tmp_path / "test")
    next((tmp_path / "test/queries").glob("*.jpg")).write_bytes(b"broken")
    test = ["--test.folder", tmp_path / "test", "--test.descriptor_cache", tmp_path / "cache", "--resume", "true"]
    sentence = failure(config, tmp_path / "run", *test, "--data.max_unreadable_fraction", 0)
    assert f"training is finished, its encoder is in {tmp_path}/run/stage2/best, but the final test is not" in sentence
    assert "1 of 6 images cannot be read, more than --data.max_unreadable_fraction allows" in sentence
    assert "With --resume it is run again." in sentence


def test_where_its_images_are_gone_by_then_the_sentence_says_so_and_a_lost_encoder_is_not_called_there(
    run, config, city, tmp_path
):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(city / "test", tmp_path / "test")
    words = ["--config", config, "--out", tmp_path / "run", "--test.folder", tmp_path / "test"]
    settings = parse_arguments(train_encoder, [*map(str, words)], others=lambda: set(settings_of(train)))["settings"]
    check_final_test(settings)
    shutil.rmtree(tmp_path / "test/queries")
    with pytest.raises(ValueError, match=r"training is finished, .* but the final test is not: There is no folder"):
        run_final_test(settings, RunFolder(tmp_path / "run/stage2"), start_accelerator("no"))
    shutil.rmtree(tmp_path / "run/stage2/best")
    with pytest.raises(FileNotFoundError, match=r"^There is no encoder in .*/stage2/best"):
        run_final_test(settings, RunFolder(tmp_path / "run/stage2"), start_accelerator("no"))
