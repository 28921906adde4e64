"""The training loop: batches in, steps of an optimizer, means of the loss terms out. Knows no task."""

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
    """The loss became infinite or not a number."""


class Means:
    """Running means of the loss terms of an epoch, which a checkpoint can hold."""

    def __init__(self, steps: int = 0, skipped: int = 0, sums: Mapping[str, float] | None = None) -> None:
        self.steps = steps
        """Steps so far."""
        self.skipped = skipped
        """How many of them were left out, as their loss was not finite."""
        self.sums = dict(sums or {})

    def add(self, numbers: Mapping[str, float]) -> None:
        """Count the terms of one step."""
        self.steps += 1
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def skip(self) -> None:
        """Count a step that was left out."""
        self.steps += 1
        self.skipped += 1

    def values(self) -> dict[str, float]:
        """The means by name, and how many steps were left out if any."""
        means = {name: total / (self.steps - self.skipped) for name, total in self.sums.items()}
        return {**means, "skipped": self.skipped} if self.skipped else means


def progress_bar(num_steps: int, accelerator: Accelerator, *, images_per_step: int, steps_done: int = 0) -> tqdm:
    """A bar over the steps of a training, in images, shown by the main process on a terminal."""
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
    """Run one epoch, or the rest of one.

    Args:
        batches: those of the steps still to be done, each in pieces of one size: the gradient is that of their mean.
        step: piece -> named loss terms, already weighted; the loss is their sum.
        optimizer: prepared by `accelerator`.
        accelerator: gives precision, device and processes.
        bar: moved on by one each step, with the means of the terms so far.
        description: what the bar and errors call this epoch.
        means: of the steps done before; those of the others are added.
        stop: received by one process, it is received by all in the same step.
        before_step: called with the number of a step before it is begun.
        after_step: called after each step with the loss and its terms, and whether the optimizer applied the step.
        max_gradient_norm: clip the gradient to this length; None does not clip.
        skip_not_finite: leave out and count a step whose loss or gradient is not finite, instead of stopping.
        alone: this process trains what no other trains, and must not wait for any.

    Returns:
        The mean of each term over all processes, and of their sum as `loss`.

    Raises:
        ValueError: no batch.
        LossNotFinite: with the terms.
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
            norm = torch.zeros_like(norm)  # the scaler has an eye on the gradients of fp16, and lowers itself
        # The one time that a step waits for the device. What is not finite anywhere is so everywhere.
        mine = torch.cat([of_pieces, norm.detach().view(1), norm.new_tensor([float(stop.received)])])
        *values, norm_of_all, stop_requests = (mine if alone else accelerator.reduce(mine, "mean")).tolist()
        stop.received = stop_requests > 0
        numbers = dict(zip(names, values, strict=True))
        if math.isfinite(numbers["loss"]) and math.isfinite(norm_of_all):
            optimizer.step()
            applied = not optimizer.step_was_skipped  # by the scaler, for its gradient
            means.add(numbers)
        elif skip_not_finite:
            if accelerator.scaler is not None:
                accelerator.scaler.update()  # or it would refuse the next step, as the gradient is unscaled
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
    """Add up the gradient of the pieces' mean loss; the names of the loss and of its terms, and their means."""
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
