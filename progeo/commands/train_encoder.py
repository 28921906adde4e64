"""Stage 2: train the image encoder on places and on the texts that stage 1 learned for them."""

from pathlib import Path
from typing import TYPE_CHECKING

from progeo.config.settings import plain_values
from progeo.config.training import EncoderSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from progeo.datasets.query_sets import QuerySet
    from progeo.training.places import TrainingPlaces
    from progeo.training.trainer import ImageTraining

_NEEDS_LESS_MEMORY = (
    "A run resumed with --resume may have a lower data.eval_batch_size, training.cache_images false or, for a ViT, "
    "training.gradient_checkpointing true; before its first checkpoint also more training.micro_batches, "
    "mixed_precision bf16, or a lower encoder.image_size or training.batch_size."
)
# With a cosine schedule the number of epochs may not change: it would be another cosine.
_MAY_CHANGE = (
    "validation.folder",  # these two if their content is the same, see `LearnedFrom`
    "text.prompts",
    "test.folder",
    "test.queries",
    "test.descriptor_cache",
    "trackers",
    "data.eval_batch_size",
    "training.cache_images",
    "training.gradient_checkpointing",
    "training.patience",
    "training.keep_every",
    "training.skip_not_finite",
    "training.checkpoint_every",
    "training.keep_checkpoints",
)


def train_encoder(settings: EncoderSettings) -> Path:
    """Run stage 2 and return its folder, with the encoder of the best validation in `best/`, or the last in `last/`.

    A final test follows if the settings name one. A run interrupted at any step resumes from its newest checkpoint and
    gives the same result as if it had not been interrupted.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written, and the message says how to resume.
        MemoryError: out of memory; the message says which settings to lower.
    """
    import gc

    from progeo.commands.final_test import check_final_test, run_final_test
    from progeo.commands.stages import open_stage
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.log import LOGGER
    from progeo.engine.memory import explaining_out_of_memory
    from progeo.training.epochs import train_epochs
    from progeo.training.overview import overview
    from progeo.training.places import LearnedFrom, read_training_places
    from progeo.training.validation import Validation

    accelerator = start_accelerator(
        settings.mixed_precision, trackers=settings.trackers, folder=settings.out / "stage2"
    )
    places = read_training_places(settings.data.train_folder, settings.cells)
    query_set = _validation_set(settings)
    check_final_test(settings)
    with explaining_out_of_memory(_NEEDS_LESS_MEMORY):
        training = build_training(settings, places, accelerator)
        run = open_stage(
            settings,
            "stage2",
            LearnedFrom(places, query_set, training.losses.text_features),
            may_change=(*_MAY_CHANGE, *(("training.epochs",) if settings.training.schedule != "cosine" else ())),
            is_main=accelerator.is_main_process,
        )
        for line in overview(training, places, query_set, model=settings.model):
            LOGGER.info(line)
        validation = Validation(query_set, settings.validation.preprocessing, settings.data)
        train_epochs(training, validation, run, settings=plain_values(settings))
        # Before the end: if its networks were the last to hold the process group, freeing it could wait forever.
        del training
        accelerator.free_memory()
        gc.collect()
        run_final_test(settings, run, accelerator)
    accelerator.end_training()
    return run.path


def check_encoder_settings(settings: EncoderSettings) -> None:
    """Check what stage 2 needs besides prompts, before the hours of stage 1.

    Raises:
        ValueError: losses or batches cannot be computed, or validation or test images cannot be used.
        FileNotFoundError: a folder does not exist.
    """
    import os

    from progeo.commands.final_test import check_final_test
    from progeo.training.batches import check_batches
    from progeo.training.loss_terms import check_losses

    check_losses(settings.head, settings.text, settings.triplet, settings.training)
    check_batches(settings.training, int(os.environ.get("WORLD_SIZE", "1")))
    _validation_set(settings)
    check_final_test(settings)


def _validation_set(settings: EncoderSettings) -> "QuerySet":
    from progeo.datasets.query_sets import load_query_set

    return load_query_set(
        settings.validation.folder,
        settings.validation.database,
        settings.validation.queries,
        radius_m=settings.validation.positive_radius_m,
        angle_deg=settings.validation.positive_angle_deg,
    )


def build_training(settings: EncoderSettings, places: "TrainingPlaces", accelerator: "Accelerator") -> "ImageTraining":
    """Build the training of an encoder: the encoder, its losses and its batches."""
    from progeo.training.batches import ImageBatches, check_batches
    from progeo.training.loss_terms import ImageLosses, check_losses
    from progeo.training.prompt_files import load_text_features
    from progeo.training.starting_encoder import build_starting_encoder, keep_text_weights
    from progeo.training.trainer import ImageTraining

    prompts = settings.text.prompts or settings.out / "stage1"
    check_losses(settings.head, settings.text, settings.triplet, settings.training)
    check_batches(settings.training, accelerator.num_processes)
    text_features = load_text_features(prompts, places.partition) if settings.text.weight else None
    encoder = build_starting_encoder(settings.model, settings.encoder, seed=settings.seed).to(accelerator.device)
    keep_text_weights(encoder, prompts if settings.text.weight else None)
    losses = ImageLosses(
        settings.head,
        settings.text,
        settings.triplet,
        classes_per_group=[group.num_classes for group in places.partition.groups],
        descriptor_dim=encoder.descriptor_dim,
        text_features=text_features,
        seed=settings.seed,
        accelerator=accelerator,
    )
    batches = ImageBatches(
        places.catalogue,
        data=settings.data,
        augmentation=settings.augmentation,
        training=settings.training,
        image_size=encoder.image_size,
        seed=settings.seed,
        accelerator=accelerator,
    )
    return ImageTraining(
        settings.training,
        encoder,
        losses=losses,
        batches=batches,
        groups=places.partition.groups,
        seed=settings.seed,
        accelerator=accelerator,
    )
