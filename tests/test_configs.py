from pathlib import Path

import pytest

from progeo.config import Settings, parse_settings, plain_values

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/**/*.yaml"))
PUBLISHED = {
    "progeo_rn50": ("RN50", 1024, ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2")),
    "progeo_rn101": ("RN101", 512, ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2")),
    "progeo_vit_b16": ("ViT-B-16", 512, ("conv1", "ln_pre", *(f"transformer.resblocks.{i}" for i in range(6)))),
    "progeo_vit_b32": ("ViT-B-32", 512, ("conv1", "ln_pre", *(f"transformer.resblocks.{i}" for i in range(6)))),
}


def settings_of(path):
    return parse_settings(Settings, ["--config", str(path)], program="test")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_read_names_its_run_and_says_how_to_use_it(path):
    settings = settings_of(path)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for script in ("stage1_prompts.py", "stage2_image.py", "evaluate.py"):
        assert any(script in line for line in comment)
    assert str(settings.run).startswith("runs/")
    relative = path.relative_to(Path(__file__).parents[1]).as_posix()
    assert any(f"--config {relative}" in line for line in comment)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings_are_those_of_the_paper(name):
    settings = settings_of(Path(__file__).parents[1] / f"configs/{name}.yaml")
    architecture, descriptor_dim, frozen = PUBLISHED[name]
    model, cells, prompts, training = settings.model, settings.cells, settings.prompts, settings.training
    assert (model.architecture, model.weights, model.descriptor_dim) == (architecture, "openai", descriptor_dim)
    assert (model.image_size, model.frozen) == (512, frozen)
    assert (model.normalised, model.normalisation, model.align_corners) == (False, "imagenet", True)
    assert (cells.cell_side_m, cells.heading_bin_deg, cells.groups_per_side, cells.groups_per_heading) == (10, 30, 5, 2)
    assert (cells.num_groups, cells.min_images_per_class) == (8, 10)
    assert (prompts.epochs * cells.num_groups, prompts.batch_size, prompts.learning_rate) == (480, 512, 1e-2)
    assert (prompts.temperature, prompts.normalised) == (1.0, False)
    assert (settings.head.kind, settings.head.scale, settings.head.margin) == ("cosface", 30, 0.4)
    assert (settings.text.weight, settings.text.label_smoothing) == (1.0, 0.1)
    jitter = settings.augmentation
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.7, 0.7, 0.7, 0.5)
    assert jitter.crop_scale == (0.5, 1.0)
    assert (training.epochs, training.iterations_per_epoch, training.batch_size) == (64, 10_000, 32)
    assert (training.encoder_learning_rate, training.head_learning_rate) == (1e-5, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_frozen_layers_of_the_published_settings_exist(name):
    from progeo.models.backbones import clip_backbone, freeze_layers
    from progeo.models.clip import skeleton_clip

    settings = settings_of(Path(__file__).parents[1] / f"configs/{name}.yaml")
    freeze_layers(clip_backbone(skeleton_clip(settings.model.architecture)), settings.model.frozen)


def test_settings_written_as_plain_values_are_read_back_equal(tmp_path):
    import yaml

    numbers = ["--prompts.epochs", "3", "--prompts.learning_rate", "0.5", "--data.num_workers", "0"]
    settings = parse_settings(Settings, ["--config", str(CONFIGS[0]), *numbers], program="test")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain_values(settings)))
    assert settings_of(tmp_path / "config.yaml") == settings


def test_the_command_line_wins_over_the_file():
    settings = parse_settings(
        Settings, ["--config", str(CONFIGS[0]), "--text.weight", "0", "--model.image_size", "[96, 128]"], program="test"
    )
    assert settings.text.weight == 0
    assert settings.model.image_size == (96, 128)
