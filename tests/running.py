"""Running the scripts and looking at what they leave, for the tests."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from progeo.cli import COMMANDS, training_settings
from progeo.config.parsing import parse_arguments
from progeo.places.catalogue import Catalogue
from progeo.places.filename import parse_columns

ROOT = Path(__file__).parents[1]
_SIGNALLED = """
import os, runpy, sys
end, number, *sys.argv = sys.argv[1:]
def look(event, arguments):
    if event == "os.rename" and os.fspath(arguments[1]).endswith(end):
        os.kill(os.getpid(), int(number))
sys.addaudithook(look)
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that gets a signal just before it gives a finished file or folder its name."""


def parsed(command: str, *words: object) -> dict[str, Any]:
    """The arguments that a command's function is called with."""
    row = COMMANDS[command]
    return parse_arguments(row.load(), [str(word) for word in words], words=row.words, others=training_settings)


def build_catalogue(folder: Path, paths: Sequence[str]) -> Catalogue:
    """A catalogue of `paths`, relative to `folder`, in the order given."""
    columns = parse_columns(paths, ("east", "north", "zone", "heading"))
    return Catalogue(folder, pa.table({"path": pa.array(paths, pa.large_string()), **columns}))


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kill_before(end: str, *command: object, number: signal.Signals = signal.SIGKILL) -> str:
    """Run a script that gets a signal just before what it wrote is called `...end`, and return what it said."""
    words = [sys.executable, "-c", _SIGNALLED, end, int(number), *command]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1), done.stderr
    return done.stderr


def run_on_two_processes(*command: object) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with tempfile.TemporaryDirectory() as folder:  # for what the launcher keeps
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TMPDIR": folder}
        words = [*launch, *map(str, command)]
        result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
