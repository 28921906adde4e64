"""Processor cores that this process may use, and the number of worker processes that suits them."""

import math
import os
from contextlib import suppress
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Time that a container may use and the period that it is for, both in microseconds; or `max` without a limit."""
_MAX_WORKERS = 16
"""Each worker process takes memory, and holds two batches that nothing has asked for yet."""


def usable_cores(quota_file: Path = _QUOTA) -> int:
    """Return the number of cores that this process may use, of its machine or its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or one without a limit
        quota, period = map(int, quota_file.read_text(encoding="ascii").split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def default_workers() -> int:
    """Return a number of worker processes: all usable cores, divided among the processes of a training, at most 16."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MAX_WORKERS, usable_cores() // processes))
