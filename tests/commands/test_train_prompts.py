"""Stage 1 through the real command: killed and resumed, on two processes, with broken images, with a changed cache."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from running import files_in, kill_before, metrics_of, run_on_two_processes
from safetensors.torch import load_file, save_file

from progeo.cli import main
from progeo.data.decode import read_image
from progeo.engine.accelerator import start_accelerator
from progeo.features.store import ShardedRows
from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.places.catalogue import open_catalogue
from progeo.places.cells import class_ids
from progeo.training.prompt_group import GroupImages, held_out_images


@pytest.fixture
def own_config(config, city, tmp_path):
    """The settings of `run` with a copy of its training images and a feature cache of their own."""
    shutil.copytree(city / "train", tmp_path / "train")
    settings = yaml.safe_load(config.read_text())
    settings["data"] |= {"train_folder": str(tmp_path / "train")}
    settings["prompts"]["feature_cache"] = str(tmp_path / "features")
    settings["out"] = str(tmp_path / "run")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def stage_1(config: Path, *arguments: object) -> None:
    main(["train", "prompts", "--config", str(config), *map(str, arguments)])


def failure(config: Path, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        stage_1(config, *arguments)
    return str(stop.value.code)


def prompts_of(run: Path) -> bytes:
    return (run / "stage1" / "prompts.safetensors").read_bytes()


def test_features_are_found_again_by_a_later_run(run, config, tmp_path, capfd):
    (features,) = (config.parent / "features").iterdir()
    names = {"description.json", "catalogue.arrow", "files.npy", *(f"rows_{shard:05}.npy" for shard in range(2))}
    assert {path.name for path in features.iterdir()} == names | {"batch_norm.safetensors"}
    before = {path.name: path.stat().st_mtime_ns for path in features.iterdir()}
    stage_1(config, "--out", tmp_path / "again")
    assert f"found in {features}" in capfd.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in features.iterdir()} == before
    assert prompts_of(tmp_path / "again") == prompts_of(run)


def test_a_template_that_cannot_work_is_refused_before_features_are_extracted(own_config, tmp_path):
    assert "--prompts.template must contain {} once" in failure(own_config, "--prompts.template", "A photo.")
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_an_extraction_that_was_killed_goes_on_where_it_stopped(own_config, tmp_path):
    def shards() -> list[Path]:
        return sorted((tmp_path / "features").glob("*/rows_*.npy"))

    kill_before("/rows_00001.npy", "stage1_prompts.py", "--config", own_config)
    before = {path: path.stat().st_mtime_ns for path in shards()}
    assert len(before) == 1
    stage_1(own_config, "--resume", "true")
    assert len(shards()) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    stage_1(own_config, "--prompts.feature_cache", tmp_path / "other", "--out", tmp_path / "other_run")
    assert prompts_of(tmp_path / "run") == prompts_of(tmp_path / "other_run")


def test_a_training_that_was_killed_ends_with_the_same_prompts_bit_for_bit(config, run, tmp_path):
    many = ["--config", str(config), "--prompts.epochs", "4", "--prompts.log_every", "2"]
    many += ["--prompts.checkpoint_minutes", "0"]
    killed, whole = ["--out", str(tmp_path / "killed")], ["--out", str(tmp_path / "whole")]
    kill_before("/group_1/epoch_000003_step_000000", "stage1_prompts.py", *many, *killed)
    checkpoints = tmp_path / "killed/stage1/checkpoints"
    unfinished, owner, finished = sorted(path.name for path in checkpoints.glob("*/*"))
    assert finished == "epoch_000002_step_000000"
    assert unfinished.startswith(".unfinished-epoch_000003_step_000000-")
    assert owner == f"{unfinished}.progeo"
    assert not (tmp_path / "killed/stage1/prompts.safetensors").exists()
    main(["train", "prompts", *many, *killed, "--resume", "true"])
    main(["train", "prompts", *many, *whole])
    assert prompts_of(tmp_path / "killed") == prompts_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "killed/stage1") == metrics_of(tmp_path / "whole/stage1")
    assert files_in(tmp_path / "killed") == files_in(tmp_path / "whole")


def test_only_groups_that_are_not_finished_are_trained_again(run, config, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    for name in ("checkpoints/group_1.safetensors", "prompts.safetensors", "prompts.json"):
        (tmp_path / "stage1" / name).unlink()
    kept = (tmp_path / "stage1/checkpoints/group_0.safetensors").stat().st_mtime_ns
    stage_1(config, "--out", tmp_path, "--resume", "true", "--prompts.log_every", "99")
    assert (tmp_path / "stage1/checkpoints/group_0.safetensors").stat().st_mtime_ns == kept
    assert prompts_of(tmp_path) == prompts_of(run)
    assert metrics_of(tmp_path / "stage1") == metrics_of(run / "stage1")


@pytest.mark.slow
def test_two_processes_learn_the_same_prompts_as_one(own_config, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stage_1(own_config, "--prompts.log_every", "2")
    torch.set_num_threads(threads)
    settings = yaml.safe_load(own_config.read_text()) | {"out": str(tmp_path / "two")}
    settings["prompts"]["log_every"] = 2
    settings["prompts"]["feature_cache"] = str(tmp_path / "features_of_two")
    own_config.write_text(yaml.safe_dump(settings))
    run_on_two_processes("stage1_prompts.py", "--config", own_config)
    assert json.loads((tmp_path / "two/stage1/environment.json").read_text())["processes"] == 2
    assert prompts_of(tmp_path / "run") == prompts_of(tmp_path / "two")
    one, two = (
        sorted(metrics_of(tmp_path / name / "stage1"), key=lambda row: (row["group"], row["epoch"], row.get("step", 0)))
        for name in ("run", "two")
    )
    assert one == two
    assert {row["group"] for row in one if "step" in row} == {0, 1}
    log = (tmp_path / "two/stage1/log.txt").read_text()
    assert log.count("group 1/2: ") == log.count("group 2/2: ") == 1  # each is summed up once, whoever trained it


def test_a_broken_image_is_reported_and_its_class_learns_from_the_others(own_config, tmp_path):
    fixed = ("--prompts.batch_norm", "eval")  # calibrated, statistics would be of other batches
    broken = sorted((tmp_path / "train").rglob("*.jpg"))[-1]  # of the last batch, which is smaller without it
    broken.write_bytes(broken.read_bytes()[:-500])
    assert "cannot be decoded" in failure(own_config, *fixed, "--data.max_unreadable_fraction", "0")
    stage_1(own_config, *fixed, "--data.max_unreadable_fraction", "0.02", "--resume", "true")
    assert str(broken) in (tmp_path / "run/stage1/log.txt").read_text()
    broken.unlink()
    stage_1(own_config, *fixed, "--out", tmp_path / "without")
    assert prompts_of(tmp_path / "run") == prompts_of(tmp_path / "without")


def test_a_run_goes_on_where_its_images_were_moved_to_and_finds_their_features(own_config, tmp_path):
    stage_1(own_config)
    prompts = prompts_of(tmp_path / "run")
    for name in ("checkpoints/group_1.safetensors", "prompts.safetensors", "prompts.json"):
        (tmp_path / "run/stage1" / name).unlink()
    (tmp_path / "train").rename(tmp_path / "moved")
    moved = ["--data.train_folder", tmp_path / "moved"]
    stage_1(own_config, *moved, "--resume", "true")
    assert prompts_of(tmp_path / "run") == prompts
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_what_the_user_keeps_beside_the_checkpoints_of_a_group_stays(own_config, tmp_path):
    mine = tmp_path / "run/stage1/checkpoints/group_0/epoch_000001_step_000000 copy"
    mine.mkdir(parents=True)
    (mine / "state.json").write_text("mine")
    stage_1(own_config)
    assert (mine / "state.json").read_text() == "mine"
    assert files_in(tmp_path / "run/stage1/checkpoints") == {
        "group_0.safetensors",
        "group_0/epoch_000001_step_000000 copy/state.json",
        "group_1.safetensors",
    }


def test_features_of_images_that_changed_since_are_refused(own_config, tmp_path):
    stage_1(own_config)
    changed = sorted((tmp_path / "train").rglob("*.jpg"))[3]
    changed.write_bytes(changed.read_bytes() + b"\0")
    sentence = failure(own_config, "--out", tmp_path / "later")
    assert "images looked at changed since their features were extracted to" in sentence
    assert str(changed) in sentence


def test_a_cache_that_says_it_was_made_from_something_else_is_refused(own_config, tmp_path):
    stage_1(own_config)
    (description,) = (tmp_path / "features").glob("*/description.json")
    description.write_text(json.dumps({**json.loads(description.read_text()), "normalization": "imagenet"}))
    sentence = failure(own_config, "--out", tmp_path / "later")
    clips = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    assert f"What is in {description.parent} was made with normalization = imagenet, now it is {clips}" in sentence
    assert "feature_cache" in sentence


@pytest.mark.parametrize(
    "change",
    [
        ("--prompts.image_size", "96"),
        pytest.param(("--model.normalization", "imagenet"), marks=pytest.mark.slow),
        pytest.param(("--seed", "1"), marks=pytest.mark.slow),
        pytest.param(("--mixed_precision", "bf16"), marks=pytest.mark.slow),
    ],
)
def test_other_weights_sizes_and_preprocessing_have_features_of_their_own(run, config, tmp_path, change):
    features = config.parent / "features"
    before = set(features.iterdir())
    stage_1(config, "--out", tmp_path / "run", "--prompts.epochs", 1, *change)
    (new,) = set(features.iterdir()) - before
    shutil.rmtree(new)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("--model.mean", "[0.5,0.5,0.5]"), "--model.mean and --model.std go together"),
        (("--model.architecture", "coca_base"), "coca_base: its configuration names no tokenizer, and its vocabulary"),
        (("--model.architecture", "ViT-L-14-CLIPA"), "ViT-L-14-CLIPA: the tokenizer bert-base-uncased could not be"),
    ],
)
def test_what_stage_1_cannot_learn_from_is_refused_before_there_is_a_run(
    change, sentence, config, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert sentence in failure(config, "--out", tmp_path / "run", *change)
    assert not (tmp_path / "run").exists()


def test_pixels_are_normalized_as_the_file_of_the_weights_says(own_config, tmp_path):
    mean, std = [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]
    weights = str(tmp_path / "clip.safetensors")
    state = {name: tensor.clone() for name, tensor in load_clip("tiny-resnet", "random").state_dict().items()}
    save_file(state, weights, {"mean": json.dumps(mean), "std": json.dumps(std)})
    once = ("--prompts.epochs", 1, "--cells.num_groups", 1, "--prompts.batch_norm", "eval")
    stage_1(own_config, "--model.weights", weights, *once)
    (cache,) = (tmp_path / "features").iterdir()
    assert json.loads((cache / "description.json").read_text())["normalization"] == {"mean": mean, "std": std}
    catalogue = open_catalogue(cache / "catalogue.arrow", tmp_path / "train")
    image = read_image(catalogue.path(0)).float() / 255
    pixels = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = load_clip("tiny-resnet", weights, 64).encode_image(pixels[None])[0]
    torch.testing.assert_close(
        torch.from_numpy(np.load(cache / "rows_00000.npy")[0]).float(), expected, rtol=2e-2, atol=2e-3
    )
    log = (tmp_path / "run/stage1/log.txt").read_text()
    assert f"pixels      bilinear, mean (0.5, 0.4, 0.3), std (0.3, 0.2, 0.1), those of {weights}" in log


def test_every_group_is_summed_up_with_the_accuracies_of_its_prompts(run, config, city):
    check_accuracies(run, config.parent / "features", city)


def test_prompts_are_learned_from_the_features_of_their_own_images_where_these_are_in_random_order(
    own_config, city, tmp_path
):
    stage_1(own_config, "--prompts.batch_norm", "batch")
    check_accuracies(tmp_path / "run", tmp_path / "features", city)


def check_accuracies(run: Path, features: Path, city: Path, *, held_out: float = 0.0) -> None:
    description = json.loads((run / "stage1" / "prompts.json").read_text())
    tensors = load_file(run / "stage1" / "prompts.safetensors")
    metrics = {(row["group"], row["epoch"]): row for row in metrics_of(run / "stage1")}
    (cache,) = features.iterdir()
    catalogue = open_catalogue(cache / "catalogue.arrow", city / "train")
    features = np.concatenate([np.load(path) for path in sorted(cache.glob("rows_*.npy"))]).astype(np.float32)
    ids = class_ids(catalogue.east, catalogue.north, catalogue.heading, cell_side_m=10, heading_bin_deg=30)
    for group, summary in enumerate(description["groups"]):
        classes = tensors[f"group_{group}.class_ids"].tolist()
        of_classes = [[row for row, class_id in enumerate(ids.tolist()) if class_id == each] for each in classes]
        labels = [label for label, rows in enumerate(of_classes) for _ in rows]
        unseen = held_out_images(np.array(labels), held_out, seed=0, group=group)
        for name, chosen in (("", ~unseen), ("held_out_", unseen)):
            rows, expected = np.concatenate(of_classes)[chosen], np.array(labels)[chosen].tolist()
            if not expected:
                assert f"{name}images" not in summary
                continue
            similarity = features[rows] @ tensors[f"group_{group}.text_features"].numpy().T
            texts = [max(range(len(classes)), key=lambda c: line[c]) for line in similarity]
            images = [expected[max(range(len(rows)), key=lambda i: line[i])] for line in similarity.T]
            correct = [image == label for label, image in enumerate(images) if label in expected]
            assert summary[f"{name}image_to_text_accuracy"] == pytest.approx(100 * np.mean(np.equal(texts, expected)))
            assert summary[f"{name}text_to_image_accuracy"] == pytest.approx(100 * np.mean(correct))
            assert summary[f"{name}images"] == len(rows)
        assert summary["classes"] == len(classes) == description["partition"]["classes_per_group"][group]
        row = metrics[group, summary.get("kept_epoch", 2)]
        assert {name: value for name, value in row.items() if name in summary}.items() <= summary.items()
        assert summary["loss"] == row["loss"]


EARLY = ("--prompts.epochs", "9", "--prompts.patience", "2", "--prompts.held_out", "0.3")


def test_a_group_stops_early_with_the_vectors_that_placed_most_unseen_images_also_where_it_was_killed(
    config, run, city, tmp_path
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    stage_1(config, *EARLY, "--out", whole)
    check_accuracies(whole, config.parent / "features", city, held_out=0.3)
    _, summary = json.loads((whole / "stage1/prompts.json").read_text())["groups"]
    epochs, kept = summary["epochs"], summary["kept_epoch"]
    assert epochs == kept + 2 < 9
    rows = [row for row in metrics_of(whole / "stage1") if row["group"] == 1]
    accuracies = [row["held_out_image_to_text_accuracy"] for row in rows]
    assert len(rows) == epochs
    assert accuracies.index(max(accuracies)) + 1 == kept
    words = ["stage1_prompts.py", "--config", config, *EARLY, "--prompts.checkpoint_minutes", "0", "--out", killed]
    kill_before(f"/group_1/epoch_{epochs:06}_step_000000", *words)
    kill_before("/group_1.safetensors", *words, "--resume", "true")
    stage_1(config, *EARLY, "--out", killed, "--resume", "true")
    assert prompts_of(killed) == prompts_of(whole)
    assert metrics_of(killed / "stage1") == metrics_of(whole / "stage1")
    log = (whole / "stage1/log.txt").read_text()
    assert f"; of {summary['held_out_images']} held-out images image to text {max(accuracies):.1f} %, text to" in log
    assert f" %; vectors of epoch {kept} of {epochs}\n" in log


def test_accuracies_are_measured_in_every_epoch_where_training_may_stop_early(config, run, tmp_path):
    stage_1(config, "--prompts.patience", "9", "--out", tmp_path / "patient")
    (first, _), (plain, _) = (
        json.loads((each / "stage1/prompts.json").read_text())["groups"] for each in (tmp_path / "patient", run)
    )
    measured, unmeasured = metrics_of(tmp_path / "patient/stage1"), metrics_of(run / "stage1")
    assert all(row.items() <= other.items() for row, other in zip(unmeasured, measured, strict=True))
    assert "image_to_text_accuracy" in measured[0]
    assert "image_to_text_accuracy" not in unmeasured[0]
    assert first.keys() - plain.keys() == {"epochs", "kept_epoch"}


@pytest.mark.parametrize(
    ("images", "share", "counts"),
    [
        ([1, 2, 5, 10, 0, 3], 0.0, [0, 0, 0, 0, 0, 0]),
        ([1, 2, 5, 10, 0, 3], 0.2, [0, 1, 1, 2, 0, 1]),
        ([1, 2, 5, 10, 0, 3], 0.21, [0, 1, 2, 3, 0, 1]),
        ([1, 2, 5, 10, 0, 3], 1.0, [0, 1, 4, 9, 0, 2]),
    ],
)
def test_a_share_of_each_class_is_held_out_by_the_seed_and_the_group(images, share, counts):
    labels = np.repeat(np.arange(6), images)
    drawn = held_out_images(labels, share, seed=1, group=2)
    assert np.bincount(labels[drawn], minlength=6).tolist() == counts
    np.testing.assert_array_equal(drawn, held_out_images(labels, share, seed=1, group=2))
    others = [held_out_images(labels, share, seed=seed, group=group) for seed, group in ((0, 2), (1, 3), (2, 1))]
    assert all((drawn != other).any() for other in others) == (share > 0)


def test_classes_of_one_image_can_hold_out_none(config, run, tmp_path):
    single = (
        "--cells.cell_side_m",
        1,
        "--cells.heading_bin_deg",
        1,
        "--cells.min_images_per_class",
        1,
        "--cells.num_groups",
        1,
    )
    sentence = failure(config, "--out", tmp_path / "run", *single, "--prompts.held_out", 0.1)
    assert (
        "No image of group 1/1 can be held out, as each class keeps one and none has two: set --prompts.h" in sentence
    )


@pytest.mark.parametrize(("architecture", "is_refused"), [("tiny-resnet", True), ("tiny-vit", False)])
def test_a_run_from_before_batch_norms_were_calibrated_goes_on_with_the_same_features_or_not_at_all(
    own_config, tmp_path, architecture, is_refused
):
    begun = ("--model.architecture", architecture, "--prompts.epochs", 1)
    stage_1(own_config, *begun, "--prompts.batch_norm", "eval")
    prompts, kept = prompts_of(tmp_path / "run"), tmp_path / "run/stage1/config.yaml"
    for name in ("checkpoints/group_1.safetensors", "prompts.safetensors", "prompts.json"):
        (tmp_path / "run/stage1" / name).unlink()
    settings = yaml.safe_load(kept.read_text())
    del settings["prompts"]["batch_norm"]
    kept.write_text(yaml.safe_dump(settings))
    again = (*begun, "--resume", "true")
    if is_refused:
        sentence = failure(own_config, *again)
        assert f"{tmp_path / 'run/stage1'} was begun with image features of --prompts.batch_norm eval" in sentence
        assert "now it is calibrated, and they would be others: set --prompts.batch_norm eval, or name an" in sentence
        again = (*again, "--prompts.batch_norm", "eval")
    stage_1(own_config, *again)
    assert prompts_of(tmp_path / "run") == prompts
    assert len(list((tmp_path / "features").iterdir())) == 1


@pytest.mark.slow
def test_a_run_from_before_images_were_resized_bicubic_keeps_bilinear_features(own_config, tmp_path):
    state = {name: tensor.clone() for name, tensor in load_clip("tiny-resnet", "random").state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors", {"interpolation": "bicubic"})
    begun = ("--model.weights", tmp_path / "clip.safetensors", "--prompts.image_size", 32, "--prompts.epochs", 1)
    stage_1(own_config, *begun, "--model.resize", "bilinear")
    prompts, kept = prompts_of(tmp_path / "run"), tmp_path / "run/stage1/config.yaml"
    for name in ("checkpoints/group_1.safetensors", "prompts.safetensors", "prompts.json"):
        (tmp_path / "run/stage1" / name).unlink()
    settings = yaml.safe_load(kept.read_text())
    del settings["model"]["resize"]
    kept.write_text(yaml.safe_dump(settings))
    sentence = failure(own_config, *begun, "--resume", "true", "--model.resize", "bicubic")
    assert "was begun with pixels of bilinear, mean (0.4815, 0.4578, 0.4082), std" in sentence
    assert "now they would have bicubic, mean" in sentence and "give --model.resize bilinear, or name" in sentence
    stage_1(own_config, *begun, "--resume", "true")
    assert prompts_of(tmp_path / "run") == prompts
    assert len(list((tmp_path / "features").iterdir())) == 1
    assert yaml.safe_load(kept.read_text())["model"]["resize"] == "bilinear"
    stage_1(own_config, *begun, "--out", tmp_path / "anew", "--cells.num_groups", 1)  # as the weights say: bicubic
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_a_batch_of_one_image_is_refused(own_config, tmp_path):
    sentence = failure(own_config, "--prompts.batch_norm", "batch", "--data.eval_batch_size", 1)
    assert "--data.eval_batch_size must be at least 2 where --prompts.batch_norm is batch, got 1" in sentence
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_images(own_config, tmp_path):
    stage_1(own_config)
    first = sorted((tmp_path / "train").rglob("*.jpg"))[0]
    first.rename(first.with_name(first.name.replace("@.jpg", "x@.jpg")))
    sentence = failure(own_config, "--resume", "true")
    assert "was begun with 84 images in" in sentence
    assert "now there are 84, not all the same or in another order: name another --out" in sentence


def test_an_image_that_was_mended_is_described_when_its_file_of_features_is_made_again(own_config, tmp_path):
    broken = sorted((tmp_path / "train").rglob("*.jpg"))[0]
    content, times = broken.read_bytes(), broken.stat()
    broken.write_bytes(b"x" * len(content))
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    stage_1(own_config, "--data.max_unreadable_fraction", "0.02")
    (reasons,) = (tmp_path / "features").glob("*/unreadable_00000.json")
    assert list(json.loads(reasons.read_text())) == ["0"]
    broken.write_bytes(content)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    (reasons.parent / "rows_00000.npy").unlink()
    stage_1(own_config, "--out", tmp_path / "again")
    assert not reasons.exists()
    assert "cannot be" not in (tmp_path / "again/stage1/log.txt").read_text()


def test_features_on_the_device_and_features_on_disk_give_the_same_batches(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float16)
    features = ShardedRows(tmp_path, num_rows=20, width=8, shard_size=16)
    features.write_shard(0, values[:16])
    features.write_shard(1, values[16:])
    rows, labels = np.array([19, 2, 7, 15, 16]), np.array([0, 0, 1, 2, 2])
    accelerator = start_accelerator("no")
    for on_device in (True, False):
        images = GroupImages(features, rows, labels=labels, accelerator=accelerator, on_device=on_device)
        got, got_labels = images.batch(np.array([4, 0, 2]))
        np.testing.assert_array_equal(got.numpy(), values[[16, 19, 7]].astype(np.float32))
        assert got_labels.tolist() == [2, 0, 1]


def test_prompts_record_the_configuration_that_weights_bring_and_resume_with_no_other(config, tmp_path):
    folder, values = tmp_path / "clip", named_configuration("tiny-vit").to_json()
    values["vision_cfg"]["pool_type"] = "avg"
    save_file(load_clip("tiny-vit", "random").state_dict(), write_configuration(folder, values))
    own = ("--model.architecture", "tiny-vit", "--model.weights", folder, "--prompts.epochs", 1)
    caches = set((config.parent / "features").iterdir())
    stage_1(config, "--out", tmp_path / "run", *own)
    assert json.loads((tmp_path / "run/stage1/prompts.json").read_text())["configuration"] == values
    (cache,) = set((config.parent / "features").iterdir()) - caches
    assert json.loads((cache / "description.json").read_text())["configuration"]["vision_cfg.pool_type"] == "avg"
    for name in ("prompts.json", "group_0.safetensors"):
        next((tmp_path / "run/stage1").rglob(name)).unlink()
    places = tmp_path / "run/stage1/places.json"
    recorded = json.loads(places.read_text())
    of_before = {name: value for name, value in recorded.items() if name != "configuration"}
    # An earlier version recorded none, and used that of tiny-vit.
    for pool_type, values_of_run, began in (
        ("tok", recorded, "with another configuration of --model.weights"),
        ("avg", of_before, "by an earlier version, which built another network from --model.weights"),
    ):
        values["vision_cfg"]["pool_type"] = pool_type
        write_configuration(folder, values)
        places.write_text(json.dumps(values_of_run))
        sentence = failure(config, "--out", tmp_path / "run", *own, "--resume", "true")
        assert sentence.endswith(f"/stage1 was begun {began}: name another --out.")
    values["vision_cfg"]["pool_type"] = "tok"
    write_configuration(folder, values)
    stage_1(config, "--out", tmp_path / "run", *own, "--resume", "true")


def write_configuration(folder: Path, values: dict) -> Path:
    """Write a configuration of open_clip, and return the path of the weights beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": values}))
    return folder / "open_clip_model.safetensors"
