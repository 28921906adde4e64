"""The training loop: batches in, steps of an optimizer, means of the loss terms out. Knows no task."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

Step = Callable[[int, Any], Mapping[str, Tensor]]


def progress_bar(num_steps: int, accelerator: Accelerator, *, images_per_step: int, steps_done: int = 0) -> tqdm:
    """A bar over the steps of a training, in images, shown by the main process on a terminal."""
    hidden = None if accelerator.is_main_process else True  # None: shown on a terminal only
    return tqdm(
        total=num_steps, initial=steps_done, unit="img", unit_scale=images_per_step, leave=False, disable=hidden
    )


def train_epoch(
    batches: Iterable[Any],
    step: Step,
    optimizer: Optimizer,
    accelerator: Accelerator,
    *,
    bar: tqdm,
    description: str,
    max_gradient_norm: float | None = None,
) -> dict[str, float]:
    """Run one epoch.

    Args:
        batches: what `step` takes.
        step: (number of the step, batch) -> named loss terms, already weighted; the loss is their sum.
        optimizer: prepared by `accelerator`.
        accelerator: gives precision and device.
        bar: moved on by one each step, with the means of the terms so far.
        description: what the bar and errors call this epoch.
        max_gradient_norm: clip the gradient to this length; None does not clip.

    Returns:
        The mean of each term, and of their sum as `loss`.

    Raises:
        ValueError: no batch, or a loss that is not finite, with its terms.
    """
    bar.set_description(description)
    sums: dict[str, float] = {}
    count = 0
    for count, batch in enumerate(batches, start=1):
        with accelerator.autocast():
            terms = step(count - 1, batch)
        loss = torch.stack(list(terms.values())).sum()
        numbers = torch.stack([loss, *terms.values()]).tolist()  # the one time a step waits for the device
        if not math.isfinite(numbers[0]):
            raise ValueError(_not_finite(description, count, terms))
        optimizer.zero_grad()
        accelerator.backward(loss)
        if max_gradient_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            accelerator.clip_grad_norm_(parameters, max_gradient_norm)
        optimizer.step()
        for name, number in zip(("loss", *terms), numbers, strict=True):
            sums[name] = sums.get(name, 0.0) + number
        bar.set_postfix({name: f"{total / count:.3f}" for name, total in sums.items()}, refresh=False)
        bar.update()
    if not count:
        raise ValueError(f"{description}: there is no batch to train on.")
    return {name: total / count for name, total in sums.items()}


def _not_finite(description: str, step: int, terms: Mapping[str, Tensor]) -> str:
    values = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
    return (
        f"{description}, step {step}: the loss is not finite ({values}). Lower the learning rate or the loss weights."
    )
