"""The training loop: runs optimizer steps on batches and returns the mean loss terms. Independent of the task."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from tqdm import tqdm

from progeo.engine.stopping import StopRequest

Step = Callable[[Any], Mapping[str, Tensor]]


class LossNotFinite(ValueError):
    """The loss or its gradient is infinite or NaN."""


class Means:
    """Running means of the loss terms of an epoch; can be stored in a checkpoint."""

    def __init__(self, steps: int = 0, skipped: int = 0, sums: Mapping[str, float] | None = None) -> None:
        self.steps = steps
        """Number of steps so far, including skipped ones."""
        self.skipped = skipped
        """Number of steps that were skipped because the loss or gradient was not finite."""
        self.sums = dict(sums or {})
        """Sum of each loss term over the steps that were not skipped."""

    def add(self, numbers: Mapping[str, float]) -> None:
        """Add the loss terms of one step."""
        self.steps += 1
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def skip(self) -> None:
        """Count a skipped step."""
        self.steps += 1
        self.skipped += 1

    def values(self) -> dict[str, float]:
        """Return the mean of each term by name, and the number of skipped steps as `skipped` if there are any."""
        means = {name: total / (self.steps - self.skipped) for name, total in self.sums.items()}
        return {**means, "skipped": self.skipped} if self.skipped else means


def progress_bar(num_steps: int, accelerator: Accelerator, *, images_per_step: int, steps_done: int = 0) -> tqdm:
    """Create a progress bar over training steps, counted in images; shown by the main process on a terminal only."""
    hidden = None if accelerator.is_main_process else True  # None: shown on a terminal only
    return tqdm(
        total=num_steps, initial=steps_done, unit="img", unit_scale=images_per_step, leave=False, disable=hidden
    )


def train_epoch(
    batches: Iterable[Sequence[Any]],
    step: Step,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    *,
    bar: tqdm,
    description: str,
    means: Means | None = None,
    stop: StopRequest | None = None,
    before_step: Callable[[int], None] = lambda _: None,
    after_step: Callable[[Mapping[str, float], bool], None] = lambda *_: None,
    max_gradient_norm: float | None = None,
    skip_not_finite: bool = False,
    alone: bool = False,
) -> dict[str, float]:
    """Run one epoch, or the remaining steps of one.

    Args:
        batches: batches of the remaining steps, each split into micro-batches of equal size, whose gradients are
            averaged.
        step: micro-batch -> named loss terms, already weighted; the loss is their sum.
        optimizer: prepared by `accelerator`.
        accelerator: provides precision, device and processes.
        bar: advanced by one per step; shows the running means of the terms.
        description: name of this epoch in the progress bar and in errors.
        means: running means of the steps done before; updated in place.
        stop: a stop request; one that a single process received reaches all processes in the same step.
        before_step: called before each step with its index in the epoch, from 0.
        after_step: called after each step with the loss and its terms, and whether the optimizer applied the step.
        max_gradient_norm: maximum norm that the gradient is clipped to; None does not clip.
        skip_not_finite: skip and count a step whose loss or gradient is not finite, instead of raising.
        alone: this process trains independently and must not synchronize with others.

    Returns:
        The mean of each term over all steps and processes (with `alone`, of this process), of their sum as `loss`, and
        the number of skipped steps as `skipped` if there are any.

    Raises:
        ValueError: there are no batches.
        LossNotFinite: the loss or its gradient is not finite; the message has the values of the terms.
    """
    bar.set_description(description)
    means, stop = means or Means(), stop or StopRequest()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for pieces in batches:
        before_step(means.steps)
        optimizer.zero_grad()
        names, of_pieces = _accumulated(pieces, step, accelerator)
        norm = accelerator.clip_grad_norm_(parameters, math.inf if max_gradient_norm is None else max_gradient_norm)
        if accelerator.scaler is not None:
            norm = torch.zeros_like(norm)  # the fp16 scaler checks gradients itself and lowers its scale
        # The only time that a step waits for the device. A value that is not finite in one process is so in all.
        mine = torch.cat([of_pieces, norm.detach().view(1), norm.new_tensor([float(stop.received)])])
        *values, norm_of_all, stop_requests = (mine if alone else accelerator.reduce(mine, "mean")).tolist()
        stop.received = stop_requests > 0
        numbers = dict(zip(names, values, strict=True))
        if math.isfinite(numbers["loss"]) and math.isfinite(norm_of_all):
            optimizer.step()
            applied = not optimizer.step_was_skipped  # by the scaler, for a non-finite gradient
            means.add(numbers)
        elif skip_not_finite:
            if accelerator.scaler is not None:
                accelerator.scaler.update()  # or the next step would fail, as the gradient is already unscaled
            applied = False
            means.skip()
        else:
            raise LossNotFinite(_not_finite(description, means.steps + 1, numbers))
        bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.values().items()}, refresh=False)
        bar.update()
        after_step(numbers, applied)
    if not means.steps:
        raise ValueError(f"{description}: there is no batch to train on.")
    return means.values()


def _accumulated(pieces: Sequence[Any], step: Step, accelerator: Accelerator) -> tuple[list[str], Tensor]:
    """Accumulate the gradient of the micro-batches' mean loss; return names and means of the loss and its terms."""
    per_piece = []
    for piece in pieces:
        with accelerator.autocast():
            terms = step(piece)
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss / len(pieces))
        per_piece.append(torch.stack([loss, *terms.values()]).detach())
    return ["loss", *terms], torch.stack(per_piece).mean(dim=0)


def _not_finite(description: str, step: int, numbers: Mapping[str, float]) -> str:
    what = "gradient" if math.isfinite(numbers["loss"]) else "loss"
    values = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if name != "loss")
    return (
        f"{description}, step {step}: the {what} is not finite ({values}). Lower the learning rate or the loss weights."
    )
