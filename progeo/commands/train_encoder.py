"""Stage 2: train the image encoder on places and on the texts that stage 1 learned for them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.config.settings import plain_values
from progeo.config.training import EncoderSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from progeo.engine.dry_run import DryRun
    from progeo.engine.run_folder import RunFolder
    from progeo.training.batches import Batches
    from progeo.training.image_training import ImageTraining
    from progeo.training.places import TrainingImages
    from progeo.training.teacher import Teacher
    from progeo.training.trainer import Trainer

_NEEDS_LESS_MEMORY = (
    "A run resumed with --resume may have a lower data.eval_batch_size, training.cache_images false or, for a ViT, "
    "training.gradient_checkpointing true; before its first checkpoint also more training.micro_batches, "
    "mixed_precision bf16, or a lower encoder.image_size or training.batch_size."
)
_MAY_CHANGE = (
    "validation.folder",  # these two if their content is the same, see `LearnedFrom`
    "text.prompts",
    "test.folder",
    "test.queries",
    "test.descriptor_cache",
    "teacher.encoder",  # if it is the same encoder
    "teacher.descriptor_cache",
    "trackers",
    "data.eval_batch_size",
    "training.cache_images",
    "training.gradient_checkpointing",
    "training.patience",
    "training.min_learning_rate",
    "training.keep_every",
    "training.skip_not_finite",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
)


def train_encoder(settings: EncoderSettings, *, dry_run: bool = False) -> "Path | DryRun":
    """Run stage 2 and return its folder, with the encoder of the best validation in `best/`, or the last in `last/`.

    A final test follows if the settings name one. A run interrupted at any step resumes from its newest checkpoint and
    gives the same result as if it had not been interrupted.

    Args:
        dry_run: Check all settings, images and folders, take ten steps, and show the time, the memory and the space on
            the disk that the training would take. Nothing is written.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written, and the message says how to resume.
        MemoryError: out of memory; the message says which settings to lower.
        ProblemsError: a dry run finds that checkpoints do not fit on the disk.
    """
    import gc

    from progeo.commands.final_test import check_final_test, run_final_test
    from progeo.commands.stages import resized_as_begun
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.dry_run import checked
    from progeo.engine.log import LOGGER
    from progeo.engine.out_of_memory import explaining_out_of_memory
    from progeo.training.overview import overview

    if dry_run:
        return checked([dry_run_of_encoder(settings)])[0]
    check_method(settings)
    settings = resized_as_begun(settings, "stage2")
    accelerator = start_accelerator(
        settings.mixed_precision, trackers=settings.trackers, folder=settings.out / "stage2"
    )
    images = read_training_images(settings)
    check_final_test(settings)
    with explaining_out_of_memory(_NEEDS_LESS_MEMORY):
        training = build_training(settings, images, accelerator)
        with _stage(settings, training) as run:
            for line in overview(training, model=settings.model):
                LOGGER.info(line)
            if training.teacher is not None:
                training.teacher.prepare(images.catalogues, settings.data)
            trainer = _trainer(settings, training, run)
            _train(trainer, training.settings)
            # Before the end: if its networks were the last to hold the process group, freeing it could wait forever.
            del training, trainer
            accelerator.free_memory()
            gc.collect()
            run_final_test(settings, run, accelerator)
    accelerator.end_training()
    return run.path


def dry_run_of_encoder(settings: EncoderSettings, *, unlearned_dim: int | None = None) -> "DryRun":
    """Check a training, and estimate its time, memory and space from some steps, without writing anything.

    Args:
        unlearned_dim: dimension of the text features, if stage 1 is to learn them first.

    Raises:
        ValueError, FileNotFoundError, MemoryError: the training would not begin.
    """
    from progeo.commands.final_test import check_final_test
    from progeo.commands.stages import resized_as_begun
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.dry_run import DryRun
    from progeo.engine.out_of_memory import explaining_out_of_memory
    from progeo.training.dry_run import dry_run_phases, dry_run_space, measured_memory
    from progeo.training.overview import overview

    check_method(settings)
    settings = resized_as_begun(settings, "stage2")
    accelerator = start_accelerator(
        settings.mixed_precision, trackers=settings.trackers, folder=settings.out / "stage2"
    )
    images = read_training_images(settings)
    num_tested = check_final_test(settings)
    with explaining_out_of_memory(_NEEDS_LESS_MEMORY):
        training = build_training(settings, images, accelerator, unlearned_dim=unlearned_dim)
        with _stage(settings, training, dry_run=True) as run:
            found = overview(training, model=settings.model)
            phases = dry_run_phases(training, run, num_tested=num_tested)
            space = dry_run_space(training, _trainer(settings, training, run))
    return DryRun("train encoder", [*found, measured_memory(accelerator.device)], phases, [space])


def _stage(
    settings: EncoderSettings, training: "ImageTraining", *, dry_run: bool = False
) -> "AbstractContextManager[RunFolder]":
    from progeo.commands.stages import open_stage
    from progeo.engine.environment import is_given
    from progeo.training.loss_terms import needs_of

    is_unnamed = "text" in needs_of(settings.losses) and settings.losses["text"].prompts is None
    finds_prompts = is_unnamed and is_given("train", "encoder")  # which does not learn them itself
    return open_stage(
        settings,
        "stage2",
        training.learned_from,
        may_change=(*_MAY_CHANGE, *_epochs_may_change(settings)),
        is_main=training.accelerator.is_main_process,
        dry_run=dry_run,
        inputs=["--text.prompts", str(settings.out / "stage1")] if finds_prompts else [],
    )


def _trainer(settings: EncoderSettings, training: "ImageTraining", run: "RunFolder") -> "Trainer":
    from progeo.training.trainer import Trainer

    return Trainer(
        training,
        settings.training,
        run,
        checkpoints=run.checkpoints,
        seed=settings.seed,
        accelerator=training.accelerator,
    )


def check_method(settings: EncoderSettings) -> None:
    """Check the parts of the method before any image is read: aggregation, batches, and what the loss terms need.

    Raises:
        ValueError: a part is not known, or they do not fit together.
    """
    import os

    from progeo.training.batch_kinds import batch_kind
    from progeo.training.loss_terms import check_needs, enabled_terms
    from progeo.training.validation import check_validation

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    batches = batch_kind(settings.training).load()
    batches.check(settings.training, num_processes)
    check_needs(settings.losses, {**_given(settings), **batches.given(settings.training)})
    _check_comparisons(settings, batches, num_processes)
    learns = any(row.learns_classes for _, row in enabled_terms(settings.losses))
    check_validation(settings.validation, settings.training, learns_classes=learns and batches.labels_are_classes)


def _given(settings: EncoderSettings) -> dict[str, str]:
    """Return what the encoder, the generations and the teacher give loss terms, see `check_needs`.

    Raises:
        ValueError: the aggregation is not known, or cannot start from the given centroids.
        FileNotFoundError: there is no file of centroids, or no teacher.
    """
    from progeo.models.aggregation import filled_options, find_aggregation
    from progeo.training.starting_encoder import starting_aggregation, starts_from_encoder
    from progeo.training.teacher import teacher_given

    aggregation, centroids = starting_aggregation(settings.model, settings.encoder), settings.encoder.centroids
    filled_options(aggregation, settings.encoder.aggregation_options)
    row = find_aggregation(aggregation)
    if centroids is not None and row.initialize_from is None:
        raise ValueError(f"`encoder.centroids` is for the aggregation netvlad, not for {aggregation}: leave it out.")
    if centroids is not None and starts_from_encoder(settings.model):
        raise ValueError(
            f"`encoder.centroids` is for a netvlad that was never trained, and that of {settings.model.weights} was: "
            f"leave it out."
        )
    if centroids is not None and not centroids.is_file():
        raise FileNotFoundError(f"`encoder.centroids`: there is no file {centroids}.")
    no_map = f"`aggregation` {aggregation} leaves it out, use gem or another that takes it"
    return {
        "descriptors": "",
        "map": "" if "map" in row.needs else no_map,
        "regions": "" if row.has_regions else f"`aggregation` {aggregation} has none, use netvlad",
        "target_regions": _generations_advice(settings),
        "text": "",
        **teacher_given(settings.teacher),
    }


def _check_comparisons(settings: EncoderSettings, batches: "type[Batches]", num_processes: int) -> None:
    """Check that loss terms that compare images or generations have several of them.

    Raises:
        ValueError: they have only one.
    """
    losses, training, advice = settings.losses, settings.training, _generations_advice(settings)
    if losses["tuples"].weight and losses["tuples"].hardest_regions and advice:
        raise ValueError(f"`tuples.hardest_regions` is for later generations: {advice}, or leave it out.")
    is_alone = batches.unit == "images" and training.batch_size == training.micro_batches * num_processes
    for name in ("gram", "attention"):
        if is_alone and losses[name].weight:
            raise ValueError(
                f"`{name}.weight` above 0 compares the images of a micro-batch, and each has only one: set a larger "
                f"`training.batch_size` or fewer `micro_batches`."
            )


def _generations_advice(settings: EncoderSettings) -> str:
    """Return what to change for a second generation; empty if there is one."""
    return "" if len(settings.training.generations) > 1 else "set `training.generations`, for example to 5 5 5 5"


def read_training_images(settings: EncoderSettings) -> "TrainingImages":
    """Read the training images, and whatever batches are drawn by.

    Raises:
        FileNotFoundError, ValueError: as `Batches.read`.
    """
    from progeo.training.batch_kinds import batch_kind, options_of

    kind = batch_kind(settings.training)
    return kind.load().read(settings.data, settings.cells, options_of(kind, settings.batches))


def check_encoder_settings(settings: EncoderSettings) -> None:
    """Check what stage 2 needs besides prompts, before the hours of stage 1.

    Raises:
        ValueError: losses or batches cannot be computed, or validation or test images cannot be used.
        FileNotFoundError: a folder does not exist.
    """
    from progeo.commands.final_test import check_final_test
    from progeo.training.validation import build_validation

    check_method(settings)
    build_validation(settings.validation, settings.data)
    check_final_test(settings)


def build_training(
    settings: EncoderSettings,
    images: "TrainingImages",
    accelerator: "Accelerator",
    *,
    unlearned_dim: int | None = None,
) -> "ImageTraining":
    """Build the training of an encoder: the encoder, its losses, batches, teacher and validation.

    Args:
        unlearned_dim: dimension of the text features in whose place ones are taken, for a dry run before stage 1.
    """
    import torch

    from progeo.models.aggregation import AGGREGATIONS
    from progeo.training.aggregation_start import AggregationStart
    from progeo.training.batch_kinds import batch_kind, options_of
    from progeo.training.batches import crop_size
    from progeo.training.image_training import ImageTraining
    from progeo.training.loss_terms import needs_of
    from progeo.training.places import TrainingPlaces, check_classes
    from progeo.training.prompt_files import load_logit_scale, load_text_features
    from progeo.training.starting_encoder import build_starting_encoder, keep_text_weights, starts_from_encoder
    from progeo.training.terms import Terms, TermSource
    from progeo.training.validation import build_validation

    validation = build_validation(settings.validation, settings.data)
    text = settings.losses["text"]
    prompts = text.prompts or settings.out / "stage1"
    needs = needs_of(settings.losses)
    text_features = logit_scale = None
    if isinstance(images, TrainingPlaces):
        if "labels" in needs:
            check_classes(images.partition)
        if "text" in needs and unlearned_dim is not None:
            text_features = [torch.ones(count, unlearned_dim) for count in images.classes_per_group]
            logit_scale = 1.0
        elif "text" in needs:
            text_features = load_text_features(prompts, images.partition)
            if text.weight and text.temperature == "clip":
                logit_scale = load_logit_scale(prompts)
    encoder = build_starting_encoder(settings.model, settings.encoder, seed=settings.seed).to(accelerator.device)
    if text_features is None or unlearned_dim is not None:
        keep_text_weights(encoder, None)
    else:
        keep_text_weights(encoder, prompts, text_features[0].shape[1])
    initialize_from = AGGREGATIONS[encoder.spec.aggregation].initialize_from
    if settings.encoder.centroids is not None and initialize_from is not None:
        initialize_from(encoder.aggregation, settings.encoder.centroids)
    teacher = _build_teacher(settings, needs, accelerator)
    teacher_dim = None if teacher is None else teacher.descriptor_dim
    class_ids = images.class_ids
    source = TermSource(
        encoder.descriptor_dim, images.classes_per_group, text_features, class_ids, teacher_dim, logit_scale
    )
    if "regions" in needs:
        encoder.check_regions(crop_size(settings.training, encoder))
    kind = batch_kind(settings.training)
    start = AggregationStart(settings.out / "stage2" / "centroids.hdf5", settings.seed)
    batches = kind.load()(
        images,
        data=settings.data,
        augmentation=settings.augmentation,
        training=settings.training,
        encoder=encoder,
        seed=settings.seed,
        accelerator=accelerator,
        needs=needs,
        options=options_of(kind, settings.batches),
        work=settings.out / "stage2",
    )
    return ImageTraining(
        settings.training,
        encoder,
        terms=Terms(settings.losses, source, seed=settings.seed, accelerator=accelerator),
        batches=batches,
        validation=validation,
        settings=plain_values(settings),
        start=None if starts_from_encoder(settings.model) or settings.encoder.centroids is not None else start,
        accelerator=accelerator,
        teacher=teacher,
    )


def _build_teacher(settings: EncoderSettings, needs: set[str], accelerator: "Accelerator") -> "Teacher | None":
    """Load the teacher if a loss term needs one."""
    from progeo.engine.log import LOGGER
    from progeo.training.teacher import Teacher

    if needs & {"teacher", "teacher_map"}:
        return Teacher(settings.teacher, accelerator)
    if settings.teacher.encoder is not None:
        LOGGER.warning(
            "no loss term needs the teacher %s, which is not used: all of gram.weight, attention.weight and "
            "cosine.weight are 0",
            settings.teacher.encoder,
        )
    return None


def _train(trainer: "Trainer", settings: Mapping[str, Any]) -> None:
    """Train from the newest checkpoint to the end, and log the result."""
    from progeo.engine.accelerator import start_trackers
    from progeo.engine.log import LOGGER
    from progeo.engine.run_folder import is_done

    found = trainer.resume()
    if found is not None:
        LOGGER.info("resuming from %s%s", found, "" if trainer.best is None else f", best {trainer.best_in_words}")
    if trainer.accelerator.is_main_process:
        done = trainer.epoch, trainer.means.steps
        trainer.run.keep_metrics(lambda row: found is not None and is_done(row, *done))
    start_trackers(trainer.accelerator, settings["out"], settings=settings, steps_done=trainer.steps_done)
    if found is None:
        trainer.validate_untrained()
    for terms in trainer.epochs():
        if trainer.best is None:  # or its validation is logged
            losses = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
            LOGGER.info("epoch %d: %s", trainer.epoch, losses)
    for line in trainer.outcome():
        LOGGER.info(line)


def _epochs_may_change(settings: EncoderSettings) -> tuple[str, ...]:
    """Return the setting of epochs unless the schedule depends on it: another number would be another curve."""
    training = settings.training
    is_line = training.schedule == "linear" and training.decay_steps is None
    return () if is_line or training.schedule.startswith("cosine") else ("training.epochs",)
