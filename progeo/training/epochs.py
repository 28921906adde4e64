"""Stage 2 from its newest checkpoint to the end: train an epoch, validate, keep the best encoder, save."""

from collections.abc import Mapping
from typing import Any

from progeo.engine.accelerator import start_trackers
from progeo.engine.checkpoint import STEPS, load_newest_checkpoint
from progeo.engine.log import LOGGER
from progeo.engine.run_folder import RunFolder
from progeo.engine.stopping import listening_for_stop
from progeo.export.weights import save_encoder
from progeo.training.trainer import ImageTraining
from progeo.training.validation import Validation


def train_epochs(
    training: ImageTraining, validation: Validation, run: RunFolder, *, settings: Mapping[str, Any]
) -> None:
    """Resume from the newest checkpoint, or start with a validation of the untrained encoder, and train to the end.

    Args:
        training: the training.
        validation: the validation after every epoch.
        run: run folder of checkpoints, metrics and encoders.
        settings: plain settings of the run, kept with its encoders and by trackers.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written, and the message says how to resume.
    """
    found = load_newest_checkpoint(run.checkpoints, STEPS)
    if found is not None:
        checkpoint, state = found
        training.load_state_dict(state)
        best = f", best val R@1 {training.best_recall:.1f}" if training.epoch else ""
        LOGGER.info("resuming from %s%s", checkpoint, best)
    if training.accelerator.is_main_process:
        run.keep_metrics(lambda row: found is not None and row["epoch"] <= training.epoch)
    start_trackers(training.accelerator, settings["out"], settings=settings, steps_done=training.steps_done)
    with listening_for_stop() as stop:
        if found is None:
            training.untrained_recall = _validate(training, validation, run, terms={})["val R@1"]
        while not training.finished:
            terms = training.run_epoch(run, stop)
            recalls = _validate(training, validation, run, terms=terms)
            _keep(training, run, recalls, settings=settings)
            training.save(run)
    for line in _outcome(training, run):
        LOGGER.info(line)


def _validate(
    training: ImageTraining, validation: Validation, run: RunFolder, *, terms: Mapping[str, float]
) -> dict[str, float]:
    """Compute the validation recalls, log and save them, and return them."""
    accelerator = training.accelerator
    by_n = validation.recalls(training.result, accelerator)
    recalls = {f"val R@{n}": recall for n, recall in by_n.items()}
    accelerator.log({"epoch": training.epoch, **recalls}, step=training.steps_done)
    if accelerator.is_main_process:
        run.append_metrics({"epoch": training.epoch, **terms, **recalls})
    losses = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
    in_words = ", ".join(f"R@{n} {recall:.1f}" for n, recall in by_n.items())
    LOGGER.info("epoch %d: %s%sval %s", training.epoch, losses, ", " if losses else "", in_words)
    return recalls


def _keep(
    training: ImageTraining, run: RunFolder, recalls: Mapping[str, float], *, settings: Mapping[str, Any]
) -> None:
    """Save the encoder after an epoch to every folder that should keep it."""
    options, epoch = training.options, training.epoch
    is_best = training.note_recall(recalls["val R@1"])
    if not training.accelerator.is_main_process:
        return
    folders = [run.kept(options.keep)] if is_best or options.keep == "last" else []
    if options.keep_every is not None and epoch % options.keep_every == 0:
        folders.append(run.kept_of_epoch(epoch))
    for folder in folders:
        provenance = {"epoch": epoch, "settings": settings}
        save_encoder(folder, training.result, provenance=provenance, recalls=recalls)


def _outcome(training: ImageTraining, run: RunFolder) -> list[str]:
    """Summarize the training: the best epoch, the encoder's folder, and whether training improved the encoder."""
    keep, best = training.options.keep, training.best_recall
    kept = "encoder" if keep == "best" else f"encoder of the last, epoch {training.epoch},"
    lines = [f"best val R@1 {best:.1f} in epoch {training.best_epoch}, {kept} in {run.kept(keep)}"]
    if training.untrained_recall >= best:
        lines.append(
            f"no epoch was better than the encoder before training: epoch 0 had val R@1 "
            f"{training.untrained_recall:.1f}. Try a lower training.encoder_learning_rate, or more training.epochs."
        )
    return lines
