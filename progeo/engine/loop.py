"""The training loop: batches in, steps of an optimizer, means of the loss terms out. Knows no task."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

Step = Callable[[int, Any], Mapping[str, Tensor]]


def train_epoch(
    batches: Iterable[Any],
    step: Step,
    optimizer: Optimizer,
    accelerator: Accelerator,
    *,
    num_batches: int,
    description: str,
    max_gradient_norm: float | None = None,
) -> dict[str, float]:
    """Run one epoch.

    Args:
        batches: what `step` takes.
        step: (number of the step, batch) -> named loss terms, already weighted; the loss is their sum.
        optimizer: prepared by `accelerator`.
        accelerator: gives precision and device.
        num_batches: length of the progress bar.
        description: what the progress bar says.
        max_gradient_norm: clip the gradient to this length; None does not clip.

    Returns:
        The mean of each term, and of their sum as `loss`.

    Raises:
        ValueError: no batch, or a loss that is not finite, with its terms.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    hidden = None if accelerator.is_main_process else True  # None: shown on a terminal only
    with tqdm(batches, desc=description, total=num_batches, leave=False, disable=hidden) as bar:
        for count, batch in enumerate(bar, start=1):
            with accelerator.autocast():
                terms = step(count - 1, batch)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise ValueError(_not_finite(description, count, terms))
            optimizer.zero_grad()
            accelerator.backward(loss)
            if max_gradient_norm is not None:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                accelerator.clip_grad_norm_(parameters, max_gradient_norm)
            optimizer.step()
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0) + value.detach()
            bar.set_postfix({name: f"{total.item() / count:.3f}" for name, total in sums.items()}, refresh=False)
    if not count:
        raise ValueError(f"{description}: there is no batch to train on.")
    return {name: total.item() / count for name, total in sums.items()}


def _not_finite(description: str, step: int, terms: Mapping[str, Tensor]) -> str:
    values = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
    return (
        f"{description}, step {step}: the loss is not finite ({values}). Lower the learning rate or the loss weights."
    )
