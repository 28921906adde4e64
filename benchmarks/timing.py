"""Clocks of the benchmarks."""

import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator


def min_seconds(functions: Sequence[Callable[[], object]], clock: Callable[[], float], *, rounds: int) -> list[float]:
    """Return the minimum time of each function over all rounds, with the functions alternating."""
    seconds = [float("inf")] * len(functions)
    for _ in range(rounds):  # the first round warms up and is soon beaten
        for index, function in enumerate(functions):
            start = clock()
            function()
            seconds[index] = min(seconds[index], clock() - start)
    return seconds


def clock_of_one_core(accelerator: Accelerator) -> Callable[[], float]:
    """Return a clock of the CPU time of this process, or of the wall time until a GPU has finished."""
    return time.process_time if accelerator.device.type == "cpu" else clock_of_device


def clock_of_device() -> float:
    """Return the wall time, after a GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
