"""Stage 1: learn a text prompt for every place, with both CLIP encoders frozen."""

from pathlib import Path
from typing import TYPE_CHECKING

from progeo.config.training import PromptSettings

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from open_clip import CLIP

    from progeo.features.extract import ExtractedFeatures
    from progeo.models.pixel_statistics import PixelStatistics
    from progeo.models.text_towers.tower import TextTower
    from progeo.training.places import TrainingPlaces


def train_prompts(settings: PromptSettings) -> Path:
    """Run stage 1 and return its folder, which holds `prompts.safetensors` and `prompts.json`.

    Groups are independent: each process trains its own. An interrupted run resumes from the newest checkpoint of each
    group and gives the same result as if it had not been interrupted.
    """
    from progeo.commands.stages import open_stage, resized_as_begun
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.log import LOGGER
    from progeo.models.backbones.clip_configurations import configuration_of, former_feature_settings
    from progeo.training.class_words import check_prompts, log_class_words, read_class_words, words_digest
    from progeo.training.places import LearnedFrom, check_batch_norm, check_classes, read_training_places
    from progeo.training.precision import precision_in_words
    from progeo.training.prompt_learning import PromptTraining
    from progeo.training.starting_encoder import starting_statistics

    settings = resized_as_begun(settings, "stage1")
    data, model, prompts = settings.data, settings.model, settings.prompts
    _check_is_clip(model.architecture)
    accelerator = start_accelerator(settings.mixed_precision)
    places = read_training_places(data.train_folder, settings.cells)
    check_classes(places.partition)
    words = read_class_words(prompts, places)
    tower = _load_tower(settings)
    check_prompts(tower, prompts, places.partition, words)
    clip = tower.clip.requires_grad_(False).to(accelerator.device)
    pixels = starting_statistics(model)
    stage = open_stage(
        settings,
        "stage1",
        LearnedFrom(
            places,
            configuration=configuration_of(clip).feature_settings(),
            former_configuration=former_feature_settings(model.architecture, configuration_of(clip)),
            class_words=words_digest(words),
        ),
        defaults={"prompts.batch_norm": "eval"},  # before it was a setting
        may_change=(
            *("prompts.feature_cache", "prompts.log_every", "prompts.batch_norm", "prompts.checkpoint_minutes"),
            "prompts.class_names",  # if the words are the same
        ),
        is_main=accelerator.is_main_process,
        check=lambda run, changed: check_batch_norm(run, prompts.batch_norm, clip.visual, changed),
    )
    groups = places.partition.groups
    with stage as run:
        LOGGER.info(
            "%d images, classes of the groups: %s", len(places.catalogue), [each.num_classes for each in groups]
        )
        log_class_words(prompts, words)
        LOGGER.info("pixels: %s", pixels)
        LOGGER.info("precision: %s", precision_in_words(accelerator))
        training = PromptTraining(
            prompts,
            places.partition,
            words=words,
            model=model,
            tower=tower,
            seed=settings.seed,
            run=run,
            accelerator=accelerator,
        )
        training.drop_metrics_of_unfinished_steps()
        rows, features = _image_features(settings, clip, places, accelerator, pixels=pixels)
        training.train_groups(features, rows)
        if accelerator.is_main_process:
            training.gather()
    return run.path


def _check_is_clip(architecture: str) -> None:
    from progeo.models.backbones import find_family

    if find_family(architecture)[0] != "open_clip":
        raise ValueError(
            f"Stage 1 needs a CLIP, and `model.architecture` {architecture!r} is none: give one such as RN50, whose "
            f"prompts `progeo train encoder` trains any network with, or train that alone with --text.weight 0."
        )


def _load_tower(settings: PromptSettings) -> "TextTower":
    """Load the CLIP of the settings with its text tower."""
    from progeo.models.prompts import load_prompt_tower

    model = settings.model
    return load_prompt_tower(
        model.architecture,
        model.weights,
        settings.prompts.image_size,
        interpolation="corners" if model.align_corners else "edges",
        seed=settings.seed,
    )


def _image_features(
    settings: PromptSettings,
    clip: "CLIP",
    places: "TrainingPlaces",
    accelerator: "Accelerator",
    *,
    pixels: "PixelStatistics",
) -> "tuple[np.ndarray, ExtractedFeatures]":
    """Extract the features of all images of the groups; returns their catalogue rows, and the features."""
    import numpy as np

    from progeo.features.cache import Cache
    from progeo.features.clip_features import cached_features, extraction_order
    from progeo.models.backbones.clip_configurations import configuration_of, resolved_architecture

    data, batch_norm, seed = settings.data, settings.prompts.batch_norm, settings.seed
    rows = np.unique(np.concatenate([group.rows for group in places.partition.groups]))
    rows = extraction_order(rows, clip, batch_norm=batch_norm, seed=seed)
    features = cached_features(
        clip,
        places.catalogue.take(rows),
        Cache(settings.prompts.feature_cache, "float16", "feature_cache"),
        accelerator,
        architecture=resolved_architecture(settings.model.architecture, configuration_of(clip)),
        pixels=pixels,
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        max_unreadable_fraction=data.max_unreadable_fraction,
        orientation=data.orientation,
        fast_decode=data.fast_decode,
        batch_norm=batch_norm,
        seed=seed,
    )
    return rows, features
