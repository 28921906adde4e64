"""Optimizer steps on batches, one result each. Independent of the task."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from msgspec import Meta
from torch import Tensor

from progeo.engine.stopping import StopRequest
from progeo.progress import Progress

Losses = Callable[[Any], Mapping[str, Tensor]]


class LossNotFinite(ValueError):
    """The loss or its gradient is infinite or NaN."""


@dataclass(frozen=True)
class StepResult:
    """What one step gave."""

    numbers: dict[str, float]
    """The loss and its weighted terms, means over micro-batches and processes."""
    applied: bool
    """Whether the step counts: if not, because its loss or gradient was not finite, no weight has changed."""


class MeansState(TypedDict):
    """Types of the attributes of `Means`."""

    steps: Annotated[int, Meta(ge=0)]
    skipped: Annotated[int, Meta(ge=0)]
    sums: dict[str, float]


class Means:
    """Running means of the loss terms of steps; can be stored in a checkpoint."""

    def __init__(self, steps: int = 0, skipped: int = 0, sums: Mapping[str, float] | None = None) -> None:
        self.steps = steps
        """Number of steps so far, including skipped ones."""
        self.skipped = skipped
        """Number of steps that do not count because the loss or gradient was not finite."""
        self.sums = dict(sums or {})
        """Sum of each loss term over the steps that count."""

    def add(self, result: StepResult) -> None:
        """Add the loss terms of one step."""
        self.steps += 1
        if not result.applied:
            self.skipped += 1
            return
        for name, number in result.numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def values(self) -> dict[str, float]:
        """Return the mean of each term by name, and the number of skipped steps as `skipped` if there are any."""
        means = {name: total / (self.steps - self.skipped) for name, total in self.sums.items()}
        return {**means, "skipped": self.skipped} if self.skipped else means


def training_progress(
    num_steps: int, accelerator: Accelerator, *, images_per_step: float, steps_done: int = 0, steps_later: int = 0
) -> Progress:
    """Create the progress of training steps; the main process shows it."""
    return Progress(
        total=num_steps,
        done=steps_done,
        later=steps_later,
        images_per_step=round(images_per_step),
        hidden=not accelerator.is_main_process,
    )


def take_steps(
    batches: Iterable[Sequence[Any]],
    losses: Losses,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    *,
    stop: StopRequest | None = None,
    max_gradient_norm: float | None = None,
    skip_not_finite: bool = False,
    alone: bool = False,
) -> Iterator[StepResult]:
    """Take one optimizer step for each batch and yield its result.

    Args:
        batches: batches, each split into micro-batches of equal size, whose gradients are averaged.
        losses: micro-batch -> named loss terms, already weighted; the loss is their sum.
        optimizer: prepared by `accelerator`.
        accelerator: provides precision, device and processes.
        stop: a stop request; one that a single process received reaches all processes in the same step.
        max_gradient_norm: maximum norm that the gradient is clipped to; None does not clip.
        skip_not_finite: yield a step whose loss or gradient is not finite as not applied, instead of raising.
        alone: this process trains independently and must not synchronize with others.

    Raises:
        LossNotFinite: the loss or its gradient is not finite; the message has the values of the terms.
    """
    stop = stop or StopRequest()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for pieces in batches:
        optimizer.zero_grad()
        names, of_pieces = _accumulated(pieces, losses, accelerator)
        norm = accelerator.clip_grad_norm_(parameters, math.inf if max_gradient_norm is None else max_gradient_norm)
        if accelerator.scaler is not None:
            norm = torch.zeros_like(norm)  # the fp16 scaler checks gradients itself and lowers its scale
        # The only time that a step waits for the device. A value that is not finite in one process is so in all.
        mine = torch.cat([of_pieces, norm.detach().view(1), norm.new_tensor([float(stop.received)])])
        *values, norm_of_all, stop_requests = (mine if alone else accelerator.reduce(mine, "mean")).tolist()
        stop.agreed = stop_requests > 0
        numbers = dict(zip(names, values, strict=True))
        is_finite = math.isfinite(numbers["loss"]) and math.isfinite(norm_of_all)
        if is_finite:
            optimizer.step()
        elif not skip_not_finite:
            raise LossNotFinite(_not_finite(numbers))
        elif accelerator.scaler is not None:
            accelerator.scaler.update()  # or the next step would fail, as the gradient is already unscaled
        yield StepResult(numbers, applied=is_finite and not optimizer.step_was_skipped)


def _accumulated(pieces: Sequence[Any], losses: Losses, accelerator: Accelerator) -> tuple[list[str], Tensor]:
    """Accumulate the gradient of the micro-batches' mean loss; return names and means of the loss and its terms."""
    per_piece = []
    for piece in pieces:
        with accelerator.autocast():
            terms = losses(piece)
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss / len(pieces))
        per_piece.append(torch.stack([loss, *terms.values()]).detach())
    return ["loss", *terms], torch.stack(per_piece).mean(dim=0)


def _not_finite(numbers: Mapping[str, float]) -> str:
    what = "gradient" if math.isfinite(numbers["loss"]) else "loss"
    values = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if name != "loss")
    return f"the {what} is not finite ({values}). Lower the learning rate or the loss weights."
