"""Stage 2 through the real command: stopped anywhere and resumed, on two processes, with things going wrong."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import files_in, kill_before, metrics_of, parsed, run_on_two_processes, without_digests
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from progeo.cli import main
from progeo.commands.train_encoder import _epochs_may_change
from progeo.engine.checkpoint import load_checkpoint, newest_checkpoint, numbers_of
from progeo.export.classifier import load_encoder_and_classifier


@pytest.fixture(scope="module")
def long_config(config, run, tmp_path_factory):
    """The settings of `run` with epochs long enough to be stopped in, and its prompts."""
    settings = yaml.safe_load(config.read_text())
    settings["out"] = str(tmp_path_factory.mktemp("long") / "whole")
    settings["training"] |= {
        "epochs": 2,
        "iterations_per_epoch": 20,
        "checkpoint_every": 7,
        "schedule": "cosine",
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "images_per_class": 2,
        "ema_decay": 0.9,
        "keep_every": 1,
        "log_every": 8,
    }
    settings["text"] = {"prompts": str(run / "stage1"), "normalized": True, "learn_temperature": True}
    settings["triplet"] = {"weight": 1.0}
    path = tmp_path_factory.mktemp("long_config") / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def whole(long_config):
    """The run of `long_config`, never stopped."""
    stage_2(long_config)
    return Path(yaml.safe_load(long_config.read_text())["out"])


def stage_2(config, *arguments):
    main(["train", "encoder", "--config", str(config), *map(str, arguments)])


@pytest.mark.parametrize(
    ("architecture", "dim"),
    [("resnet18_conv4", 256), pytest.param("timm/vit_small_patch14_dinov2", 384, marks=pytest.mark.slow)],
)
def test_prompts_of_a_clip_train_a_backbone_that_is_none(config, run, city, tmp_path, architecture, dim):
    shutil.copytree(run / "stage1", tmp_path / "run/stage1")
    short = ("--training.epochs", 1, "--training.iterations_per_epoch", 2, "--training.keep", "last")
    other = ("--model.architecture", architecture, "--encoder.image_size", 56, "--encoder.descriptor_dim", "null")
    stage_2(config, "--out", tmp_path / "run", *other, *short)
    (row, *_) = (row for row in metrics_of(tmp_path / "run/stage2") if "image_text" in row)
    assert row["image_text"] > 0 and row["cosface"] > 0
    spec = json.loads((tmp_path / "run/stage2/last/model.json").read_text())["encoder"]
    assert (spec["descriptor_dim"], spec["text_weights"]) == (dim, None)
    assert architecture.endswith(spec["architecture"])
    own = ("--descriptor_cache", tmp_path / "cache", "--out", tmp_path / "test")
    main([*map(str, ("evaluate", tmp_path / "run", "--folder", city / "test", *own))])
    assert (tmp_path / "test/report.html").is_file()


@pytest.mark.parametrize(
    ("schedule", "may_change"),
    [
        (["constant"], True),
        (["cosine"], False),
        (["cosine", "--training.decay_steps", 5], False),
        (["linear"], False),
        (["linear", "--training.decay_steps", 5], True),
    ],
)
def test_the_number_of_epochs_may_change_unless_the_schedule_depends_on_it(config, schedule, may_change):
    settings = parsed("train encoder", "--config", config, "--training.schedule", *schedule)["settings"]
    assert bool(_epochs_may_change(settings)) == may_change


def failure(config, *arguments):
    with pytest.raises(SystemExit) as stop:
        stage_2(config, *arguments)
    return str(stop.value.code)


def assert_same(one, two):
    """Nested states are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            assert_same(one[name], two[name])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_same(first, second)
    else:
        assert one == two


def last_state(run):
    return load_checkpoint(newest_checkpoint(run / "stage2" / "checkpoints"))


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGKILL, signal.SIGINT))],
)
def test_a_run_stopped_within_an_epoch_ends_as_if_it_had_not_been(long_config, whole, tmp_path, number):
    stopped = tmp_path / "stopped"
    checkpoints = stopped / "stage2" / "checkpoints"
    command = ["stage2_image.py", "--config", long_config, "--out", stopped]
    said = kill_before("/epoch_000001_step_000014", *command, number=number)
    if number != signal.SIGKILL:
        assert "stopped in epoch" in said
        assert "resume with the same command and --resume" in said
    # The signal arrives in a later step, as checkpoints are written while training continues.
    newest = numbers_of(newest_checkpoint(checkpoints))
    assert newest == (1, 7) if number == signal.SIGKILL else newest > (1, 14)
    stage_2(long_config, "--out", stopped, "--resume", "true")
    metrics = metrics_of(whole / "stage2")
    assert metrics_of(stopped / "stage2") == metrics
    assert [row.get("step", "epoch") for row in metrics] == ["epoch", 8, 16, "epoch", 24, 32, 40, "epoch"]
    assert all(row["encoder_learning_rate"] < row["head_learning_rate"] for row in metrics if "step" in row)
    assert_same(last_state(stopped), last_state(whole))
    for folder in ("best", "epochs/epoch_000001", "epochs/epoch_000002"):
        kept = f"stage2/{folder}/model.safetensors"
        assert (stopped / kept).read_bytes() == (whole / kept).read_bytes()


def test_two_processes_train_and_test_as_one_does_with_the_same_batch(long_config, city, tmp_path):
    settings = yaml.safe_load(long_config.read_text())
    settings["model"]["architecture"] = "tiny-vit"  # batch norm sees only its own process
    settings["encoder"]["aggregation"] = "gem"
    settings["training"] |= {"iterations_per_epoch": 5, "batch_size": 8}
    settings["test"] = {"folder": str(city / "test"), "descriptor_cache": str(tmp_path / "descriptors")}
    for name in ("one", "two"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, "out": str(tmp_path / name)}))
    stage_2(tmp_path / "one.yaml")
    run_on_two_processes("stage2_image.py", "--config", tmp_path / "two.yaml")
    assert files_in(tmp_path / "two") == files_in(tmp_path / "one")
    for mine, theirs in zip(metrics_of(tmp_path / "two/stage2"), metrics_of(tmp_path / "one/stage2"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    mine, theirs = (json.loads((tmp_path / name / "stage2/test/recalls.json").read_text()) for name in ("two", "one"))
    assert mine["recalls"] == theirs["recalls"]


def test_the_encoders_kept_are_those_of_averaged_weights_where_weights_are_averaged(whole):
    kept, state = load_file(whole / "stage2/epochs/epoch_000002/model.safetensors"), last_state(whole)
    assert all(torch.equal(tensor, state["averaged"][f"module.{name}"]) for name, tensor in kept.items())
    assert not torch.equal(kept["backbone.conv1.weight"], state["task"]["encoder"]["backbone.conv1.weight"])
    load_encoder_and_classifier(whole / "stage2/epochs/epoch_000002")  # refuses a classifier of other weights


def test_learning_rates_follow_the_schedule_and_norms_do_not_decay(whole):
    kernels, norms, *heads = last_state(whole)["optimizer"]["param_groups"]
    # The last of 40 steps, 5 of them warm-up: half a cosine over 35, at its 35th.
    factor = 0.5 * (1 + np.cos(np.pi * 34 / 35))
    assert kernels["lr"] == pytest.approx(1e-3 * factor)
    assert all(head["lr"] == pytest.approx(1e-2 * factor) for head in heads)
    assert (kernels["weight_decay"], norms["weight_decay"]) == (0.01, 0.0)


@pytest.mark.slow
def test_training_stops_when_the_recall_is_not_beaten_for_so_long(config, run, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    stage_2(
        config, "--out", tmp_path, "--training.patience", 1, "--training.epochs", 50,
        "--training.encoder_learning_rate", 1e-12, "--training.head_learning_rate", 1e-12,
    )  # fmt: skip
    recalls = [row["val R@1"] for row in metrics_of(tmp_path / "stage2")]
    assert len(recalls) < 10
    assert recalls[-1] <= max(recalls[:-1])


def test_a_loss_that_is_not_finite_stops_with_its_terms_and_the_last_checkpoint(config, run, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    too_fast = ["--training.encoder_learning_rate", "1e30", "--training.checkpoint_every", "1"]
    sentence = failure(config, "--out", tmp_path, "--training.epochs", "1", *too_fast)
    assert "epoch 1/1, group 1, step 2: the loss is not finite (cosface nan, image_text nan)" in sentence
    assert f"The last good checkpoint is {tmp_path}/stage2/checkpoints/epoch_000000_step_000001." in sentence


def test_broken_images_are_replaced_and_reported_until_they_are_too_many(config, run, city, tmp_path):
    shutil.copytree(city / "train", tmp_path / "train")
    broken = sorted((tmp_path / "train").rglob("*.jpg"))[:4]
    for path in broken:
        path.write_bytes(b"broken")
    folder = ["--data.train_folder", tmp_path / "train", "--text.prompts", run / "stage1", "--training.epochs", "2"]
    many = ["--training.iterations_per_epoch", "30", "--out", tmp_path / "run"]
    sentence = failure(config, *folder, *many)
    assert "of 84 images cannot be read, more than --data.max_unreadable_fraction allows" in sentence
    stage_2(config, *folder, *many, "--data.max_unreadable_fraction", "0.05", "--resume", "true")
    log = (tmp_path / "run/stage2/log.txt").read_text()
    assert "replaced by another image of its class" in log
    assert any(str(path) in log for path in broken)
    assert len(last_state(tmp_path / "run")["task"]["batches"]["unreadable"]) >= 1


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_when_there_is_room(config, run, tmp_path, full_disk):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    stage_2(config, "--out", tmp_path, "--training.epochs", "1")
    with full_disk():
        sentence = failure(config, "--out", tmp_path, "--resume", "true")
    assert "could not be written" in sentence
    assert "File too large" in sentence
    stage_2(config, "--out", tmp_path, "--resume", "true")
    assert metrics_of(tmp_path / "stage2") == metrics_of(run / "stage2")


def test_without_memory_the_sentence_says_what_to_lower(config, run, tmp_path):
    sentence = failure(config, "--out", tmp_path, "--text.weight", "0", "--encoder.image_size", "10000000")
    assert "Out of memory. A run resumed with --resume may have a lower data.eval_batch_size" in sentence
    assert "data.eval_batch_size, training.cache_images false or" in sentence
    stage_2(
        config, "--out", tmp_path, "--text.weight", "0", "--training.epochs", "1", "--resume", "true",
    )  # fmt: skip
    assert len(metrics_of(tmp_path / "stage2")) == 2


def test_images_of_any_size_train_at_any_size(config, city, tmp_path):
    shutil.copytree(city / "train", tmp_path / "train")
    for number, path in enumerate(sorted((tmp_path / "train").rglob("*.jpg"))):
        with Image.open(path) as image:
            image.resize((40 + number, 150 - number)).save(path)
    stage_2(
        config, "--out", tmp_path / "run", "--text.weight", "0", "--training.epochs", 1,
        "--data.train_folder", tmp_path / "train", "--encoder.image_size", "[64, 96]",
    )  # fmt: skip
    assert json.loads((tmp_path / "run/stage2/best/model.json").read_text())["encoder"]["image_size"] == [64, 96]
    assert metrics_of(tmp_path / "run/stage2")[1]["loss"] > 0


def test_tensorboard_is_told_of_every_step_and_validation(config, run, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    stage_2(config, "--out", tmp_path, "--trackers", '["tensorboard"]', "--training.epochs", "2")
    events = EventAccumulator(str(tmp_path / "stage2/progeo"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("val R@1")] == [0, 2, 4]
    metrics = metrics_of(run / "stage2")[:3]
    assert [event.value for event in events.Scalars("val R@1")] == pytest.approx([row["val R@1"] for row in metrics])
    assert np.mean([event.value for event in events.Scalars("loss")][:2]) == pytest.approx(metrics[1]["loss"])
    for lost in ("epoch_000002_step_000000", ""):  # the last checkpoint, then all of them
        (tmp_path / "stage2/checkpoints" / lost).rename(tmp_path / f"lost{lost}")
        again = ["--resume", "--training.log_every", "99"]
        stage_2(config, "--out", tmp_path, "--trackers", '["tensorboard"]', "--training.epochs", "2", *again)
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
        assert [event.step for event in events.Scalars("val R@1")] == [0, 2, 4]


def on_copies(root, place):
    """The words for a run in a folder, of images and prompts that lie beside it."""
    names = (("data.train_folder", "train"), ("validation.folder", "val"), ("text.prompts", "prompts"))
    return ["--out", root / "run", *(f"--{name}={root / place / folder}" for name, folder in names)]


@pytest.fixture(scope="module")
def begun_once(config, run, city, tmp_path_factory):
    """A run of one epoch on copies of images and prompts."""
    root = tmp_path_factory.mktemp("begun")
    for name, source in (("train", city), ("val", city), ("prompts", run)):
        shutil.copytree(source / name.replace("prompts", "stage1"), root / "here" / name)
    stage_2(config, *on_copies(root, "here"), "--training.epochs", 1)
    return root


@pytest.fixture
def begun(begun_once, tmp_path):
    """The words for that run after its images and prompts were moved from `here` to `there`."""
    shutil.copytree(begun_once / "run", tmp_path / "run")
    shutil.copytree(begun_once / "here", tmp_path / "there")
    kept = tmp_path / "run/stage2/config.yaml"
    kept.write_text(kept.read_text().replace(str(begun_once), str(tmp_path)))
    return on_copies(tmp_path, "there")


def test_a_run_goes_on_with_its_images_and_prompts_where_they_were_moved_to(config, run, begun, tmp_path):
    stage_2(config, *begun, "--resume", "true")
    assert metrics_of(tmp_path / "run/stage2") == metrics_of(run / "stage2")
    assert_same(last_state(tmp_path / "run"), last_state(run))
    kept = yaml.safe_load((tmp_path / "run/stage2/config.yaml").read_text())
    assert kept["data"]["train_folder"] == str(tmp_path / "there/train")
    assert kept["text"]["prompts"] == str(tmp_path / "there/prompts")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("train", r"images of the same names, but those in .*/there/train are others: name the folder that has them"),
        ("val/database", r"images of the same names, but those in .*/there/val/database are others"),
        ("val/queries", r"images of the same names, but those in .*/there/val/queries are others"),
        ("prompts", r"begun with other text features: name the prompts that it was begun with as --text.prompts"),
    ],
)
def test_a_run_does_not_go_on_with_what_only_has_the_same_names(config, begun, tmp_path, changed, sentence):
    if changed == "prompts":
        file = tmp_path / "there/prompts/prompts.safetensors"
        save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
        without_digests(file.parent, "prompts.json")
    else:
        first, second, *_ = sorted((tmp_path / "there" / changed).glob("*.jpg"))
        first.write_bytes(second.read_bytes())
    before = (tmp_path / "run/stage2/config.yaml").read_bytes()
    assert re.search(sentence, failure(config, *begun, "--resume", "true"))
    assert (tmp_path / "run/stage2/config.yaml").read_bytes() == before


def test_a_run_does_not_go_on_with_other_validation_images_in_the_same_folder(config, begun, tmp_path):
    (tmp_path / "there").rename(tmp_path / "here")
    next((tmp_path / "here/val/queries").glob("*.jpg")).unlink()
    sentence = failure(config, *on_copies(tmp_path, "here"), "--resume", "true")
    assert f"was begun with 6 images in {tmp_path}/here/val/queries, now there are 5" in sentence


def test_a_run_that_did_not_write_down_its_images_goes_on_where_they_were_only(config, begun, tmp_path):
    places = tmp_path / "run/stage2/places.json"
    old = json.loads(places.read_text())
    for name in ("image_folder", "image_contents", "validation", "text_features"):
        del old[name]
    places.write_text(json.dumps(old))
    sentence = failure(config, *begun, "--resume", "true")
    assert "places.json does not say what was in the images of data.train_folder: leave it as it was" in sentence
    (tmp_path / "there").rename(tmp_path / "here")
    stage_2(config, *on_copies(tmp_path, "here"), "--resume", "true", "--training.epochs", 1)
    assert json.loads(places.read_text()).keys() == {
        *old,
        "image_folder",
        "image_contents",
        "validation",
        "text_features",
    }


def test_a_run_that_cropped_resized_images_does_not_go_on_with_other_crops(config, begun, tmp_path):
    places = tmp_path / "run/stage2/places.json"
    old = json.loads(places.read_text())
    del old["crops"]
    places.write_text(json.dumps(old))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    sentence = failure(config, *begun, "--resume", "true")
    assert f"The run in {tmp_path}/run/stage2 was begun by an earlier version, which cropped images after" in sentence
    assert "continue with that version, or name another --out." in sentence
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("normalization", "words", "sentence"),
    [
        ("clip", [], None),
        ("clip", ["--model.normalization", "clip"], None),
        ("imagenet", [], r"begun with pixels of .*, imagenet as set; now .*: give --model.normalization imagenet, or"),
        (None, ["--model.mean", "[0.5, 0.5, 0.5]", "--model.std", "[0.5, 0.5, 0.5]"], "give --model.mean null --model"),
        ("clip", ["--data.orientation", "ignore"], "data.orientation was 'exif', now 'ignore'"),
        ("clip", ["--validation.positive_angle_deg", "40"], "validation.positive_angle_deg was None, now 40.0"),
    ],
)
def test_a_run_goes_on_with_settings_that_came_later_where_they_mean_the_same(
    config, begun, tmp_path, normalization, words, sentence
):
    kept = tmp_path / "run/stage2/config.yaml"
    settings = yaml.safe_load(kept.read_text())
    settings["data"]["max_unreadable_share"] = settings["data"].pop("max_unreadable_fraction")
    for section, name in (
        ("data", "orientation"),
        ("data", "fast_decode"),
        ("validation", "positive_angle_deg"),
        ("model", "mean"),
        ("model", "std"),
        ("training", "tf32"),
        ("training", "cudnn_benchmark"),
    ):
        del settings[section][name]
    settings["model"]["normalization"] = normalization
    settings["model"]["frozen"] = settings["encoder"].pop("frozen")
    settings["data"]["val_folder"] = settings["validation"].pop("folder")
    settings["run"] = settings.pop("out")
    kept.write_text(yaml.safe_dump(settings))
    words = [*begun, "--resume", "true", "--training.epochs", 1, *words]
    if sentence is None:
        stage_2(config, *words)
    else:
        assert re.search(sentence, failure(config, *words))


def test_a_run_does_not_go_on_where_a_link_leads_to_other_images_of_the_same_names(config, begun, tmp_path):
    (tmp_path / "there").rename(tmp_path / "real")
    (tmp_path / "there").symlink_to(tmp_path / "real")
    stage_2(config, *begun, "--resume", "true", "--training.epochs", 1)
    shutil.copytree(tmp_path / "real", tmp_path / "other")
    first, second, *_ = sorted((tmp_path / "other/train").glob("*.jpg"))
    first.write_bytes(second.read_bytes())
    (tmp_path / "there").unlink()
    (tmp_path / "there").symlink_to(tmp_path / "other")
    assert "images of the same names, but those in" in failure(config, *begun, "--resume", "true")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.yaml", b"", "config.yaml does not hold the settings of the run: it is corrupt"),
        ("config.yaml", b"<html>: {404", "config.yaml does not hold the settings of the run: it is corrupt"),
        ("places.json", b"{}", "places.json does not say what the run learned from: it is corrupt"),
        ("places.json", b"<html>", "places.json is not a JSON file"),
        ("metrics.jsonl", b"x\n{}\n", "metrics.jsonl is corrupt: a line is not JSON"),
        (
            "../stage1/prompts.json",
            b"{}",
            "prompts.json is not as progeo writes it: missing the field partition. Run stage 1 again",
        ),
        (
            "../stage1/prompts.safetensors",
            b"<html>404</html>",
            "prompts.safetensors is not the file that was written with",
        ),
    ],
)
def test_a_damaged_file_of_a_run_is_named(config, run, tmp_path, file, content, sentence):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/stage2" / file).write_bytes(content)
    assert sentence in failure(config, "--out", tmp_path / "run", "--resume", "true")


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_as_it_would_have(config, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    checkpoints = tmp_path / "run/stage2/checkpoints"
    (checkpoints / "epoch_000003_step_000000/tensors.safetensors").write_bytes(b"")
    (checkpoints / ".DS_Store").touch()
    (checkpoints / "before_lr_change").mkdir()
    stage_2(config, "--out", tmp_path / "run", "--resume", "true", "--training.keep_checkpoints", 1)
    log = (tmp_path / "run/stage2/log.txt").read_text()
    (sentence,) = (line for line in log.splitlines() if "is corrupt" in line)
    assert f"{checkpoints}/epoch_000003_step_000000 is corrupt: Error while deserializing header" in sentence
    assert f"; resuming from {checkpoints}/epoch_000002_step_000000, which was written before it" in sentence
    assert metrics_of(tmp_path / "run/stage2") == metrics_of(run / "stage2")
    assert_same(last_state(tmp_path / "run"), last_state(run))
    assert {path.name for path in checkpoints.iterdir()} == {
        ".DS_Store",
        "before_lr_change",
        "epoch_000003_step_000000",
    }
