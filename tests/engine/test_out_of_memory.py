import errno
import os
import signal

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from progeo.data.loaders import build_loader, read_batches
from progeo.engine.out_of_memory import explaining_out_of_memory
from progeo.engine.stopping import Terminated


def test_out_of_memory_ends_with_the_advice():
    with pytest.raises(MemoryError, match=r"^Out of memory\. Less\. \(.*allocate"), explaining_out_of_memory("Less."):
        torch.empty(2**55)
    with pytest.raises(MemoryError, match=r"^Out of memory\. Less\. \(.*llocate"), explaining_out_of_memory("Less."):
        np.empty(2**55)
    with pytest.raises(MemoryError, match=r"^Out of memory\. Less\. \(.*bad_alloc"), explaining_out_of_memory("Less."):
        faiss.IndexFlatL2(1 << 30).reconstruct_n(0, 0), faiss.Float32Vector().resize(2**59)
    with pytest.raises(MemoryError, match=r"^Out of memory\. Less\. \(no memory\)"), explaining_out_of_memory("Less."):
        raise MemoryError
    with pytest.raises(MemoryError, match=r"^Out of memory\. Less\. "), explaining_out_of_memory("Less."):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), pa.ArrowException("Unknown error: Failed to launch worker thread: none")],
)
def test_no_memory_for_a_thread_is_out_of_memory(error):
    with pytest.raises(MemoryError, match=r"^Out of memory\. Less\. "), explaining_out_of_memory("Less."):
        raise error


def test_the_advice_closest_to_the_error_is_given():
    with (
        pytest.raises(MemoryError, match=r"^Out of memory\. Less\. "),
        explaining_out_of_memory("Nothing."),
        explaining_out_of_memory("Less."),
    ):
        torch.empty(2**55)


@pytest.mark.parametrize(
    "error", [ValueError("no memory"), OSError(errno.ENOSPC, "full"), RuntimeError("shapes cannot be multiplied")]
)
def test_other_failures_are_left_alone(error):
    with pytest.raises(type(error), match=str(error).replace("[", "\\[")), explaining_out_of_memory("Less."):
        raise error


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (
            signal.SIGBUS,
            MemoryError,
            r"^Out of memory\. The worker processes cannot share a batch: set `num_workers` to 0",
        ),
        (signal.SIGKILL, MemoryError, r"^Out of memory\. The system has killed a worker process: set a lower `num_w"),
        (signal.SIGTERM, Terminated, "^$"),
        (signal.SIGSEGV, RuntimeError, "exited unexpectedly"),
    ],
)
def test_a_worker_that_dies_of_no_memory_is_out_of_memory(number, kind, sentence):
    class Dying(torch.utils.data.Dataset):
        def __getitem__(self, row):
            if number == signal.SIGTERM:  # which workers handle otherwise
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with pytest.raises(kind, match=sentence), explaining_out_of_memory("Less."):
        list(read_batches(build_loader(Dying(), [[0]], num_workers=1)))


def test_no_memory_in_a_worker_is_out_of_memory():
    class Large(torch.utils.data.Dataset):
        def __getitem__(self, row):
            return np.empty(2**55)

    sentence = r"^Out of memory\. Less\. \(.*Unable to allocate"
    with pytest.raises(MemoryError, match=sentence), explaining_out_of_memory("Less."):
        list(read_batches(build_loader(Large(), [[0]], num_workers=1)))


def test_a_worker_that_cannot_share_a_batch_is_out_of_memory():
    class Full(torch.utils.data.Dataset):
        def __getitem__(self, row):
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left (28)")

    sentence = r"^Out of memory\. The worker processes cannot share a batch: .*torch_7_1_0>: No space left"
    with pytest.raises(MemoryError, match=sentence), explaining_out_of_memory("Less."):
        list(read_batches(build_loader(Full(), [[0]], num_workers=1)))
