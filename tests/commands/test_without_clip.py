"""CosPlace's way: stage 2 alone, on a backbone of torchvision."""

import json

import pytest
import torch
from running import files_in, metrics_of

import progeo
from progeo.cli import main
from progeo.engine.checkpoint import load_checkpoint
from progeo.models.encoder import build_encoder

FROZEN = ("conv1", "bn1", "layer1", "layer2")


def stage2(config, run, architecture, *arguments):
    model = ["--model.architecture", architecture, "--model.normalization", "imagenet", "--text.weight", "0"]
    main(["train", "encoder", "--config", str(config), "--out", str(run), *model, *arguments])


def test_stage_2_trains_a_resnet_after_its_frozen_layers_and_leaves_an_encoder(config, tmp_path):
    stage2(config, tmp_path, "resnet18", "--encoder.frozen", json.dumps(FROZEN), "--training.epochs", "1")
    assert files_in(tmp_path) == {
        *(
            f"stage2/{name}"
            for name in ("config.yaml", "environment.json", "reproduce.sh", "places.json", "log.txt", "metrics.jsonl")
        ),
        *(f"stage2/checkpoints/epoch_000001_step_000000/{name}" for name in ("state.json", "tensors.safetensors")),
        *(f"stage2/best/{name}" for name in ("model.safetensors", "model.json", "classifier.safetensors")),
    }
    trained = load_checkpoint(tmp_path / "stage2/checkpoints/epoch_000001_step_000000")["task"]["encoder"]
    untrained = build_encoder("resnet18", "random", 64, descriptor_dim=32)
    for name, parameter in untrained.named_parameters():
        frozen = name.startswith(tuple(f"backbone.{layer}." for layer in FROZEN))
        assert torch.equal(trained[name], parameter) == frozen, name
    encoder = progeo.load_encoder(tmp_path / "stage2")
    assert (encoder.spec.architecture, encoder.descriptor_dim, encoder.image_size) == ("resnet18", 32, (64, 64))
    assert encoder.spec.mean == (0.485, 0.456, 0.406)


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_where_layers_draw_at_random(config, tmp_path):
    """EfficientNet drops whole blocks of some images while training."""
    stage2(config, tmp_path / "whole", "efficientnet_b0", "--training.epochs", "2")
    stage2(config, tmp_path / "resumed", "efficientnet_b0", "--training.epochs", "1")
    stage2(config, tmp_path / "resumed", "efficientnet_b0", "--training.epochs", "2", "--resume", "true")
    runs = [tmp_path / name / "stage2" for name in ("whole", "resumed")]
    whole, resumed = (load_checkpoint(run / "checkpoints/epoch_000002_step_000000") for run in runs)
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    for name, tensor in whole["task"]["encoder"].items():
        assert torch.equal(resumed["task"]["encoder"][name], tensor), name


def test_stage_1_without_a_clip_says_what_can_be_done(config, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", "prompts", "--config", str(config), "--out", str(tmp_path), "--model.architecture", "resnet18"])
    assert "Stage 1 needs a CLIP" in str(stop.value.code)
    assert "'resnet18'" in str(stop.value.code)
    assert "--text.weight 0" in str(stop.value.code)
    assert not files_in(tmp_path)
