"""Stage 2: train the image encoder on places and on the texts that stage 1 learned for them."""

import gc
from pathlib import Path

from progeo.commands.final_test import check_final_test, run_final_test
from progeo.config.parsing import plain_values
from progeo.config.training import Settings
from progeo.datasets.query_sets import QuerySet, load_query_set
from progeo.engine.accelerator import start_accelerator, start_trackers
from progeo.engine.checkpoint import STEPS, load_newest_checkpoint
from progeo.engine.log import LOGGER
from progeo.engine.memory import explaining_out_of_memory
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import listening_for_stop
from progeo.evaluation.recall import recall_at
from progeo.export.weights import save_encoder
from progeo.training.overview import overview
from progeo.training.places import LearnedFrom, open_training_run, read_training_places
from progeo.training.trainer import ImageTraining
from progeo.training.validation import retrieve

_RECALL_NS = (1, 5, 10, 20)
_NEEDS_LESS_MEMORY = (
    "A run resumed with --resume true may have a lower data.eval_batch_size, data.cache_images false or, for a ViT, "
    "training.gradient_checkpointing true; before its first checkpoint also more training.micro_batches, "
    "mixed_precision bf16, or a lower model.image_size or training.batch_size."
)
# With a cosine schedule the number of epochs may not change: it would be another cosine.
_MAY_CHANGE = (
    "trackers",
    "text.prompts",  # if their content is the same, see `LearnedFrom`
    "data.eval_batch_size",
    "data.cache_images",
    "training.gradient_checkpointing",
    "training.patience",
    "training.keep_every",
    "training.skip_not_finite",
    "training.checkpoint_every",
    "training.keep_checkpoints",
)


def train_image_encoder(settings: Settings) -> Path:
    """Run stage 2 and return its folder, with the encoder of the best validation in `best/`, or the last in `last/`.

    A final test follows if the settings name one. A run interrupted at any step resumes from its newest checkpoint and
    gives the same result as if it had not been interrupted.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written, and the message says how to resume.
        MemoryError: out of memory; the message says which settings to lower.
    """
    folder = settings.run / "stage2"
    accelerator = start_accelerator(settings.mixed_precision, trackers=settings.trackers, folder=folder)
    places = read_training_places(settings)
    val_set = load_query_set(
        settings.data.val_folder,
        settings.data.database,
        settings.data.queries,
        radius_m=settings.data.positive_radius_m,
        angle_deg=settings.data.positive_angle_deg,
    )
    check_final_test(settings.data)
    with explaining_out_of_memory(_NEEDS_LESS_MEMORY):
        training = ImageTraining(settings, places, accelerator)
        source = LearnedFrom(places, val_set, training.losses.text_features)
        may_change = _MAY_CHANGE if settings.training.schedule == "cosine" else (*_MAY_CHANGE, "training.epochs")
        run = open_training_run(settings, folder, source, may_change=may_change, is_main=accelerator.is_main_process)
        for line in overview(training, places, val_set):
            LOGGER.info(line)
        if accelerator.is_main_process:
            source.keep(run)
        _train(training, val_set, run)
        for line in _outcome(training, run):
            LOGGER.info(line)
        # Before the end: if its networks were the last to hold the process group, freeing it could wait forever.
        del training
        accelerator.free_memory()
        gc.collect()
        run_final_test(settings, run, accelerator)
    accelerator.end_training()
    return run.path


def _train(training: ImageTraining, val_set: QuerySet, run: RunFolder) -> None:
    """Resume from the newest checkpoint, or start with a validation of the untrained encoder, and train to the end."""
    found = load_newest_checkpoint(run.checkpoints, STEPS)
    if found is not None:
        checkpoint, state = found
        training.load_state_dict(state)
        best = f", best val R@1 {training.best_recall:.1f}" if training.epoch else ""
        LOGGER.info("resuming from %s%s", checkpoint, best)
    if training.accelerator.is_main_process:
        run.keep_metrics(lambda row: found is not None and row["epoch"] <= training.epoch)
    settings = training.settings
    start_trackers(
        training.accelerator, str(settings.run), settings=plain_values(settings), steps_done=training.steps_done
    )
    with listening_for_stop() as stop:
        if found is None:
            training.untrained_recall = _validate(training, val_set, run, terms={})["val R@1"]
        while not training.finished:
            terms = training.run_epoch(run, stop)
            _keep(training, run, _validate(training, val_set, run, terms=terms))
            training.save(run)


def _validate(
    training: ImageTraining, val_set: QuerySet, run: RunFolder, *, terms: dict[str, float]
) -> dict[str, float]:
    """Compute the validation recalls, log and save them, and return them."""
    settings, accelerator = training.settings, training.accelerator
    predictions = retrieve(
        training.result,
        val_set,
        accelerator,
        count=max(_RECALL_NS),
        preprocessing=settings.data.val_preprocessing,
        batch_size=settings.data.eval_batch_size,
        num_workers=settings.data.num_workers,
        orientation=settings.data.orientation,
    )
    values = recall_at(predictions, val_set.positives, _RECALL_NS).tolist()
    recalls = {f"val R@{n}": recall for n, recall in zip(_RECALL_NS, values, strict=True)}
    accelerator.log({"epoch": training.epoch, **recalls}, step=training.steps_done)
    if accelerator.is_main_process:
        run.append_metrics({"epoch": training.epoch, **terms, **recalls})
    losses = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    in_words = ", ".join(f"R@{n} {recall:.1f}" for n, recall in zip(_RECALL_NS, values, strict=True))
    LOGGER.info("epoch %d: %s%sval %s", training.epoch, losses, ", " if losses else "", in_words)
    return recalls


def _keep(training: ImageTraining, run: RunFolder, recalls: dict[str, float]) -> None:
    """Save the encoder after an epoch to every folder that should keep it."""
    settings, epoch = training.settings.training, training.epoch
    is_best = training.note_recall(recalls["val R@1"])
    if not training.accelerator.is_main_process:
        return
    folders = [run.kept(settings.keep)] if is_best or settings.keep == "last" else []
    if settings.keep_every is not None and epoch % settings.keep_every == 0:
        folders.append(run.kept_of_epoch(epoch))
    for folder in folders:
        provenance = {"epoch": epoch, "settings": plain_values(training.settings)}
        save_encoder(folder, training.result, provenance=provenance, recalls=recalls)


def _outcome(training: ImageTraining, run: RunFolder) -> list[str]:
    """Summarize the training: the best epoch, the encoder's folder, and whether training improved the encoder."""
    keep, best = training.settings.training.keep, training.best_recall
    kept = "encoder" if keep == "best" else f"encoder of the last, epoch {training.epoch},"
    lines = [f"best val R@1 {best:.1f} in epoch {training.best_epoch}, {kept} in {run.kept(keep)}"]
    if training.untrained_recall >= best:
        lines.append(
            f"no epoch was better than the encoder before training: epoch 0 had val R@1 "
            f"{training.untrained_recall:.1f}. Try a lower training.encoder_learning_rate, or more training.epochs."
        )
    return lines
