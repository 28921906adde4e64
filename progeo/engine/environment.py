"""The command and the environment that a result is made with, and a script that makes it again."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from progeo.files import write_json, write_text
from progeo.printable import escaped

ENVIRONMENT = "environment.json"
SCRIPT = "reproduce.sh"
_PACKAGES = (
    "progeo",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "accelerate",
    "numpy",
    "scipy",
    "faiss-gpu",
    "faiss-cpu",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
    "pyarrow",
    "safetensors",
)
_GIVEN: ContextVar[tuple[str, ...]] = ContextVar("given", default=())
"""Words of the command that runs, without `progeo`; none where a function is called from Python."""
_SCRIPT = """#!/bin/sh
# Makes this result again in another folder: sh {script} [OUT [OPTIONS]]. PYTHON names the interpreter (python3).
# {place}
# It was made with {versions}
# on {machine}.
set -eu
python=${{PYTHON:-python3}}
if [ $# -gt 0 ]; then out=$1; shift; else out={out}; fi
{change}"$python" -m progeo --version > /dev/null 2>&1 || {{
    echo "$python does not run progeo: activate the environment that has it, or name its interpreter in PYTHON." >&2
    exit 1
}}
{check}{device}"$python" {command} --out "$out" "$@"
"""
_CHECK = """"$python" -c 'import json, sys; from progeo.data.fingerprints import changed_data
sys.exit(changed_data(json.load(sys.stdin)) or 0)' <<'DATA'
{data}
DATA
"""


@contextmanager
def giving(words: Sequence[str]) -> Iterator[None]:
    """Let results that are written in the block say that these words of a command made them."""
    token = _GIVEN.set(tuple(words))
    try:
        yield
    finally:
        _GIVEN.reset(token)


def environment() -> dict[str, Any]:
    """Return the command line, versions of Python and packages, GPUs, processes and threads."""
    import torch  # not at the head, for the command line to start fast

    words = ["progeo", *_GIVEN.get()] if _GIVEN.get() else sys.argv
    return {
        "command": [word.encode(errors="backslashreplace").decode() for word in words],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
    }


def write_origin(out: Path, command: str, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what the results in the output folder of a command were made with, and how to make them again.

    Args:
        command: name of the command.
        data: fingerprints of its images, by folder.
    """
    write_json(out / ENVIRONMENT, {**environment(), "data": data})
    write_script(out, command, out, data)


def is_given(*words: str) -> bool:
    """Return whether the command that runs begins with these words."""
    return _GIVEN.get()[: len(words)] == words


def write_script(
    folder: Path, command: str, out: Path, data: Mapping[str, Mapping[str, Any]], *, inputs: Sequence[str] = ()
) -> None:
    """Write `SCRIPT`, which makes the results of a folder again, unless another command makes them on its way.

    Args:
        folder: folder of the results.
        command: first word of the command that makes such results.
        out: output folder of the command.
        data: fingerprints of its images, by folder, which the script checks first.
        inputs: options that name what the command found in its output folder.
    """
    if not is_given(command):
        return
    from accelerate.utils import parse_flag_from_env  # not at the head, for the command line to start fast

    where, here = environment(), folder.absolute()
    packages = [f"{name} {number}" for name, number in where["packages"].items() if number is not None]
    gpus = ", ".join(where["gpus"]) or "no GPU"
    is_inside, up = here.is_relative_to(Path.cwd()), os.path.relpath(Path.cwd(), here)
    # Not `accelerate launch`, which starts one process where there is no GPU, however many it is asked for.
    launch = f"-m torch.distributed.run --standalone --nproc_per_node {where['processes']} "
    place = "Folders are relative to the one" if is_inside else "Run it in the folder"
    text = _SCRIPT.format(
        script=SCRIPT,
        place=f"{place} that the command was run in.",
        versions=escaped(", ".join([f"Python {where['python']}", *packages])),
        machine=escaped(f"{where['platform']}, {gpus}, processes: {where['processes']}, threads: {where['threads']}"),
        out=shlex.quote(f"{out}_again"),
        change=f'CDPATH= cd -- "$(dirname -- "$0")"/{shlex.quote(up)}\n' if is_inside else "",
        check=_CHECK.format(data=json.dumps(data)) if data else "",
        device="ACCELERATE_USE_CPU=true " if parse_flag_from_env("ACCELERATE_USE_CPU") else "",
        command=f"{launch if where['processes'] > 1 else ''}-m progeo {shlex.join([*_GIVEN.get(), *inputs])}",
    )
    write_text(folder / SCRIPT, text, errors="surrogateescape")  # bytes of paths that are no UTF-8, as they were given


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
