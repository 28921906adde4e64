import re
from dataclasses import replace
from pathlib import Path

import pytest
from running import parsed
from torch import nn

from progeo.commands.train_encoder import check_method
from progeo.config.settings import plain_values
from progeo.export.weights import save_encoder
from progeo.models.aggregation import aggregation_dim
from progeo.models.aggregation.netvlad import region_grid
from progeo.models.backbones import FAMILIES, empty_backbone, empty_traits, freeze_layers
from progeo.models.backbones.clip_configurations import named_configuration
from progeo.models.encoder import build_encoder, plan_encoder
from progeo.models.text_space import TextSpace
from progeo.training.starting_encoder import check_starting_encoder

FOLDER = Path(__file__).parents[1] / "progeo/configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
PUBLISHED = {
    "progeo_rn50": ("RN50", 1024, ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2")),
    "progeo_rn101": ("RN101", 512, ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2")),
    "progeo_vit_b16": ("ViT-B-16", 512, ("conv1", "ln_pre", *(f"transformer.resblocks.{i}" for i in range(6)))),
    "progeo_vit_b32": ("ViT-B-32", 512, ("conv1", "ln_pre", *(f"transformer.resblocks.{i}" for i in range(6)))),
}
COSPLACE = {
    "cosplace_resnet18": ("resnet18", {"layer3", "layer4"}),
    "cosplace_resnet50": ("resnet50", {"layer3", "layer4"}),
    "cosplace_vgg16": ("vgg16", {"features.24", "features.26", "features.28"}),
}
TUPLES = {
    "netvlad_vgg16_pitts30k": ("vgg16", (), 16),
    "sfrs_vgg16_pitts30k": ("vgg16", (1, 5, 5, 5), 16),
    "wakd_mobilenet_v3_large_pitts30k": ("mobilenet_v3_large_512", (5, 5, 5, 5), 32),
}
GSV_CITIES = {
    # dimensions, P of P x K, size of crops and of images, rate and that of the backbone, epochs, what is trained
    "dinov2_salad_gsv": (8448, 60, (224, 322), (6e-5, 6e-5), 4, {"norm", *(f"blocks.{i}" for i in range(8, 12))}),
    "dinov2_boq_gsv": (12288, 160, (280, 322), (2e-4, 4e-5), 40, {"blocks.10", "blocks.11"}),
    "resnet50_boq_gsv": (16384, 128, (320, 384), (1e-4, 1e-4), 40, {"layer2", "layer3"}),
    "resnet50_mixvpr_gsv": (4096, 120, (320, 320), (5e-2, 5e-2), 25, {"layer3"}),
    "unified": (
        *(6144, 120, (224, 322), (5e-5, 5e-5), 20),
        {"aggregation_tokens", "norm", *(f"blocks.{i}" for i in range(8, 12))},
    ),
}
DIVIDE_CLASSIFY = {
    f"divide_classify_efficientnet_{size}": dim for size, dim in (("b0", 1280), ("b5", 2048), ("b7", 2560))
}


class Stages:
    """Settings of both stages, each section where it is."""

    def __init__(self, config, *words):
        arguments = parsed("train", "--config", config, *words)
        self.stage1, self.stage2 = arguments["stage1"], arguments["stage2"]

    def __getattr__(self, name):
        return getattr(self.stage2 if hasattr(self.stage2, name) else self.stage1, name)


def settings_of(name, *words):
    return Stages(name, *words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_read_names_its_run_and_says_how_to_use_it(path):
    settings = settings_of(path)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for command in ("train prompts", "train encoder", "evaluate"):
        assert any(command in line for line in comment) == (
            command != "train prompts" or settings.losses["text"].weight > 0
        )
    assert str(settings.out).startswith("runs/")
    name = path.relative_to(FOLDER).with_suffix("").as_posix()
    assert any(f"--config {name}" in line for line in comment)
    assert settings_of(name).stage2 == settings.stage2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_gives_its_losses_what_they_need(path, tmp_path):
    settings = settings_of(path).stage2
    if settings.teacher.encoder is not None:  # which is not there yet
        encoder = build_encoder("tiny-resnet", "random", 64)
        save_encoder(tmp_path, encoder, provenance={}, recalls={})
        settings = replace(settings, teacher=replace(settings.teacher, encoder=tmp_path))
    check_method(settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings_are_those_of_the_paper(name):
    settings = settings_of(name)
    architecture, descriptor_dim, frozen = PUBLISHED[name]
    model, encoder, prompts = settings.model, settings.encoder, settings.prompts
    assert (model.architecture, model.weights, encoder.descriptor_dim) == (architecture, "openai", descriptor_dim)
    assert encoder.frozen == frozen
    assert (encoder.normalized, model.align_corners, model.resize) == (False, True, "bilinear")
    assert (prompts.epochs * settings.cells.num_groups, prompts.batch_size, prompts.learning_rate) == (480, 512, 1e-2)
    assert (prompts.temperature, prompts.normalized) == (1.0, False)
    assert (settings.losses["text"].weight, settings.losses["text"].label_smoothing) == (1.0, 0.1)
    assert settings.training.epochs == 64


@pytest.mark.parametrize("name", COSPLACE)
def test_the_settings_of_cosplace_are_those_of_its_paper(name):
    settings = settings_of(name)
    model = settings.model
    assert (model.architecture, model.weights) == (COSPLACE[name][0], "IMAGENET1K_V1")
    assert settings.encoder.descriptor_dim == 512
    assert settings.losses["text"].weight == 0
    assert settings.training.epochs == 50
    assert settings.validation.preprocessing == "native"


@pytest.mark.parametrize("name", [*PUBLISHED, *COSPLACE])
def test_both_papers_share_cells_classifier_augmentation_and_steps(name):
    settings = settings_of(name)
    cells, jitter, training = settings.cells, settings.augmentation, settings.training
    assert settings.validation.positive_radius_m == 25
    assert (settings.encoder.image_size, settings.model.normalization) == (512, "imagenet")
    assert (cells.cell_side_m, cells.heading_bin_deg, cells.groups_per_side, cells.groups_per_heading) == (10, 30, 5, 2)
    assert (cells.num_groups, cells.min_images_per_class) == (8, 10)
    assert (settings.losses["head"].kind, settings.losses["head"].scale, settings.losses["head"].margin) == (
        "cosface",
        30,
        0.4,
    )
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.7, 0.7, 0.7, 0.5)
    assert jitter.crop_scale == (0.5, 1.0)
    assert (training.iterations_per_epoch, training.batch_size) == (10_000, 32)
    assert (training.encoder_learning_rate, training.head_learning_rate) == (1e-5, 1e-2)


@pytest.mark.parametrize("name", COSPLACE)
def test_cosplace_trains_exactly_the_published_layers(name):
    settings = settings_of(name)
    architecture, trained = COSPLACE[name]
    backbone = empty_backbone(architecture)
    freeze_layers(backbone, settings.encoder.frozen)
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad == any(key.startswith(f"{layer}.") for layer in trained), key


@pytest.mark.parametrize("name", DIVIDE_CLASSIFY)
def test_the_settings_of_divide_and_classify_are_the_published_ones(name):
    settings = settings_of(name)
    head, augmentation, training = settings.losses["head"], settings.augmentation, settings.training
    assert vars(settings.cells) == {
        **{"cell_side_m": 20, "heading_bin_deg": 360, "groups_per_side": 2, "groups_per_heading": 1},
        **{"min_images_per_class": 10, "num_groups": None},
    }
    assert (head.kind, head.easy_margin, head.scale, head.margin, head.smoothing_m) == ("arcface", True, 100, 0.2, None)
    assert (settings.losses["text"].weight, settings.mixed_precision) == (0, "fp16")
    assert (augmentation.crop_scale, augmentation.crop_ratio) == ((0.66, 1.0), (3 / 4, 4 / 3))
    assert not any(getattr(augmentation, each) for each in ("brightness", "contrast", "saturation", "hue"))
    assert (training.epochs, training.iterations_per_epoch, training.batch_size) == (500, 2000, 64)
    assert (training.encoder_learning_rate, training.head_learning_rate) == (1e-4, 1e-2)
    assert (training.schedule, training.decay_epochs, training.decay_factor) == ("loss_plateau", 10, 0.1)
    assert (training.head_schedule, training.min_learning_rate, training.images_per_class) == ("constant", 1e-6, 1)
    assert (settings.validation.kind, settings.validation.preprocessing) == ("classification", "single_query")

    encoder = settings.encoder
    architecture = settings.model.architecture
    backbone = empty_backbone(architecture)
    freeze_layers(backbone, encoder.frozen)
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (int(key.split(".")[1]) >= 5), key
    assert (settings.model.weights, encoder.image_size, encoder.aggregation) == ("IMAGENET1K_V1", 224, "mean_linear")
    assert encoder.descriptor_dim is None
    traits = empty_traits(architecture)
    dim = aggregation_dim("mean_linear", traits, None, {}, architecture)
    assert dim == traits.channels == DIVIDE_CLASSIFY[name]


@pytest.mark.parametrize("name", TUPLES)
def test_the_settings_of_mined_tuples_are_the_published_ones(name):
    settings = settings_of(name)
    losses, training, jitter = settings.losses, settings.training, settings.augmentation
    mining, options = settings.batches["mining"], settings.encoder.aggregation_options
    architecture, generations, stride = TUPLES[name]
    assert (settings.model.architecture, settings.model.normalization) == (architecture, "imagenet")
    assert (settings.encoder.aggregation, options["num_clusters"]) == ("netvlad", 64)
    assert (mining.positive_radius_m, mining.exclusion_radius_m, mining.queries) == (10, 25, 1000)
    assert (mining.pool, mining.negatives, mining.positive_pool, mining.difficult_positives) == (1000, 10, 20, 10)
    assert (mining.rerank_k1, mining.rerank_k2, mining.rerank_weight) == (20, 1, 0.1)
    assert (losses["tuples"].kind, losses["tuples"].temperature, losses["tuples"].weight) == ("sare", 0.07, 1)
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.7, 0.7, 0.7, 0.5)
    assert jitter.crop_scale == (1, 1)
    assert (training.batches, training.batch_size, training.generations) == ("tuples", 4, generations)
    assert (training.optimizer, training.momentum, training.encoder_learning_rate) == ("sgd", 0.9, 1e-3)
    assert (training.weight_decay, training.decay_norms) == (1e-3, True)
    assert (training.schedule, training.decay_epochs, training.decay_factor) == ("step", 5, 0.5)
    assert losses["tuples"].hardest_regions == bool(generations)
    assert losses["regions"].weight == 0.5 * bool(generations)
    if generations:
        assert losses["regions"].target_temperatures == (0.07, 0.07, 0.06, 0.05)
        height, width = (side // stride for side in settings.encoder.image_size)
        region_grid(options["regions"], height, width)
    is_distilled = name.startswith("wakd")
    assert (losses["gram"].weight, losses["attention"].weight) == (100 * is_distilled, 100 * is_distilled)


@pytest.mark.parametrize("name", GSV_CITIES)
def test_the_settings_of_trainings_on_gsv_cities_are_the_published_ones(name):
    settings = settings_of(name)
    dim, places, (crop, side), (rate, of_backbone), epochs, trained = GSV_CITIES[name]
    losses, training, augmentation = settings.losses, settings.training, settings.augmentation
    assert [loss for loss, options in losses.items() if options.weight] == ["multi_similarity"]
    loss = losses["multi_similarity"]
    assert (loss.alpha, loss.beta, loss.base, loss.epsilon) == (1, 50, 0, 0.1)
    assert (training.batches, training.batch_size, training.images_per_class) == ("places", 4 * places, 4)
    assert (training.epochs, settings.cells.min_images_per_class) == (epochs, 4)
    assert training.encoder_learning_rate == rate
    assert training.backbone_factor * rate == pytest.approx(of_backbone)
    assert training.image_size in (crop, None if crop == side else crop)
    assert (augmentation.rand_augment, augmentation.crop_scale, augmentation.hue) == (3, (1, 1), 0)
    assert augmentation.rand_augment_magnitude == (15 if "boq" in name else 9)
    model, encoder = settings.model, settings.encoder
    plan = plan_encoder(
        *(model.architecture, model.weights, encoder.image_size),
        aggregation=encoder.aggregation,
        aggregation_options=encoder.aggregation_options,
    )
    assert (plan.network.image_size, plan.descriptor_dim) == (side, dim)
    backbone = FAMILIES[plan.family].empty(plan.network)
    freeze_layers(backbone, encoder.frozen)
    names = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert {re.match(r"blocks\.\d+|\w+", name)[0] for name in names} == trained


def test_prompts_of_a_clip_train_an_encoder_that_is_none():
    settings, clip = settings_of("dinov2_progeo_sf_xl"), settings_of("progeo_vit_b16")
    assert settings.cells == clip.cells
    text = settings.losses["text"]
    assert (text.weight, text.normalized, text.temperature) == (1, True, 0.07)
    text_dim = named_configuration(clip.model.architecture).values["embed_dim"]
    assert isinstance(TextSpace(settings.encoder.descriptor_dim, text_dim).linear, nn.Linear)
    check_starting_encoder(settings.model, settings.encoder)


def test_sfrs_and_its_netvlad_train_the_last_block_of_vgg16_only():
    for name in ("netvlad_vgg16_pitts30k", "sfrs_vgg16_pitts30k"):
        assert settings_of(name).encoder.frozen == settings_of("cosplace_vgg16").encoder.frozen


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_frozen_layers_of_the_published_settings_exist(name):
    settings = settings_of(name)
    freeze_layers(empty_backbone(settings.model.architecture), settings.encoder.frozen)


def test_settings_written_as_plain_values_are_read_back_equal(tmp_path):
    import yaml

    numbers = ["--prompts.epochs", "3", "--prompts.learning_rate", "0.5", "--data.num_workers", "0"]
    stages = parsed("train", "--config", CONFIGS[0], *numbers)
    values = plain_values(stages["stage1"]) | plain_values(stages["stage2"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert parsed("train", "--config", tmp_path / "config.yaml") == stages


def test_the_command_line_wins_over_the_file():
    settings = settings_of(CONFIGS[0], "--text.weight", "0", "--encoder.image_size", "[96, 128]")
    assert settings.losses["text"].weight == 0
    assert settings.encoder.image_size == (96, 128)
