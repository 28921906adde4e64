"""Clocks of the benchmarks."""

import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator


def min_seconds(functions: Sequence[Callable[[], object]], clock: Callable[[], float], *, rounds: int) -> list[float]:
    """The least time that each function took, all taken in turns."""
    seconds = [float("inf")] * len(functions)
    for _ in range(rounds):  # the first round warms up and is soon beaten
        for index, function in enumerate(functions):
            start = clock()
            function()
            seconds[index] = min(seconds[index], clock() - start)
    return seconds


def clock_of_one_core(accelerator: Accelerator) -> Callable[[], float]:
    """CPU time of this process, or of a GPU the wall time until it is done."""
    return time.process_time if accelerator.device.type == "cpu" else clock_of_device


def clock_of_device() -> float:
    """Wall time, once a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
