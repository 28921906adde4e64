import os
import resource
from contextlib import contextmanager

import pytest

# The tests themselves run side by side; more threads would only fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait must sleep: spinning, those of one process would starve those of another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def full_disk():
    """A block in which no file can grow beyond 100 kB, as if the disk were full."""

    @contextmanager
    def block():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return block
