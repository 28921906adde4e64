"""The trainer: steps, averaged weights, schedule, checkpoints, validation, early stopping and kept models."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from accelerate import Accelerator
from msgspec import Meta
from torch import nn

from progeo.engine.accelerator import float32_products, scaler_state, set_scaler_state
from progeo.engine.averaging import MovingAverage
from progeo.engine.checkpoint import (
    CheckpointWriter,
    load_newest_checkpoint,
    newest_checkpoint,
    parts_of,
    prune_checkpoints,
)
from progeo.engine.log import LOGGER
from progeo.engine.loop import LossNotFinite, Means, MeansState, TakenStep, may_skip, take_steps, training_progress
from progeo.engine.randomness import seed_layers
from progeo.engine.run_folder import RunFolder
from progeo.engine.schedules import learning_rate_factor, scale_learning_rates
from progeo.engine.stopping import StopRequest, listening_for_stop
from progeo.engine.transfer import is_asynchronous
from progeo.json_files import converted
from progeo.progress import Progress
from progeo.training.options import Generation, TrainerOptions
from progeo.training.step_rows import StepRows
from progeo.training.task import Measures, Task

MAX_SKIPPED_IN_A_ROW = 100
_STATE = (
    *("epoch", "terms", "primary", "untrained", "best", "epochs_since_best"),
    *("lowest_losses", "epochs_since_lower", "decays"),
)
"""Plain attributes that a checkpoint holds."""
_PARTS = (*_STATE, "means", "task", "averaged", "optimizer", "scaler")
"""Everything that a checkpoint must hold."""

_DO_NOT_FIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""Errors of loading a state that is of other types than those of the parts it is loaded into."""
_Count = Annotated[int, Meta(ge=0)]


class _Progress(TypedDict):
    """Types of the plain attributes in a checkpoint."""

    epoch: _Count
    terms: dict[str, float]
    primary: str
    untrained: float | None
    best: float | None
    epochs_since_best: _Count
    lowest_losses: dict[int, float]
    epochs_since_lower: _Count
    decays: _Count


class Trainer:
    """Trains a task from its newest checkpoint to the end; stopped at any step and resumed, it gives the same result.

    Args:
        task: what is trained.
        options: epochs, schedule, checkpoints and the like.
        run: run folder of metrics and kept models.
        checkpoints: folder of checkpoints.
        checkpoint_minutes: minimum minutes between the checkpoints at the end of epochs, 0 for one after each. The last
            epoch may have none.
        seed: seed of layers that draw random numbers.
        accelerator: provides precision, device and processes.
        bar: progress of several trainings; None shows one for each epoch.
        alone: this process trains independently and must not synchronize with others.
    """

    def __init__(
        self,
        task: Task,
        options: TrainerOptions,
        run: RunFolder,
        *,
        checkpoints: Path,
        checkpoint_minutes: float = 0,
        seed: int,
        accelerator: Accelerator,
        bar: Progress | None = None,
        alone: bool = False,
    ) -> None:
        self.task, self.options, self.run, self.checkpoints = task, options, run, checkpoints
        self.seed, self.accelerator = seed, accelerator
        self.bar, self.alone = bar, alone
        self.writer = CheckpointWriter(checkpoints, keep=options.keep_checkpoints)
        self.checkpoint_minutes, self._saved_at_s = checkpoint_minutes, time.monotonic()
        self.epoch = 0
        """Number of finished epochs."""
        self.terms: dict[str, float] = {}
        """Mean loss terms of the last finished epoch."""
        self.steps_taken = 0
        """Number of steps of the current epoch, including one whose numbers were not read yet."""
        self.means = Means()
        """Running means of the loss terms of the current epoch, of all steps whose numbers were read."""
        self.primary = ""
        """Name of the primary measure of the validation."""
        self.untrained: float | None = None
        """The primary measure before training, for comparison only: it never counts as the best."""
        self.best: float | None = None
        """The best primary measure after an epoch."""
        self.epochs_since_best = 0
        self.lowest_losses: dict[int, float] = {}
        """The lowest mean loss of an epoch on each group."""
        self.epochs_since_lower = 0
        """Number of epochs since one had the lowest loss of its group, or since the last decay."""
        self.decays = 0
        """Number of times that the schedules `plateau` and `loss_plateau` have lowered the learning rates."""
        self.averaged: MovingAverage | None = None
        self.rows = StepRows(task, run if self._writes else None, every=options.log_every, device=accelerator.device)
        self.skipped_in_a_row = 0
        """Number of steps since the last that counted, over epochs; a resumed training starts at 0."""
        self.steps_ahead = 1 if is_asynchronous(accelerator.device) else 0
        """Number of steps that are taken before the numbers of a step are read."""

    @property
    def model(self) -> nn.Module:
        """The network that is validated and kept: that of the task, or its moving average."""
        return self.task.model if self.averaged is None else self.averaged.module

    @property
    def steps_done(self) -> int:
        """Number of finished steps over all epochs."""
        return self.epoch * self.task.steps_per_epoch + self.means.steps

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation; 0 before the first epoch is finished."""
        return self.epoch - self.epochs_since_best

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, early stopping has triggered, or the learning rate is below its minimum."""
        options = self.options
        out_of_patience = options.patience is not None and self.epochs_since_best >= options.patience
        return self.epoch >= options.epochs or out_of_patience or self._is_too_slow

    @property
    def _is_too_slow(self) -> bool:
        minimum = self.options.min_learning_rate
        step = self.epoch * self.task.steps_per_epoch  # an epoch that has begun is finished, also by a resumed run
        if minimum is None or step < self.options.warmup_steps:
            return False
        # Powers of the factor are not exact: a rate that equals the minimum is not below it.
        rate = self._learning_rate_factor(step) * self.task.optimizer.param_groups[0]["base_lr"]
        return rate < minimum * (1 - 1e-6)

    @property
    def _writes(self) -> bool:
        return self.alone or self.accelerator.is_main_process

    def resume(self) -> Path | None:
        """Restore the newest checkpoint and return its path, or prepare a new training and return None."""
        found = load_newest_checkpoint(self.checkpoints)
        if found is None:
            self.task.begin()
        if self.options.ema_decay is not None:
            self.averaged = self._average()
        if found is None:
            return None
        path, state = found
        try:
            self.load_state_dict(state)
        except KeyError as missing:
            raise ValueError(_of_another_version(path, f"has no {missing}")) from None
        except _DO_NOT_FIT as error:  # tensors of other shapes, such as of another version of a plugin
            raise ValueError(_of_another_version(path, f"does not fit ({' '.join(str(error).split())})")) from error
        if self._writes:
            prune_checkpoints(path, keep=self.options.keep_checkpoints)  # unless it was killed before
        return path

    def validate_untrained(self) -> None:
        """Validate the network before its first step; `resume` skipped this if it found a checkpoint."""
        measures = self._validate({})
        if measures is not None:
            self.untrained = measures.best

    def epochs(self) -> Iterator[dict[str, float]]:
        """Train to the end; yields the mean loss terms of each epoch after its validation.

        Checkpoints are written while training continues. The last is complete when the training ends, however it does.

        Raises:
            KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written, and the message says how to resume.
            LossNotFinite: the loss or its gradient is not finite; the message names the newest checkpoint.
        """
        with listening_for_stop() as stop, self.writer:
            while not self.finished:
                terms = self.train_epoch(stop)
                measures = self._validate(terms)
                is_best = measures is not None and self._rate(measures)
                self._keep({} if measures is None else measures.named, is_best=is_best)
                if time.monotonic() - self._saved_at_s >= 60 * self.checkpoint_minutes:
                    self._save()
                yield terms

    def train_epoch(self, stop: StopRequest) -> dict[str, float]:
        """Take the steps of an epoch, or the remaining ones of one, and return the mean loss terms."""
        task, options = self.task, self.options
        if not self.means.steps and self.epoch and self._generation.first_epoch == self.epoch:
            self._begin_generation()
        task.begin_epoch(self.epoch)
        self.rows.begin_epoch()
        batches = task.batches(self.epoch, first_step=self.means.steps)
        products = float32_products(tf32=options.tf32, benchmark=options.cudnn_benchmark)
        with products, self._progress() as bar:
            bar.describe(task.name(self.epoch))
            try:
                steps = take_steps(
                    self._drawn(batches),
                    task.losses,
                    task.optimizer,
                    self.accelerator,
                    stop=stop,
                    max_gradient_norm=options.max_gradient_norm,
                    skip_not_finite=options.skip_not_finite,
                    alone=self.alone,
                )
                self._follow(steps, stop, bar)
            except LossNotFinite as error:
                where = f"{task.name(self.epoch)}, step {self.means.steps + 1}"
                raise LossNotFinite(f"{where}: {error} {self._newest_checkpoint()}") from None
        if not self.means.steps:
            raise ValueError(f"{task.name(self.epoch)}: there is no batch to train on.")
        task.end_epoch(self.epoch)
        self.terms, self.means, self.steps_taken = self.means.values(), Means(), 0
        if "loss" in self.terms:  # unless all steps were skipped
            self._compare_loss(self.terms["loss"])
        self.epoch += 1
        return self.terms

    @property
    def best_in_words(self) -> str:
        """The best value of the primary measure."""
        return f"val {self.primary} {self.best:.1f}"

    def outcome(self) -> list[str]:
        """Summarize the training: the best epoch, the folder of the kept model, and whether training improved it."""
        keep = self.options.keep
        kept = "encoder" if keep == "best" else f"encoder of the last, epoch {self.epoch},"
        best = "" if self.best is None else f"best {self.best_in_words} in epoch {self.best_epoch}, "
        lines = [f"{best}{kept} in {self.run.kept(keep)}"]
        if self._is_too_slow and self.epoch < self.options.epochs:
            lines.append(f"the learning rate fell below training.min_learning_rate after epoch {self.epoch}")
        if self.untrained is not None and self.best is not None and self.untrained >= self.best:
            lines.append(
                f"no epoch was better than the encoder before training: epoch 0 had val {self.primary} "
                f"{self.untrained:.1f}. Try a lower training.encoder_learning_rate, or more training.epochs."
            )
        return lines

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume."""
        return {
            **{name: getattr(self, name) for name in _STATE},
            "means": vars(self.means),
            "rows": self.rows.state_dict(),
            "task": self.task.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.task.optimizer.state_dict(),
            "scaler": scaler_state(self.accelerator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        missing = next((name for name in _PARTS if name not in state), None)
        if missing is not None:
            raise KeyError(missing)
        for name, value in converted({name: state[name] for name in _STATE}, _Progress).items():
            setattr(self, name, value)
        self.means = Means(**converted(state["means"], MeansState))
        self.steps_taken = self.means.steps
        if "rows" in state:  # an earlier version wrote none
            self.rows.load_state_dict(state["rows"])
        self.task.load_state_dict(state["task"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        _check_optimizer(state["optimizer"], self.task.optimizer)
        self.task.optimizer.load_state_dict(state["optimizer"])
        set_scaler_state(self.accelerator, state["scaler"])

    def _follow(self, steps: Iterable[TakenStep], stop: StopRequest, bar: Progress) -> None:
        """Average, log and save after each step, whose numbers are read `steps_ahead` later, or when they are needed.

        Raises:
            LossNotFinite: the loss or its gradient is not finite, also where the step after failed for that reason.
        """
        unread: deque[tuple[TakenStep, dict[str, float]]] = deque()
        try:
            for step in steps:
                self.steps_taken += 1
                unread.append((step, self.task.learning_rates))
                self._average_or_undo(step)
                while len(unread) > (0 if stop.agreed or self._saves_after_step else self.steps_ahead):
                    self._log(*unread.popleft(), bar)
                self._save_or_stop(stop)
        except LossNotFinite:
            raise
        except Exception:  # maybe as the weights are not finite any more
            for step, _ in unread:
                _ = step.result
            raise
        for each in unread:
            self._log(*each, bar)
        self._save_or_stop(stop)

    @property
    def _saves_after_step(self) -> bool:
        """Whether a checkpoint within the epoch is due after the last step that was taken."""
        is_last = self.steps_taken == self.task.steps_per_epoch
        return self.steps_taken % self.options.checkpoint_every == 0 and not is_last

    @property
    def _may_skip(self) -> bool:
        return may_skip(self.accelerator, skip_not_finite=self.options.skip_not_finite)

    def _drawn(self, batches: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Draw the batches; before each step, set its learning rates and the seed of its layers."""
        for pieces in self.rows.timed(batches):
            step = self.epoch * self.task.steps_per_epoch + self.steps_taken
            scale_learning_rates(self.task.optimizer, self._learning_rate_factor(step))
            # Layers such as stochastic depth draw on the device, independently in each process. The 1 separates their
            # seeds from those of the augmentation.
            seed_layers(self.seed, self.epoch, self.steps_taken, self.accelerator.process_index, 1)
            self._buffers = [buffer.clone() for buffer in self.task.model.buffers()] if self._may_skip else []
            yield pieces

    @property
    def _generation(self) -> Generation:
        """The generation of the current epoch."""
        return self.options.generation_of(self.epoch)

    def _begin_generation(self) -> None:
        """Begin with the first weights again, with the optimizer and the schedule as at the start."""
        LOGGER.info("generation %d begins with the first weights", self._generation.index + 1)
        self.task.begin_generation(self._generation.index)
        self.task.optimizer.state.clear()
        if self.averaged is not None:
            self.averaged = self._average()
        self.lowest_losses, self.epochs_since_lower, self.decays = {}, 0, 0

    def _learning_rate_factor(self, step: int) -> float:
        options, generation = self.options, self._generation
        epochs_before = generation.first_epoch
        decays = self.decays
        if options.schedule == "step":
            decays = (self.epoch - epochs_before) // options.decay_epochs
        return learning_rate_factor(
            step - epochs_before * self.task.steps_per_epoch,
            generation.epochs * self.task.steps_per_epoch,
            schedule=options.schedule,
            warmup_steps=options.warmup_steps,
            steps_per_epoch=self.task.steps_per_epoch,
            decayed=options.decay_factor**decays,
            end_factor=options.end_factor,
            decay_steps=options.decay_steps,
        )

    def _compare_loss(self, loss: float) -> None:
        """Compare the mean loss of an epoch with those of former epochs on its group, for `loss_plateau`."""
        group = self.task.group_of(self.epoch)
        lowest = self.lowest_losses.get(group, math.inf)
        self.lowest_losses[group] = min(loss, lowest)
        self.epochs_since_lower = 0 if loss < lowest else self.epochs_since_lower + 1
        if self.options.schedule == "loss_plateau" and self.epochs_since_lower == self.options.decay_epochs:
            self.epochs_since_lower = 0
            self.decays += 1

    def _average(self) -> MovingAverage:
        assert self.options.ema_decay is not None  # or nothing is averaged
        return MovingAverage(self.task.model, self.options.ema_decay)

    def _average_or_undo(self, step: TakenStep) -> None:
        if self._may_skip and not step.result.applied:  # restore the batch-norm statistics from before the step
            for buffer, before in zip(self.task.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        elif self.averaged is not None:
            self.averaged.update_parameters(self.task.model)

    def _log(self, step: TakenStep, learning_rates: dict[str, float], bar: Progress) -> None:
        """Read the numbers of a step, and log them with the learning rates that it had."""
        result = step.result
        self.skipped_in_a_row = 0 if result.applied else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise LossNotFinite(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that is not finite: the "
                f"weights do not recover. Lower the learning rate or the loss weights."
            )
        self.means.add(result)
        bar.show(self.means.values())
        bar.update()
        self.rows.add(result, learning_rates, epoch=self.epoch + 1, step=self.steps_done)
        self.accelerator.log({**learning_rates, **result.numbers}, step=self.steps_done)

    def _save_or_stop(self, stop: StopRequest) -> None:
        steps = self.means.steps
        if stop.agreed or self._saves_after_step:
            self.rows.sync()  # before the checkpoint after which their steps are not run again
            self._save()
        if stop.agreed:
            self.writer.wait()
            raise stop.kind(
                f"stopped in epoch {self.epoch + 1} after step {steps}: resume with the same command and `resume`."
            )

    def _save(self) -> None:
        """Begin to write a checkpoint."""
        self._saved_at_s = time.monotonic()
        if self._writes:
            self.writer.save(f"epoch_{self.epoch:06d}_step_{self.means.steps:06d}", self.state_dict())

    def _validate(self, terms: Mapping[str, float]) -> Measures | None:
        """Validate the network after an epoch; log and write its loss terms and measures."""
        measures = self.task.validate(self.model)
        values = {} if measures is None else measures.named
        if self._writes:
            self.run.append_metrics({**self.task.metrics, "epoch": self.epoch, **terms, **values})
        if measures is not None:
            self.primary = measures.primary
            self.accelerator.log({"epoch": self.epoch, **values}, step=self.steps_done)
            losses = "".join(f"{name} {value:.3f}, " for name, value in terms.items())
            in_words = measures.prefix + ", ".join(f"{name} {value:.1f}" for name, value in measures.values.items())
            LOGGER.info("%sepoch %d: %s%s", self.task.title, self.epoch, losses, in_words)
        return measures

    def _rate(self, measures: Measures) -> bool:
        """Compare the validation of an epoch with the best so far; return whether it is better."""
        options = self.options
        is_best = self.best is None or measures.best > self.best
        if is_best:
            self.best = measures.best
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        if (
            options.schedule == "plateau"
            and self.epochs_since_best
            and self.epochs_since_best % options.decay_epochs == 0
        ):
            self.decays += 1
        return is_best

    def _keep(self, values: Mapping[str, float], *, is_best: bool) -> None:
        """Keep the network where the options say so, with the values of its validation."""
        options = self.options
        folders = [self.run.kept(options.keep)] if is_best or options.keep == "last" else []
        if options.keep_every is not None and self.epoch % options.keep_every == 0:
            folders.append(self.run.kept_of_epoch(self.epoch))
        for folder in folders if self._writes else ():
            self.task.keep(folder, self.model, epoch=self.epoch, values=values, terms=self.terms)

    def _progress(self) -> AbstractContextManager[Progress]:
        if self.bar is not None:
            return nullcontext(self.bar)
        steps, images = self.task.steps_per_epoch, self.task.images_per_step
        return training_progress(
            steps,
            self.accelerator,
            images_per_step=images,
            steps_done=self.means.steps,
            steps_later=steps * (self.options.epochs - self.epoch - 1),
        )

    def _newest_checkpoint(self) -> str:
        self.writer.wait()
        newest = newest_checkpoint(self.checkpoints)
        return f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."


def check_checkpoints(run: RunFolder) -> None:
    """Check that the checkpoints of a run are of this version, before anything is written.

    Raises:
        ValueError: one is of another version; the message names it.
    """
    for path in run.former_checkpoints():
        raise ValueError(_of_another_version(path, "has no step in its name"))
    for path in run.newest_checkpoints():
        parts = parts_of(path)
        if parts and (missing := sorted(set(_PARTS) - parts)):
            raise ValueError(_of_another_version(path, f"has no {missing[0]!r}"))


def _check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Check what `load_state_dict` does not: shapes of moments and types of settings.

    Raises:
        ValueError: one of them does not.
    """
    now = optimizer.state_dict()["param_groups"]
    for before, group in zip(state["param_groups"], now, strict=True):
        for name, value in group.items():
            if isinstance(value, int | float) and not isinstance(before[name], int | float):
                raise ValueError(f"{name} of the optimizer is {before[name]!r}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state["state"].items():
        for name, moment in moments.items():
            is_tensor = isinstance(moment, torch.Tensor)
            if moment is not None and not (is_tensor and moment.shape in ((), parameters[number].shape)):
                raise ValueError(f"{name} of parameter {number} of the optimizer is no tensor of its shape")


def _of_another_version(checkpoint: Path, reason: str) -> str:
    return (
        f"The checkpoint {checkpoint} {reason}: it is of another version. Continue with that version, or name another "
        f"`out`."
    )
