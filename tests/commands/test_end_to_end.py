"""The whole job through the real commands, on a toy city small enough for seconds."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from running import files_in, metrics_of
from safetensors.torch import load_file

import progeo
from progeo.cli import main
from progeo.data.decode import read_image
from progeo.engine.checkpoint import load_checkpoint
from progeo.export.encoder_folders import encoder_folder
from progeo.export.weights import read_encoder_metadata


def test_stage_1_leaves_exactly_its_files(run):
    assert files_in(run / "stage1") == {
        "config.yaml",
        "environment.json",
        "reproduce.sh",
        "places.json",
        "log.txt",
        "metrics.jsonl",
        "checkpoints/group_0.safetensors",
        "checkpoints/group_1.safetensors",
        "prompts.safetensors",
        "prompts.json",
    }


def test_stage_2_leaves_exactly_its_files(run):
    assert files_in(run / "stage2") == {
        "config.yaml",
        "environment.json",
        "reproduce.sh",
        "places.json",
        "log.txt",
        "metrics.jsonl",
        "checkpoints/epoch_000002_step_000000/state.json",
        "checkpoints/epoch_000002_step_000000/tensors.safetensors",
        "checkpoints/epoch_000003_step_000000/state.json",
        "checkpoints/epoch_000003_step_000000/tensors.safetensors",
        "best/model.safetensors",
        "best/model.json",
        "best/classifier.safetensors",
    }


def test_prompts_are_stored_with_their_class_ids_and_fingerprint(run):
    tensors = load_file(run / "stage1" / "prompts.safetensors")
    description = json.loads((run / "stage1" / "prompts.json").read_text())
    for group, count in enumerate(description["partition"]["classes_per_group"]):
        assert tensors[f"group_{group}.context"].shape == (count, 4, 64)
        assert tensors[f"group_{group}.text_features"].shape == (count, 128)
        ids = tensors[f"group_{group}.class_ids"].numpy()
        np.testing.assert_array_equal(ids, np.unique(ids, axis=0))
        assert len(ids) == count
    assert len(description["partition"]["fingerprint"]) == 16


def test_both_losses_of_both_stages_are_logged_for_every_epoch(run):
    first = metrics_of(run / "stage1")
    assert [(row["group"], row["epoch"]) for row in first] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert all(math.isclose(row["loss"], row["image_to_text"] + row["text_to_image"], rel_tol=1e-5) for row in first)
    second = metrics_of(run / "stage2")
    assert [row["epoch"] for row in second] == [0, 1, 2, 3]
    assert all(0 <= row["val R@1"] <= row["val R@5"] <= 100 for row in second)
    assert all(math.isclose(row["loss"], row["cosface"] + row["image_text"], rel_tol=1e-5) for row in second[1:])


def test_the_best_encoder_is_that_of_the_best_validation(run):
    best = max(metrics_of(run / "stage2")[1:], key=lambda row: row["val R@1"])  # the first is before training
    description = json.loads((run / "stage2" / "best" / "model.json").read_text())
    assert description["recalls"]["val R@1"] == best["val R@1"]
    assert description["provenance"]["epoch"] == best["epoch"]
    assert description["encoder"]["descriptor_dim"] == 32


def test_a_run_that_is_resumed_equals_one_that_was_not(run, config, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(run / "stage1", resumed / "stage1")
    common = ["train", "encoder", "--config", str(config), "--out", str(resumed)]
    main([*common, "--training.epochs", "1"])
    main([*common, "--resume", "true"])
    assert metrics_of(resumed / "stage2") == metrics_of(run / "stage2")
    mine, whole = (load_checkpoint(folder / "stage2/checkpoints/epoch_000003_step_000000") for folder in (resumed, run))
    assert mine["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
    for part in ("encoder", "terms"):
        for name, tensor in whole["task"][part].items():
            assert torch.equal(mine["task"][part][name], tensor), name


def test_an_idle_groups_head_stays_as_it_was(run):
    before, after = (
        load_checkpoint(run / f"stage2/checkpoints/epoch_00000{epoch}_step_000000")["task"]["terms"] for epoch in (2, 3)
    )
    first, second = (f"terms.head.heads.{group}.head.weight" for group in (0, 1))
    assert torch.equal(before[second], after[second])  # epoch 3 trains group 1 of 2
    assert not torch.equal(before[first], after[first])


def test_without_text_neither_prompts_nor_their_loss_are_there(config, tmp_path):
    words = ["--out", str(tmp_path), "--text.weight", "0", "--training.epochs", "1"]
    main(["train", "encoder", "--config", str(config), *words])
    assert not (tmp_path / "stage1").exists()
    assert set(metrics_of(tmp_path / "stage2")[1]) >= {"loss", "cosface"}
    assert "image_text" not in metrics_of(tmp_path / "stage2")[1]


def test_the_map_to_text_space_is_trained_but_not_exported(run):
    state = load_checkpoint(run / "stage2/checkpoints/epoch_000003_step_000000")
    assert state["task"]["terms"]["terms.text.space.linear.weight"].shape == (128, 32)
    best = load_file(run / "stage2/best/model.safetensors")
    assert all(name.startswith(("backbone.", "aggregation.")) for name in best)


def test_half_precision_trains_and_validates(run, config, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    half = ["--mixed_precision", "bf16", "--training.epochs", "1"]
    main(["train", "encoder", "--config", str(config), "--out", str(tmp_path), *half])
    whole, rounded = metrics_of(run / "stage2")[1], metrics_of(tmp_path / "stage2")[1]
    assert rounded["loss"] != whole["loss"]
    assert rounded["loss"] == pytest.approx(whole["loss"], rel=0.05)
    best = load_file(tmp_path / "stage2/best/model.safetensors")
    assert all(tensor.dtype != torch.bfloat16 for tensor in best.values())


def test_decoding_into_memory_and_into_batches_trains_alike(run, config, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    main(["train", "encoder", "--config", str(config), "--out", str(tmp_path), "--training.cache_images", "true"])
    assert metrics_of(tmp_path / "stage2") == metrics_of(run / "stage2")


def test_evaluate_leaves_recalls_predictions_and_a_report_that_agree(run, city, tmp_path):
    common = ["evaluate", "--encoder", str(run / "stage2"), "--folder", str(city / "test"), "--num_workers", "0"]
    common += ["--descriptor_cache", str(tmp_path / "cache")]
    main([*common, "--recall_ns", "[1,3]", "--positive_radius_m", "15", "--out", str(tmp_path / "out")])
    assert files_in(tmp_path / "out") == {
        "recalls.json",
        "recalls.csv",
        "recalls.md",
        "predictions.csv",
        "report.html",
        "environment.json",
        "reproduce.sh",
    }
    summary = json.loads((tmp_path / "out/recalls.json").read_text())
    recalls = summary["recalls"]
    with (tmp_path / "out/predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    queries = {row["query"] for row in rows}
    assert len(rows) == 3 * len(queries)
    assert all((float(row["distance_m"]) <= 15) == (row["correct"] == "1") for row in rows)
    for n in (1, 3):
        hit = {row["query"] for row in rows if int(row["rank"]) <= n and row["correct"] == "1"}
        assert recalls[f"R@{n}"] == pytest.approx(100 * len(hit) / len(queries))
    first = [float(row["distance_m"]) for row in rows if row["rank"] == "1"]
    assert summary["errors"]["median_m"] == pytest.approx(np.median(first), abs=0.01)
    head, _, line = (tmp_path / "out/recalls.md").read_text().splitlines()
    assert head == "| encoder | data | descriptor | R@1 | R@3 |"
    assert line.endswith(f"| {recalls['R@1']:.1f} | {recalls['R@3']:.1f} |")
    with (tmp_path / "out/recalls.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert {row["criterion"] for row in table} == {"within 15 m", "within 5 m", "within 25 m", "within 100 m"}


def test_images_of_other_sizes_can_be_evaluated(run, city, tmp_path):
    common = ["evaluate", "--encoder", str(run / "stage2"), "--folder", str(city / "test"), "--num_workers", "0"]
    common += ["--descriptor_cache", str(tmp_path / "cache")]
    main([*common, "--out", str(tmp_path), "--image_size", "[64, 96]"])
    assert json.loads((tmp_path / "recalls.json").read_text())["image size"] == "64 x 96 pixels"


def test_an_exported_encoder_describes_bit_for_bit_as_the_best_one(run, city, tmp_path):
    main(["export", str(run / "stage2"), "--out", str(tmp_path / "model")])
    assert files_in(tmp_path / "model") == {"classifier.safetensors", "model.safetensors", "model.json", "README.md"}
    exported, best = progeo.load_encoder(tmp_path / "model"), progeo.load_encoder(run / "stage2" / "best")
    image = exported.preprocess(read_image(next((city / "test/queries").iterdir())))[None]
    with torch.no_grad():
        assert torch.equal(exported(image), best(image))


def test_descriptors_are_kept_and_found_again_by_the_same_encoder_on_the_same_images(run, city, tmp_path, capsys):
    common = ["evaluate", "--encoder", str(run / "stage2"), "--num_workers", "0"]
    common += ["--descriptor_cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    main([*common, "--folder", str(city / "test")])
    first = (tmp_path / "out/predictions.csv").read_text()
    assert capsys.readouterr().err.count("descriptors of") == 2
    folders = set((tmp_path / "cache").iterdir())
    assert len(folders) == 2
    main([*common, "--folder", str(city / "test")])
    shown = capsys.readouterr().err
    assert shown.count("found in") == 2
    assert "written to" not in shown
    assert (tmp_path / "out/predictions.csv").read_text() == first
    (half,) = [path for path in (tmp_path / "cache").glob("*/rows_00000.npy") if len(np.load(path)) == 12]
    half.unlink()  # as after a stop: only that side is described again
    main([*common, "--folder", str(city / "test")])
    shown = capsys.readouterr().err
    assert (shown.count("found in"), shown.count("written to")) == (1, 1)
    assert (tmp_path / "out/predictions.csv").read_text() == first
    main([*common, "--folder", str(city / "test"), "--keep_as", "float16"])
    main([*common, "--folder", str(city / "test"), "--image_size", "[64, 96]"])
    assert len(set((tmp_path / "cache").iterdir())) == 6
    assert {np.load(path).dtype.name for path in (tmp_path / "cache").glob("*/rows_*.npy")} == {"float32", "float16"}


def test_a_compressed_index_says_what_it_loses_and_saves(run, city, tmp_path):
    common = ["evaluate", "--encoder", str(run / "stage2"), "--num_workers", "0", "--folder", str(city / "test")]
    common += ["--descriptor_cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    main([*common])
    exact = json.loads((tmp_path / "out/recalls.json").read_text())
    main([*common, "--faiss", "PCA8,SQ8"])
    found = json.loads((tmp_path / "out/recalls.json").read_text())
    lost = found["recalls"]["R@1"] - exact["recalls"]["R@1"]
    assert found["index"] == f"PCA8,SQ8: R@1 {lost:+.1f} against exact search"
    assert "MB of descriptors" in found["index size"]
    assert "index" not in exact
    assert len(list((tmp_path / "cache").glob("*/index_*.faiss"))) == 1


def test_a_reduced_encoder_gives_the_principal_components_of_its_descriptors(run, city, tmp_path, capsys):
    common = ["--folder", str(city / "train"), "--num_workers", "0", "--descriptor_cache", str(tmp_path / "cache")]
    main(["pca", "--encoder", str(run / "stage2"), "--out", str(tmp_path / "small"), "--dim", "8", *common])
    small, whole = progeo.load_encoder(tmp_path / "small"), progeo.load_encoder(run / "stage2")
    with torch.no_grad():
        photos = [read_image(path) for path in sorted((city / "train").iterdir())]
        images = torch.stack([whole.preprocess(photo) for photo in photos])
        descriptors, reduced = whole(images), small(images)
    centered = (descriptors - descriptors.mean(dim=0)).double()
    components = torch.linalg.svd(centered, full_matrices=False).Vh[:8]
    expected = torch.nn.functional.normalize(centered @ components.T, dim=1)
    alike = torch.corrcoef(torch.stack([(each @ each.T).flatten() for each in (reduced.double(), expected)]))[0, 1]
    assert alike > 0.9999  # of components that hold equally much, each may be turned into the other
    assert small.descriptor_dim == 8
    assert files_in(tmp_path / "small") == {"model.safetensors", "model.json"}
    assert "its classifier is for all dimensions: `progeo classes` makes one of 8" in capsys.readouterr().err
    came, description = (read_encoder_metadata(encoder_folder(at)) for at in (run / "stage2", tmp_path / "small"))
    made = {"dim": 8, "whiten": False, "folder": str(city / "train"), "images": len(photos)}
    assert description["provenance"] == {
        **came["provenance"],
        "encoder": str(run / "stage2"),
        "reduced": made,
    }
    assert description["recalls"] == {} != came["recalls"]
    white = ["pca", "--encoder", str(run / "stage2"), "--out", str(tmp_path / "white"), "--dim", "4"]
    main([*white, "--whiten", "true", *common])
    with torch.no_grad():
        spreads = progeo.load_encoder(tmp_path / "white").projection[0](descriptors).std(dim=0)
    torch.testing.assert_close(spreads, torch.ones(4), atol=1e-4, rtol=0)
    evaluation = ["evaluate", "--encoder", str(tmp_path / "small"), "--out", str(tmp_path / "out"), *common]
    evaluation[evaluation.index(str(city / "train"))] = str(city / "test")
    main(evaluation)
    assert json.loads((tmp_path / "out/recalls.json").read_text())["descriptor"] == "8 dimensions"
    with pytest.raises(SystemExit, match="projected already, from 32 to 8"):
        again = ["pca", "--encoder", str(tmp_path / "small"), "--out", str(tmp_path / "x"), "--dim", "4", *common]
        main([*again, "--descriptor_cache", str(tmp_path / "second cache")])
    assert not (tmp_path / "second cache").exists()  # refused before any image is read
    with pytest.raises(SystemExit, match=r"already holds model\.json, model\.safetensors: name"):
        main(["pca", "--encoder", str(run / "stage2"), "--out", str(tmp_path / "small"), "--dim", "4", *common])
