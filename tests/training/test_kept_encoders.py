"""Which encoders a run of stage 2 keeps, what it says of them, and what they are taken for."""

import json
import shutil

import numpy as np
import pytest
import torch
from running import files_in, parsed
from safetensors.torch import load_file

import progeo
from progeo.cli import main
from progeo.commands.train_encoder import read_training_images
from progeo.engine.checkpoint import load_checkpoint
from progeo.engine.run_folder import RunFolder
from progeo.export.classifier import load_classifier, load_encoder_and_classifier
from progeo.export.encoder_folders import encoder_folder
from progeo.models.options import EncoderOptions, ModelOptions
from progeo.places.geographic import positions_m
from progeo.training.starting_encoder import build_starting_encoder, starting_statistics

EVERY_SECOND = ("--training.keep", "last", "--training.keep_every", 2)


def stage_2(config, run, *arguments):
    vit = ["--model.architecture", "tiny-vit", "--encoder.descriptor_dim", "null", "--text.weight", 0]
    short = ["--training.iterations_per_epoch", 1]
    main(["train", "encoder", *map(str, ["--config", config, "--out", run, *vit, *short, *arguments])])


def lines_of(run):
    """What its log says, without times."""
    return [line[24:] for line in (run / "stage2/log.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def keeping_last(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("last")
    stage_2(config, run, *EVERY_SECOND)
    return run


def test_a_run_keeps_the_last_encoder_or_those_of_chosen_epochs_where_asked(keeping_last):
    kept = {name.rpartition("/")[0] for name in files_in(keeping_last / "stage2")}
    assert {folder for folder in kept if not folder.startswith("checkpoints")} == {"", "last", "epochs/epoch_000002"}
    for folder, epoch in (("last", 3), ("epochs/epoch_000002", 2)):
        kept = load_file(keeping_last / "stage2" / folder / "model.safetensors")
        trained = load_checkpoint(keeping_last / f"stage2/checkpoints/epoch_{epoch:06}_step_000000")["task"]["encoder"]
        assert all(torch.equal(kept[name], tensor) for name, tensor in trained.items())
        description = json.loads((keeping_last / "stage2" / folder / "model.json").read_text())
        assert description["provenance"]["epoch"] == epoch
        assert progeo.load_encoder(keeping_last / "stage2" / folder).descriptor_dim == 128


def test_the_classifier_of_all_groups_is_kept_with_its_encoder(config, keeping_last):
    settings = parsed("train encoder", "--config", config)["settings"]
    places = read_training_images(settings)
    (own,) = positions_m(places.catalogue)
    for folder, epoch in (("last", 3), ("epochs/epoch_000002", 2)):
        _, classifier = load_encoder_and_classifier(keeping_last / "stage2" / folder)
        state = load_checkpoint(keeping_last / f"stage2/checkpoints/epoch_{epoch:06}_step_000000")["task"]["terms"]
        rows = [state[f"terms.head.heads.{group}.head.weight"] for group in range(2)]
        assert torch.equal(torch.from_numpy(classifier.weight), torch.cat(rows))
        assert classifier.classes_per_group == tuple(map(len, rows))
        assert (classifier.kind, classifier.scale, classifier.bias) == ("cosface", 30, None)
        assert (classifier.cells, classifier.fingerprint) == (places.partition.settings, places.partition.fingerprint)
        first = 0
        for group in places.partition.groups:
            for label, ids in enumerate(group.class_ids.tolist()):
                assert classifier.class_ids[first + label].tolist() == ids
                images = group.rows[group.labels == label]
                assert classifier.num_images[first + label] == len(images)
                off = np.abs(own[images] - classifier.centers_m[first + label])
                assert (off <= classifier.cell_side_m / 2).all()
            first += group.num_classes
        assert set(classifier.catalogue.zone) == set(places.catalogue.zone)
    assert not torch.equal(torch.cat(rows), torch.from_numpy(load_classifier(keeping_last).weight))


def test_a_run_that_keeps_the_last_encoder_gives_it_and_says_which_was_the_best(keeping_last):
    run = RunFolder(keeping_last / "stage2")
    recalls = [row["val R@1"] for row in run.read_metrics()][1:]
    best = f"best val R@1 {max(recalls):.1f} in epoch {1 + recalls.index(max(recalls))}"
    assert f"{best}, encoder of the last, epoch 3, in {run.path}/last" in lines_of(keeping_last)
    assert encoder_folder(keeping_last) == encoder_folder(run.path) == run.kept("last")


def test_a_training_starts_from_the_folder_of_a_run_once_that_has_an_encoder(keeping_last, tmp_path):
    assert "as the encoder in" in str(starting_statistics(ModelOptions(weights=str(keeping_last))))
    RunFolder(tmp_path / "stage2").path.mkdir()
    RunFolder(tmp_path / "stage2").config.touch()
    with pytest.raises(FileNotFoundError, match=f"There is no encoder in the run {tmp_path} yet"):
        build_starting_encoder(ModelOptions(weights=str(tmp_path)), EncoderOptions(), seed=0)


def test_it_is_kept_again_after_a_stop_and_for_other_epochs_but_what_is_kept_stays(config, keeping_last, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(keeping_last, stopped)
    shutil.rmtree(stopped / "stage2/last")
    shutil.rmtree(stopped / "stage2/checkpoints/epoch_000003_step_000000")
    again = ["--resume", "true", "--training.keep_every", 3]
    with pytest.raises(SystemExit, match=r"training\.keep was 'last', now 'best'"):
        stage_2(config, stopped, *again)
    stage_2(config, stopped, *again, "--training.keep", "last")
    whole = (keeping_last / "stage2/last/model.safetensors").read_bytes()
    for folder in ("last", "epochs/epoch_000003"):
        assert (stopped / "stage2" / folder / "model.safetensors").read_bytes() == whole


def test_the_last_line_says_which_epoch_was_the_best(run):
    recalls = [row["val R@1"] for row in RunFolder(run / "stage2").read_metrics()]
    best = max(recalls[1:])
    assert recalls[0] < best
    assert lines_of(run)[-1] == f"best val R@1 {best:.1f} in epoch {recalls.index(best)}, encoder in {run}/stage2/best"


@pytest.mark.slow
def test_the_encoder_before_training_is_never_kept_and_named_where_no_epoch_was_better(config, tmp_path):
    still = [
        "--training.epochs",
        1,
        "--training.encoder_learning_rate",
        "1e-12",
        "--training.head_learning_rate",
        "1e-12",
    ]
    stage_2(config, tmp_path, *still)
    before, after = (row["val R@1"] for row in RunFolder(tmp_path / "stage2").read_metrics())
    assert before == after > 0
    assert json.loads((tmp_path / "stage2/best/model.json").read_text())["provenance"]["epoch"] == 1
    said = [
        f"best val R@1 {after:.1f} in epoch 1, encoder in {tmp_path}/stage2/best",
        f"no epoch was better than the encoder before training: epoch 0 had val R@1 {before:.1f}. Try a lower "
        f"training.encoder_learning_rate, or more training.epochs.",
    ]
    assert lines_of(tmp_path)[-2:] == said
    stage_2(config, tmp_path, *still, "--resume", "true")
    assert lines_of(tmp_path)[-2:] == said
    assert lines_of(tmp_path)[-3].startswith("resuming from")
