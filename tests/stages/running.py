"""Running the scripts and looking at what they leave, for the tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kill_when(done: Callable[[], bool], *command: object, number: signal.Signals = signal.SIGKILL) -> str:
    """Start a script, send it a signal as soon as it has come so far, and return what it said."""
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not done():
            assert process.poll() is None, f"the script ended before it could be stopped: {process.stderr.read()}"
            time.sleep(0.001)
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    return said


def run_on_two_processes(*command: object) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [*launch, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
