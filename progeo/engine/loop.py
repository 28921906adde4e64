"""Optimizer steps on batches, one result each. Independent of the task."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from msgspec import Meta
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from progeo.engine.accelerator import autocast
from progeo.engine.stopping import StopRequest
from progeo.engine.transfer import fetched
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


class TakenStep:
    """A step whose numbers may still be on their way from the device.

    Args:
        names: names of the loss and its terms.
        read: waits for their values, the norm of the gradient and the number of stop requests.
        stop: gets to know whether a process was asked to stop.
        may_overflow: whether a gradient that is not finite is expected, as with the fp16 scaler.
        may_be_skipped: whether a step that is not finite is skipped instead of raising.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[], list[float]],
        stop: StopRequest,
        *,
        may_overflow: bool,
        may_be_skipped: bool,
    ) -> None:
        self.names, self.read, self.stop = names, read, stop
        self.may_overflow, self.may_be_skipped = may_overflow, may_be_skipped

    @functools.cached_property
    def result(self) -> StepResult:
        """The result, for which the first call waits.

        Raises:
            LossNotFinite: the loss or its gradient is not finite; the message has the values of the terms.
        """
        *values, norm, stop_requests = self.read()
        self.stop.agreed = self.stop.agreed or stop_requests > 0
        numbers = dict(zip(self.names, values, strict=True))
        is_finite, has_overflown = math.isfinite(numbers["loss"]), not math.isfinite(norm)
        is_allowed = self.may_be_skipped or (is_finite and (self.may_overflow or not has_overflown))
        if not is_allowed:
            raise LossNotFinite(_not_finite(numbers))
        return StepResult(numbers, applied=is_finite and not has_overflown)


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
) -> Iterator[TakenStep]:
    """Take one optimizer step for each batch and yield it.

    A step does not wait for the device until its result is asked for: asked for after the next step, it never does.
    Steps that may be skipped wait before the optimizer changes the weights; others change them even if the loss turns
    out not to be finite, which ends the training.

    Args:
        batches: batches, each split into micro-batches of equal size, whose gradients are averaged.
        losses: micro-batch -> named loss terms, already weighted; the loss is their sum.
        optimizer: prepared by `accelerator`.
        accelerator: provides precision, device and processes.
        stop: a stop request; one that a single process received reaches all processes in the same step.
        max_gradient_norm: maximum norm that the gradient is clipped to; None does not clip.
        skip_not_finite: skip a step whose loss or gradient is not finite, instead of raising.
        alone: this process trains independently and must not synchronize with others.
    """
    stop = stop or StopRequest()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler, decides_alone = accelerator.scaler, alone or accelerator.num_processes == 1
    for pieces in batches:
        optimizer.zero_grad()
        names, of_pieces = _accumulated(pieces, losses, accelerator)
        norm = _gradient_norm(optimizer, parameters, accelerator, max_norm=max_gradient_norm)
        # A value that is not finite in one process is so in all.
        mine = torch.cat([of_pieces, norm, torch.full_like(norm, float(stop.received))])
        stop.agreed = stop.agreed or (decides_alone and stop.received)  # several processes have to read it
        read = fetched(mine if decides_alone else accelerator.reduce(mine, "mean"))
        step = TakenStep(names, read, stop, may_overflow=scaler is not None, may_be_skipped=skip_not_finite)
        if not may_skip(accelerator, skip_not_finite=skip_not_finite) or step.result.applied:
            optimizer.step()
        elif scaler is not None:
            scaler.update()  # lowers its scale; the next step would fail, as the gradient is already unscaled
        yield step


def may_skip(accelerator: Accelerator, *, skip_not_finite: bool) -> bool:
    """Return whether steps may be skipped: by option, or by the fp16 scaler, which lowers its scale then."""
    return skip_not_finite or accelerator.scaler is not None


def _gradient_norm(
    optimizer: AcceleratedOptimizer, parameters: Sequence[Tensor], accelerator: Accelerator, *, max_norm: float | None
) -> Tensor:
    """Compute the norm (1,) of the gradient, which is clipped to `max_norm` if that is given."""
    accelerator.unscale_gradients(optimizer)
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([_values(parameter.grad) for parameter in with_gradient])  # type: ignore[arg-type] # each has
    if max_norm is not None:
        clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm.float().view(1)


def _values(gradient: Tensor) -> Tensor:
    """Return the values of a gradient that are not 0, as PyTorch 2.11 has no norm of sparse ones."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _accumulated(pieces: Sequence[Any], losses: Losses, accelerator: Accelerator) -> tuple[list[str], Tensor]:
    """Accumulate the gradient of the micro-batches' mean loss; return names and means of the loss and its terms."""
    per_piece = []
    for piece in pieces:
        with autocast(accelerator):
            terms = losses(piece)
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss / len(pieces))
        per_piece.append(torch.stack([loss, *terms.values()]).detach())
    return ["loss", *terms], torch.stack(per_piece).mean(dim=0)


def _not_finite(numbers: Mapping[str, float]) -> str:
    what = "gradient" if math.isfinite(numbers["loss"]) else "loss"
    values = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if name != "loss")
    return f"the {what} is not finite ({values}). Lower the learning rate or the loss weights."
