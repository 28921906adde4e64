"""Learning rates as functions of the step, so that nothing about them needs to be remembered."""

import math
from typing import Literal

from torch.optim import Optimizer

Schedule = Literal["constant", "cosine"]


def learning_rate_factor(step: int, num_steps: int, *, schedule: Schedule, warmup_steps: int) -> float:
    """What the learning rate is multiplied by at a step from 0 to num_steps - 1.

    It rises linearly over the warm-up, then stays (`constant`), or falls to zero along half a cosine (`cosine`).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Give every group of parameters its `base_lr` times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
