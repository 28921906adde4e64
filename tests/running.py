"""Running the scripts and looking at what they leave, for the tests."""

import errno
import functools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from file_events import Plan
from torch.distributed import TCPStore

from progeo.cli import COMMANDS, training_settings
from progeo.config.parsing import parse_arguments
from progeo.places.catalogue import Catalogue
from progeo.places.filename import parse_columns

ROOT = Path(__file__).parents[1]
_SERVER = """
import atexit, gc, json, os, runpy, select, socket, sys, threading, traceback

sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests")]
import accelerate, faiss, jinja2, open_clip, pyarrow.compute, scipy.optimize, scipy.spatial, scipy.stats, torch._dynamo
import progeo.models.backbones.open_clip, progeo.models.backbones.timm, progeo.models.backbones.torchvision
import file_events, progeo.convert.recognition, progeo.datasets.readers, progeo.evaluation.evaluate
import progeo.commands.train_encoder, progeo.commands.train_prompts, progeo.export.formats
import progeo.localization.place_index

gc.collect()
gc.freeze()
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:  # who started it has ended
        raise SystemExit
    connection, _ = listener.accept()
    if not os.fork():
        break
    connection.close()
listener.close()
os.setsid()
stream = connection.makefile("rw")
print(os.getpid(), file=stream, flush=True)
for line in stream:
    request = json.loads(line)
    if isinstance(request, int):
        _, status = os.waitpid(request, os.WUNTRACED)
        print("null" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status), file=stream, flush=True)
        continue
    words, environments, log, plan = request
    children = []
    for environment in environments:
        children.append(os.fork())
        if not children[-1]:
            break
    else:
        print(json.dumps(children), file=stream, flush=True)
        continue
    break
else:
    raise SystemExit

os.environ.update(environment)
output = os.open(log, os.O_WRONLY | os.O_APPEND)
for stream in (1, 2):
    os.dup2(output, stream)
sys.argv = words
if plan is not None:
    file_events.install(file_events.Plan(**plan))
code = 0
try:
    runpy.run_path(words[0], run_name="__main__")
except SystemExit as end:
    code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
except BaseException:
    code = 1
    traceback.print_exc()
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
os._exit(code)  # freeing all that was imported would take longer than most commands
"""
"""Runs scripts in children of a process that has imported what takes seconds to import and has done nothing else.

It imports once for all processes that run tests: each that connects has a child of it as its server, which tells its
own number, then answers the numbers of the children that it started, and the exit code of a child, or null once it is
stopped.
"""
_STARTED: list[subprocess.Popen[bytes]] = []
"""The server, in the process that started it."""
_TIMEOUT_S = 600
_MEASURED = ("images_per_s", "waited_share", "memory_bytes", "device_memory_bytes", "seconds")


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


def without_digests(folder: Path, description: str = "model.json") -> None:
    """Have files that belong together be read without their digests, to test what is checked besides."""
    metadata = json.loads((folder / description).read_text())
    del metadata["files"]
    (folder / description).write_text(json.dumps(metadata))


def metrics_of(folder: Path) -> list[dict]:
    """The rows of metrics of a run, without measured times and memory."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in _MEASURED} for row in rows]


def available(terminal: int) -> str:
    """What a terminal got; empty if it gets nothing for a while."""
    return os.read(terminal, 10_000).decode() if select.select([terminal], [], [], 0.2)[0] else ""


@dataclass(frozen=True)
class Started:
    """A script that runs, or has ended."""

    process: int
    log: Path

    def wait(self) -> int | None:
        """Wait until it ends and return its exit code, or None if it was stopped."""
        code = _answer(self.process)
        assert code != "", f"It took more than {_TIMEOUT_S} s: {self.said}"
        return json.loads(code)

    def proceed(self) -> int:
        """Let it go on after it was stopped, and return its exit code."""
        os.kill(self.process, signal.SIGCONT)
        code = self.wait()
        assert code is not None
        return code

    @property
    def said(self) -> str:
        """What it wrote to stdout and stderr so far."""
        return self.log.read_text(errors="replace")


def start(
    *command: object, plan: Plan | None = None, environments: Sequence[Mapping[str, str]] = ({},)
) -> list[Started]:
    """Start a script in a process for each of `environments`, which all write to one log."""
    descriptor, log = tempfile.mkstemp(prefix="progeo_log_")
    os.close(descriptor)
    request = [list(map(str, command)), list(environments), log, None if plan is None else asdict(plan)]
    return [Started(process, Path(log)) for process in json.loads(_answer(request) or "[]")]


def killed_at(number: int, function: Callable[[], object]) -> bool:
    """Call a function in a child that is killed before its change `number` of a folder; whether it came to it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [number]

    def look(event: str, _: object) -> None:
        if event in ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.symlink"):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    try:
        function()
    finally:
        os._exit(0)


def kill_before(end: str, *command: object, number: signal.Signals = signal.SIGKILL) -> str:
    """Run a script that gets a signal just before what it wrote is called `...end`, and return what it said."""
    plan = Plan("/", matching=rf"^rename .*{re.escape(end)}$", act=number.name)
    (code,), said = _run_script(command, plan=plan)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number), said
    return said


def run_on_two_processes(*command: object) -> None:
    """Run a script on two processes, with the variables that `torchrun` sets."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "ACCELERATE_USE_CPU": "true"}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}  # the store is there already
    common = {**address, **agent, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    codes, said = _run_script(command, [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"])
    assert codes == [0, 0], said


def run_with_torchrun(*command: object) -> None:
    """Do the same by `torchrun` itself, whose processes import everything anew."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with tempfile.TemporaryDirectory() as folder:  # for what the launcher keeps
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TMPDIR": folder}
        words = [*launch, *map(str, command)]
        result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert result.returncode == 0, result.stderr


def _run_script(
    command: Sequence[object], environments: Sequence[Mapping[str, str]] = ({},), *, plan: Plan | None = None
) -> tuple[list[int | None], str]:
    """Run a script in a process for each of `environments`; return their exit codes and what they said."""
    started = start(*command, plan=plan, environments=environments)
    assert started, "The scripts could not be started."
    codes, said = [each.wait() for each in started], started[0].said
    started[0].log.unlink()
    return codes, said


def _answer(request: object) -> str:
    """Send a request to the server and return its answer; empty if it takes too long, or ended."""
    number, connection, stream = _server()
    print(json.dumps(request), file=stream, flush=True)
    if not select.select([connection], [], [], _TIMEOUT_S)[0]:
        os.killpg(number, signal.SIGKILL)
    return stream.readline()


@functools.cache
def _server() -> tuple[int, socket.socket, TextIO]:
    """Connect to the server of this run of the tests, which the first process that needs it starts."""
    address = f"\0progeo_tests_{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    deadline = time.monotonic() + _TIMEOUT_S
    with socket.socket(socket.AF_UNIX) as listener, suppress(OSError):  # another process has bound the address
        listener.bind(address)
        listener.listen()
        _STARTED.append(_importing(listener))
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(address) == errno.ECONNREFUSED and time.monotonic() < deadline:
        time.sleep(0.01)  # the other process does not listen yet
    stream = connection.makefile("rw")
    return int(stream.readline()), connection, stream


def _importing(listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start the server; it ends with this process, as its stdin does."""
    number = listener.fileno()
    words = [sys.executable, "-c", _SERVER, str(number)]
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdin=subprocess.PIPE, pass_fds=[number])
