"""The training state of stage 2, which can be saved and resumed at any step."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from progeo.data.augmentation import jitter_colors
from progeo.engine.accelerator import distributed, scaler_state, set_scaler_state
from progeo.engine.checkpoint import STEPS, newest_checkpoint, prune_checkpoints, save_checkpoint
from progeo.engine.loop import LossNotFinite, Means, progress_bar, train_epoch
from progeo.engine.randomness import seed_layers
from progeo.engine.run_folder import RunFolder
from progeo.engine.schedules import learning_rate_factor, scale_learning_rates
from progeo.engine.stopping import StopRequest
from progeo.models.encoder import Encoder
from progeo.places.cells import Group
from progeo.training.batches import ImageBatches, MicroBatch
from progeo.training.loss_terms import ImageLosses, Terms
from progeo.training.options import TrainingOptions


class ImageTraining:
    """The encoder, its losses and their optimizer."""

    def __init__(
        self,
        options: TrainingOptions,
        encoder: Encoder,
        *,
        losses: ImageLosses,
        batches: ImageBatches,
        groups: Sequence[Group],
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.options = options
        self.encoder, self.losses, self.batches = encoder, losses, batches
        self.groups = groups
        self.seed = seed
        self.accelerator = accelerator
        self.epoch = 0
        """Number of finished epochs."""
        self.means = Means()
        """Running means of the loss terms of the current epoch."""
        self.untrained_recall = -1.0
        """Validation R@1 before training, for comparison only: it never counts as the best."""
        self.best_recall = -1.0
        self.epochs_since_best = 0
        if options.gradient_checkpointing:
            encoder.family.checkpoint_gradients(encoder.backbone)
        self.optimizer = accelerator.prepare_optimizer(
            torch.optim.AdamW(_parameter_groups(encoder, losses.modules, options), fused=True)
        )
        self.averaged: AveragedModel | None = None
        if options.ema_decay is not None:
            average = get_ema_multi_avg_fn(options.ema_decay)
            self.averaged = AveragedModel(encoder, multi_avg_fn=average, use_buffers=True)
        self.distributed_encoder = distributed(encoder, accelerator)
        if options.compile:
            encoder.compile()
        self._buffers_before: list[Tensor] = []

    @property
    def result(self) -> Encoder:
        """The encoder that is validated and kept: the encoder itself, or its moving average."""
        return self.encoder if self.averaged is None else cast(Encoder, self.averaged.module)

    @property
    def steps_done(self) -> int:
        """Number of finished steps over all epochs."""
        return self.epoch * self.options.iterations_per_epoch + self.means.steps

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation; 0 before the first epoch is finished."""
        return self.epoch - self.epochs_since_best

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or early stopping has triggered."""
        patience = self.options.patience
        out_of_patience = patience is not None and self.epochs_since_best >= patience
        return self.epoch >= self.options.epochs or out_of_patience

    def run_epoch(self, run: RunFolder, stop: StopRequest) -> dict[str, float]:
        """Train on the group of this epoch, resuming within it if it was interrupted; returns mean loss terms.

        Raises:
            KeyboardInterrupt: a stop was requested; a checkpoint was written.
        """
        index = self.epoch % len(self.groups)
        self.losses.move_head(index, self.accelerator.device, self.optimizer)
        self.encoder.train()
        bar = progress_bar(
            self.options.iterations_per_epoch,
            self.accelerator,
            images_per_step=self.options.batch_size,
            steps_done=self.means.steps,
        )
        try:
            with bar:
                terms = train_epoch(
                    self.batches.of_epoch(self.epoch, self.groups[index], first_step=self.means.steps),
                    partial(self._step, self.losses.of_group(index)),
                    self.optimizer,
                    self.accelerator,
                    bar=bar,
                    description=f"stage 2, epoch {self.epoch + 1}/{self.options.epochs}, group {index + 1}",
                    means=self.means,
                    stop=stop,
                    before_step=self._before_step,
                    after_step=partial(self._after_step, run, stop),
                    max_gradient_norm=self.options.max_gradient_norm,
                    skip_not_finite=self.options.skip_not_finite,
                )
        except LossNotFinite as error:
            newest = newest_checkpoint(run.checkpoints, STEPS)
            last = f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."
            raise LossNotFinite(f"{error} {last}") from None
        self.losses.move_head(index, torch.device("cpu"), self.optimizer)
        self.epoch += 1
        self.means = Means()
        return terms

    def note_recall(self, recall: float) -> bool:
        """Record the validation R@1 after an epoch; returns whether it is the best so far."""
        is_best = recall > self.best_recall
        self.best_recall = max(recall, self.best_recall)
        self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
        return is_best

    def save(self, run: RunFolder) -> None:
        """Write a checkpoint and remove old ones."""
        if self.accelerator.is_main_process:
            name = f"epoch_{self.epoch:06d}_step_{self.means.steps:06d}"
            newest = save_checkpoint(run.checkpoints, name, self.state_dict())
            prune_checkpoints(newest, keep=self.options.keep_checkpoints)

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume a run."""
        return {
            "epoch": self.epoch,
            "means": vars(self.means),
            "untrained_recall": self.untrained_recall,
            "best_recall": self.best_recall,
            "epochs_since_best": self.epochs_since_best,
            "unreadable": sorted(self.batches.unreadable),
            "encoder": self.encoder.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            **self.losses.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler_state(self.accelerator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.epoch = state["epoch"]
        self.means = Means(**state["means"])
        self.untrained_recall = state["untrained_recall"]
        self.best_recall = state["best_recall"]
        self.epochs_since_best = state["epochs_since_best"]
        self.batches.unreadable = set(state["unreadable"])
        self.encoder.load_state_dict(state["encoder"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.losses.load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        set_scaler_state(self.accelerator, state["scaler"])

    def _step(self, terms: Terms, batch: MicroBatch) -> dict[str, Tensor]:
        images, labels = batch.images.to(self.accelerator.device), batch.labels.to(self.accelerator.device)
        descriptors = self.distributed_encoder(self.encoder.normalize(jitter_colors(images, batch.changes)))
        return terms(descriptors, labels)

    def _before_step(self, number: int) -> None:
        factor = learning_rate_factor(
            self.epoch * self.options.iterations_per_epoch + number,
            self.options.epochs * self.options.iterations_per_epoch,
            schedule=self.options.schedule,
            warmup_steps=self.options.warmup_steps,
        )
        scale_learning_rates(self.optimizer, factor)
        # Layers such as stochastic depth draw on the device, independently in each process. The 1 separates their seeds
        # from those of the augmentation.
        seed_layers(self.seed, self.epoch, number, self.accelerator.process_index, 1)
        if self.options.skip_not_finite:
            self._buffers_before = [buffer.clone() for buffer in self.encoder.buffers()]

    def _after_step(self, run: RunFolder, stop: StopRequest, numbers: Mapping[str, float], applied: bool) -> None:
        steps = self.means.steps
        if not applied and self.options.skip_not_finite:  # restore the batch-norm statistics from before a skipped step
            for buffer, before in zip(self.encoder.buffers(), self._buffers_before, strict=True):
                buffer.copy_(before)
        elif applied and self.averaged is not None:
            self.averaged.update_parameters(self.encoder)
        rate = self.optimizer.param_groups[0]["lr"]
        self.accelerator.log({"encoder_learning_rate": rate, **numbers}, step=self.steps_done)
        at_end = steps == self.options.iterations_per_epoch
        if stop.received or (steps % self.options.checkpoint_every == 0 and not at_end):
            self.save(run)
        if stop.received:
            raise KeyboardInterrupt(
                f"stopped in epoch {self.epoch + 1} after step {steps}: resume with the same command and `resume`."
            )


def _parameter_groups(
    encoder: Encoder, training_only: Sequence[nn.Module], options: TrainingOptions
) -> list[dict[str, Any]]:
    """Split the parameters into the encoder's matrices and kernels, which decay, its others, and each other module.

    The classifier of an idle group gets no gradient, so the optimizer does not change it.
    """
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    kinds = [
        ([p for p in trained if p.ndim > 1], options.encoder_learning_rate, options.weight_decay),
        ([p for p in trained if p.ndim <= 1], options.encoder_learning_rate, 0.0),
        *((list(module.parameters()), options.head_learning_rate, 0.0) for module in training_only),
    ]
    return [
        {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay} for parameters, rate, decay in kinds
    ]
