"""Stage 1: learn a text prompt for every place, with both CLIP encoders frozen."""

from pathlib import Path

import numpy as np

from progeo.config.training import Settings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER
from progeo.features.clip_features import cached_features, extraction_order
from progeo.models.backbones.open_clip import resolved_architecture
from progeo.models.backbones.torchvision import CONVNETS
from progeo.models.prompts import load_prompt_clip
from progeo.training.places import LearnedFrom, open_training_run, read_training_places
from progeo.training.prompt_learning import PromptTraining
from progeo.training.starting_encoder import starting_statistics


def train_prompts(settings: Settings) -> Path:
    """Run stage 1 and return its folder, which holds `prompts.safetensors` and `prompts.json`.

    Groups are independent: each process trains its own. An interrupted run resumes after the last finished epoch of
    each group.
    """
    if settings.model.architecture in CONVNETS:
        raise ValueError(
            f"Stage 1 needs a CLIP, and model.architecture {settings.model.architecture!r} is none: give one such as "
            f"RN50, or leave stage 1 out and train stage 2 with --text.weight 0."
        )
    accelerator = start_accelerator(settings.mixed_precision)
    places = read_training_places(settings)
    catalogue, partition = places.catalogue, places.partition
    clip = load_prompt_clip(
        settings.model.architecture,
        settings.model.weights,
        settings.prompts.image_size,
        align_corners=settings.model.align_corners,
        seed=settings.seed,
    )
    clip.requires_grad_(False).to(accelerator.device)
    pixels = starting_statistics(settings.model)
    source = LearnedFrom(places)
    run = open_training_run(
        settings, settings.run / "stage1", source, image_tower=clip.visual, is_main=accelerator.is_main_process
    )
    if accelerator.is_main_process:
        source.keep(run)
    LOGGER.info("%d images, classes of the groups: %s", len(catalogue), [g.num_classes for g in partition.groups])
    LOGGER.info("pixels: %s", pixels)
    training = PromptTraining(settings, partition, clip=clip, run=run, accelerator=accelerator)
    training.drop_metrics_of_unfinished_epochs()
    rows = np.unique(np.concatenate([group.rows for group in partition.groups]))
    batch_norm = {"batch_norm": settings.prompts.batch_norm, "seed": settings.seed}
    rows = extraction_order(rows, clip, **batch_norm)
    features = cached_features(
        clip,
        catalogue.take(rows),
        settings.prompts.feature_cache,
        accelerator,
        architecture=resolved_architecture(settings.model.architecture, clip),
        pixels=pixels,
        batch_size=settings.data.eval_batch_size,
        num_workers=settings.data.num_workers,
        max_unreadable_fraction=settings.data.max_unreadable_fraction,
        orientation=settings.data.orientation,
        **batch_norm,
    )
    training.train_groups(features, rows)
    if accelerator.is_main_process:
        training.gather()
    return run.path
