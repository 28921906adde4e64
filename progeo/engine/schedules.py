"""Learning-rate schedules as functions of the step, so that no state is needed to resume."""

import math

from torch.optim import Optimizer

from progeo.engine.options import Schedule


def learning_rate_factor(step: int, num_steps: int, *, schedule: Schedule, warmup_steps: int) -> float:
    """Compute the factor of the base learning rate at a step from 0 to num_steps - 1.

    The factor rises linearly to 1 over the warm-up, then stays at 1 (`constant`), or follows half a cosine (`cosine`)
    that would reach 0 at step num_steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every parameter group to its `base_lr` times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
