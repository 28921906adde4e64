"""Stage 1: learn a text prompt for every place, with both CLIP encoders frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.config.training import PromptSettings

if TYPE_CHECKING:
    import numpy as np

    from progeo.engine.dry_run import DryRun
    from progeo.features.cache import Cache
    from progeo.features.extract import ExtractedFeatures
    from progeo.models.pixel_statistics import PixelStatistics
    from progeo.models.text_towers.tower import TextTower
    from progeo.places.catalogue import Catalogue
    from progeo.training.places import TrainingPlaces
    from progeo.training.prompt_learning import PromptTraining


@dataclass(frozen=True)
class _Stage1:
    """Stage 1 with its folder opened."""

    settings: PromptSettings
    training: "PromptTraining"
    places: "TrainingPlaces"
    pixels: "PixelStatistics"

    @property
    def overview(self) -> list[str]:
        """What is trained, in lines of a name and a text."""
        from progeo.training.precision import precision_in_words

        classes = [group.num_classes for group in self.places.partition.groups]
        return [
            f"images      {len(self.places.catalogue):,}, classes of the groups: {classes}",
            f"pixels      {self.pixels}",
            f"precision   {precision_in_words(self.training.accelerator)}",
        ]


def train_prompts(settings: PromptSettings, *, dry_run: bool = False) -> "Path | DryRun":
    """Run stage 1 and return its folder, which holds `prompts.safetensors` and `prompts.json`.

    Groups are independent: each process trains its own. An interrupted run resumes from the newest checkpoint of each
    group and gives the same result as if it had not been interrupted.

    Args:
        dry_run: Check all settings, images and folders, take ten steps, and show the time and the space on the disk
            that the training would take. Nothing is written.

    Raises:
        ProblemsError: a dry run finds that files do not fit on the disk.
    """
    from progeo.engine.dry_run import checked
    from progeo.engine.log import LOGGER

    if dry_run:
        return checked([dry_run_of_prompts(settings)[0]])[0]
    with _opened(settings) as stage1:
        training = stage1.training
        for line in stage1.overview:
            LOGGER.info(line)
        training.drop_metrics_of_unfinished_steps()
        rows, features = _image_features(stage1)
        training.train_groups(features, rows)
        if training.accelerator.is_main_process:
            training.gather()
    return training.run.path


def dry_run_of_prompts(settings: PromptSettings) -> "tuple[DryRun, int]":
    """Check stage 1, and estimate its time and space from some images and steps, without writing anything.

    Returns:
        The dry run, and the dimension of the text features that stage 1 would learn.

    Raises:
        ValueError, FileNotFoundError, MemoryError: stage 1 would not begin.
    """
    from progeo.engine.dry_run import DryRun, free_space
    from progeo.features.clip_features import FEATURE_BYTES, clip_extractor
    from progeo.features.timing import extraction_phase

    with _opened(settings, dry_run=True) as stage1:
        training, data = stage1.training, settings.data
        rows, catalogue = _extracted_images(stage1)
        built = clip_extractor(training.tower.clip, catalogue, training.accelerator, **_how(stage1))
        with built as (extractor, batch_size):
            extraction = extraction_phase(
                extractor,
                catalogue,
                training.accelerator,
                cache=_cache(settings),
                batch_size=batch_size,
                num_workers=data.num_workers,
            )
        steps, num_bytes = training.dry_run(extractor.width, rows)
    cached = extraction.count * extractor.width * FEATURE_BYTES
    spaces = [
        free_space("image features", settings.prompts.feature_cache, cached),
        free_space("prompts and checkpoints", training.run.path, num_bytes),
    ]
    return DryRun("train prompts", stage1.overview, [extraction, steps], spaces), extractor.width


@contextmanager
def _opened(settings: PromptSettings, *, dry_run: bool = False) -> Iterator[_Stage1]:
    """Check stage 1 and open its folder, or with `dry_run` only check it."""
    from progeo.commands.stages import open_stage, resized_as_begun
    from progeo.engine.accelerator import start_accelerator
    from progeo.models.backbones.clip_configurations import configuration_of, former_feature_settings
    from progeo.training.class_words import check_prompts, log_class_words, read_class_words, words_digest
    from progeo.training.places import LearnedFrom, check_batch_norm, check_classes, read_training_places
    from progeo.training.prompt_learning import PromptTraining
    from progeo.training.starting_encoder import starting_statistics

    settings = resized_as_begun(settings, "stage1")
    model, prompts = settings.model, settings.prompts
    _check_is_clip(model.architecture)
    accelerator = start_accelerator(settings.mixed_precision)
    places = read_training_places(settings.data.train_folder, settings.cells)
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
        dry_run=dry_run,
        check=lambda run, changed: check_batch_norm(run, prompts.batch_norm, clip.visual, changed),
    )
    with stage as run:
        log_class_words(prompts, words)
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
        yield _Stage1(settings, training, places, pixels)


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


def _image_features(stage1: _Stage1) -> "tuple[np.ndarray, ExtractedFeatures]":
    """Extract the features of all images of the groups; returns their catalogue rows, and the features."""
    from progeo.features.clip_features import cached_features

    settings, training = stage1.settings, stage1.training
    rows, catalogue = _extracted_images(stage1)
    features = cached_features(
        training.tower.clip,
        catalogue,
        _cache(settings),
        training.accelerator,
        max_unreadable_fraction=settings.data.max_unreadable_fraction,
        **_how(stage1),
    )
    return rows, features


def _extracted_images(stage1: _Stage1) -> "tuple[np.ndarray, Catalogue]":
    """Return the images of the groups, in the order in which their features are extracted, and their catalogue rows."""
    import numpy as np

    from progeo.features.clip_features import extraction_order

    settings, clip = stage1.settings, stage1.training.tower.clip
    rows = np.unique(np.concatenate([group.rows for group in stage1.places.partition.groups]))
    rows = extraction_order(rows, clip, batch_norm=settings.prompts.batch_norm, seed=settings.seed)
    return rows, stage1.places.catalogue.take(rows)


def _cache(settings: PromptSettings) -> "Cache":
    from progeo.features.cache import Cache

    return Cache(settings.prompts.feature_cache, "float16", "feature_cache")


def _how(stage1: _Stage1) -> dict[str, Any]:
    """Return the arguments of `clip_extractor` that say how features are extracted."""
    from progeo.models.backbones.clip_configurations import configuration_of, resolved_architecture

    settings, clip = stage1.settings, stage1.training.tower.clip
    return {
        "architecture": resolved_architecture(settings.model.architecture, configuration_of(clip)),
        "pixels": stage1.pixels,
        "batch_size": settings.data.eval_batch_size,
        "num_workers": settings.data.num_workers,
        "orientation": settings.data.orientation,
        "fast_decode": settings.data.fast_decode,
        "batch_norm": settings.prompts.batch_norm,
        "seed": settings.seed,
    }
