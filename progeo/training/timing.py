"""How long the steps of a training take, measured on some of them."""

import time
from itertools import islice

from accelerate import Accelerator

from progeo.engine.accelerator import float32_products
from progeo.engine.loop import take_steps, training_progress
from progeo.training.options import TrainerOptions
from progeo.training.task import Task

_STEPS = 10
"""Number of steps that are measured, after one that takes longer."""


def seconds_per_step(task: Task, options: TrainerOptions, accelerator: Accelerator, *, alone: bool = False) -> float:
    """Take ten steps of the first epoch with a learning rate of 0, and measure the time of each.

    Args:
        alone: see `take_steps`.

    Raises:
        ValueError: there is no batch, or the loss is not finite.
    """
    count = min(1 + _STEPS, task.steps_per_epoch)
    ends = [time.monotonic()]
    task.begin_epoch(0)
    for group in task.optimizer.param_groups:
        group["lr"] = 0.0
    products = float32_products(tf32=options.tf32, benchmark=options.cudnn_benchmark)
    with products, training_progress(count, accelerator, images_per_step=task.images_per_step) as bar:
        bar.describe("some steps")
        steps = take_steps(
            islice(task.batches(0, first_step=0), count),
            task.losses,
            task.optimizer,
            accelerator,
            max_gradient_norm=options.max_gradient_norm,
            skip_not_finite=options.skip_not_finite,
            alone=alone,
        )
        for step in steps:
            bar.show(step.result.numbers)
            bar.update()
            ends.append(time.monotonic())
    task.end_epoch(0)
    if len(ends) == 1:
        raise ValueError(f"{task.name(0)}: there is no batch to train on.")
    first = 1 if len(ends) > 2 else 0
    return (ends[-1] - ends[first]) / (len(ends) - 1 - first)
