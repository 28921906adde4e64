"""Stage 2: train the image encoder on places and on the texts that stage 1 learned for them."""

import gc
from pathlib import Path

from progeo.config.parsing import plain_values
from progeo.config.training import Settings
from progeo.engine.accelerator import start_accelerator, start_trackers
from progeo.engine.checkpoint import STEPS, load_newest_checkpoint
from progeo.engine.log import LOGGER
from progeo.engine.memory import explaining_out_of_memory
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import listening_for_stop
from progeo.evaluation.recall import recall_at
from progeo.export.weights import save_encoder
from progeo.stages.image_training import ImageTraining
from progeo.stages.overview import overview
from progeo.stages.places import LearnedFrom, open_training_run, read_training_places
from progeo.stages.query_sets import QuerySet, load_query_set
from progeo.stages.validation import retrieve

_RECALL_NS = (1, 5, 10, 20)
_NEEDS_LESS_MEMORY = (
    "With --resume true a run may go on with a lower data.eval_batch_size or, for a ViT, with "
    "training.gradient_checkpointing true; before its first checkpoint also with more training.micro_batches, "
    "mixed_precision bf16, or a lower model.image_size or training.batch_size."
)
# With a cosine over all epochs their number may not change: it would be another cosine.
_MAY_CHANGE = (
    "trackers",
    "text.prompts",  # where they are the same, see `LearnedFrom`
    "data.eval_batch_size",
    "data.cache_images",
    "training.gradient_checkpointing",
    "training.patience",
    "training.skip_not_finite",
    "training.checkpoint_every",
    "training.keep_checkpoints",
)


def train_image_encoder(settings: Settings) -> Path:
    """Run stage 2 and return its folder, with the encoder of the best validation in `best/`.

    A run that was stopped, at whatever step, goes on from its newest checkpoint and ends as if it had not been.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written, and the sentence says how to go on.
        MemoryError: out of memory; the sentence says what to lower.
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
    LOGGER.info("best val R@1 %.1f, encoder in %s", training.best_recall, run.best)
    del training  # first: were its networks the last to hold the group of processes, freeing it could wait for ever
    gc.collect()
    accelerator.end_training()
    return run.path


def _train(training: ImageTraining, val_set: QuerySet, run: RunFolder) -> None:
    """Go on from the newest checkpoint, or start with a validation of the untrained encoder, and train to the end."""
    found = load_newest_checkpoint(run.checkpoints, STEPS)
    if found is not None:
        checkpoint, state = found
        training.load_state_dict(state)
        LOGGER.info("going on from %s, best val R@1 %.1f", checkpoint, training.best_recall)
    if training.accelerator.is_main_process:
        run.keep_metrics(lambda row: found is not None and row["epoch"] <= training.epoch)
    settings = training.settings
    start_trackers(
        training.accelerator, str(settings.run), settings=plain_values(settings), steps_done=training.steps_done
    )
    with listening_for_stop() as stop:
        if found is None:
            _validate(training, val_set, run, terms={})
        while not training.finished:
            terms = training.run_epoch(run, stop)
            _validate(training, val_set, run, terms=terms)
            training.save(run)


def _validate(training: ImageTraining, val_set: QuerySet, run: RunFolder, *, terms: dict[str, float]) -> None:
    """Take the validation recall, log it, and keep the encoder if it is the best so far."""
    settings, accelerator = training.settings, training.accelerator
    predictions = retrieve(
        training.result,
        val_set,
        accelerator,
        count=max(_RECALL_NS),
        image_size=training.encoder.image_size,
        batch_size=settings.data.eval_batch_size,
        num_workers=settings.data.num_workers,
        orientation=settings.data.orientation,
    )
    values = recall_at(predictions, val_set.positives, _RECALL_NS).tolist()
    recalls = {f"val R@{n}": recall for n, recall in zip(_RECALL_NS, values, strict=True)}
    is_best = training.note_recall(recalls["val R@1"])
    accelerator.log({"epoch": training.epoch, **recalls}, step=training.steps_done)
    if not accelerator.is_main_process:
        return
    run.append_metrics({"epoch": training.epoch, **terms, **recalls})
    losses = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    in_words = ", ".join(f"R@{n} {recall:.1f}" for n, recall in zip(_RECALL_NS, values, strict=True))
    LOGGER.info("epoch %d: %s%sval %s", training.epoch, losses, ", " if losses else "", in_words)
    if is_best:
        provenance = {"epoch": training.epoch, "settings": plain_values(settings)}
        save_encoder(run.best, training.result, provenance=provenance, recalls=recalls)
