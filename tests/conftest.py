import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

# The tests themselves run side by side; more threads would only fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait must sleep: spinning, those of one process would starve those of another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# onnxruntime would write to the home folder and to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


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


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def as_nobody():
    """A block in which permissions count, also where root runs the tests."""

    @contextmanager
    def block():
        is_root = os.geteuid() == 0
        if is_root:
            os.setresuid(65534, 65534, 0)
        try:
            yield
        finally:
            if is_root:
                os.setresuid(0, 0, 0)

    return block
