"""The error when memory runs out: of a device, of the machine, or shared by worker processes."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from progeo.engine.stopping import Terminated

_SHARED = re.compile(r"shared memory|/dev/shm|</?torch_\d+|killed by signal: Bus error")
"""What PyTorch says when worker processes cannot share a batch."""
_KILLED = re.compile(r"DataLoader worker .*killed by signal: Killed")
"""What PyTorch says when the system has killed a worker process, as Linux does when there is no memory."""
_TERMINATED = re.compile(r"DataLoader worker .*killed by signal: Terminated")
_PHRASES = (
    "MemoryError",  # in a worker process, where the error may have another type
    "bad_alloc",
    "alloc fail",  # faiss on a GPU
    "can't start new thread",
    "Failed to launch worker thread",  # Arrow
)


@contextmanager
def explaining_out_of_memory(advice: str) -> Iterator[None]:
    """Turn an out-of-memory error of a device, the machine or a worker process into a `MemoryError` of one sentence.

    Args:
        advice: what to do; where worker processes lack memory, `num_workers` is named instead.

    Raises:
        MemoryError: memory ran out.
        Terminated: a worker process got SIGTERM, as all processes of a command do, just before this one.
    """
    try:
        yield
    except Exception as error:  # libraries have no common kind of it
        text = f"{error}\n{error.__cause__ or ''}".strip() or "no memory"
        if isinstance(error, MemoryError) and text.startswith("Out of memory. "):  # explained already
            raise
        lines = text.splitlines()
        first, last = lines[-1 if "Original Traceback" in text else 0], lines[-1]  # of a worker process, the last
        if _TERMINATED.search(text):
            raise Terminated from None
        if _SHARED.search(text) and not isinstance(error, ValueError | OSError):
            raise MemoryError(
                f"Out of memory. The worker processes cannot share a batch: set `num_workers` to 0, or have more in "
                f"/dev/shm, such as docker run --shm-size 8g. ({last})"
            ) from None
        if _KILLED.search(text):
            raise MemoryError(
                f"Out of memory. The system has killed a worker process: set a lower `num_workers`. ({first})"
            ) from None
        if not _is_out_of_memory(error):
            raise
        raise MemoryError(f"Out of memory. {advice} ({first})") from None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, ValueError | OSError):
        return isinstance(error, OSError) and error.errno == errno.ENOMEM
    from accelerate.utils.memory import should_reduce_batch_size  # takes a second, which only an error is worth

    return should_reduce_batch_size(error) or any(phrase in str(error) for phrase in _PHRASES)
