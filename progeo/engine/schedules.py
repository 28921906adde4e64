"""Learning-rate schedules as functions of the step, so that no state is needed to resume."""

import math

from torch.optim import Optimizer

from progeo.engine.options import Schedule


def learning_rate_factor(
    step: int,
    num_steps: int,
    *,
    schedule: Schedule,
    warmup_steps: int = 0,
    steps_per_epoch: int = 1,
    decayed: float = 1.0,
    end_factor: float = 0.0,
    decay_steps: int | None = None,
) -> float:
    """Compute the factor of the base learning rate at a step from 0 to num_steps - 1.

    Args:
        step: number of steps done.
        num_steps: number of steps of the whole training.
        schedule: `constant` stays at 1; `cosine` follows half a cosine that would reach 0 at num_steps; `cosine_epochs`
            does so only at the beginning of each epoch; `linear` falls in a straight line to `end_factor` and stays
            there; all others follow `decayed`.
        warmup_steps: steps over which the factor first rises linearly to 1.
        steps_per_epoch: steps of one epoch.
        decayed: the product of the decays so far, of `step`, `plateau` and `loss_plateau`.
        end_factor: the last factor of `linear`.
        decay_steps: steps after the warm-up over which `linear` falls; None takes all.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "cosine_epochs":
        step -= step % steps_per_epoch
    done, all_steps = max(0, step - warmup_steps), max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return 1 - (1 - end_factor) * min(1, done / (decay_steps or all_steps))
    return 0.5 * (1 + math.cos(math.pi * done / all_steps)) if schedule.startswith("cosine") else decayed


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every parameter group to its `base_lr`, times a factor unless its `constant` is true."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * (1.0 if group.get("constant") else factor)
