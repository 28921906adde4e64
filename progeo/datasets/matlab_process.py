"""Read MATLAB files, v5 (scipy) and v7.3 (HDF5), in a process of their own with bounded memory.

Both libraries crash on some damaged files, or ask for any amount of memory; then only that process ends. Its result is
JSON: texts and numbers, whatever a file makes of it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.hdf5_files import own_values
from progeo.printable import first_line, printable

_START = f"import sys; sys.path[:] = sys.argv[3:]; from {__name__} import write_result; write_result(*sys.argv[1:3])"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_MIN_MEMORY, _MEMORY_PER_BYTE = 2**30, 64
"""Memory that reading may take, in bytes: at least, and for each byte of the file; Pittsburgh's takes 20 per byte."""
_MAX_SECONDS = 600


@dataclass(frozen=True)
class Struct:
    """A struct of a MATLAB file."""

    names: tuple[str, ...]
    """The names of all its fields."""
    texts: dict[str, list[str]]
    """The fields that hold a text or a cell array of texts."""
    numbers: dict[str, np.ndarray]
    """The fields that hold a number or a matrix, float64, in MATLAB's orientation."""


def read_struct(file: Path, name: str) -> Struct:
    """Read the fields of the struct `name` from a MATLAB file.

    Raises:
        ValueError: the file is no MATLAB file, is damaged, or holds no such struct.
    """
    result = _result_of(file, name)
    if "reason" in result:
        raise ValueError(f"{file} is no .mat file, or a truncated one: {result['reason']}.")
    if result["fields"] is None:
        raise ValueError(f"{file} holds no {name}; it holds {', '.join(result['names']) or 'nothing'}.")
    texts = {field: value for field, (value, shape) in result["fields"].items() if shape is None}
    numbers = {
        field: np.array(value, np.float64).reshape(shape)
        for field, (value, shape) in result["fields"].items()
        if shape is not None
    }
    return Struct(tuple(result["names"]), texts, numbers)


def _result_of(file: Path, name: str) -> dict[str, Any]:
    """Start a process that reads the file, with the modules of this one, and return its result."""
    command = [sys.executable, "-c", _START, str(file.absolute()), name, *map(str, sys.path)]
    environment = {**os.environ, **_ONE_THREAD}
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"it could not be read within {_MAX_SECONDS} seconds"}
    if ended.returncode < 0:
        return {"reason": f"its reader was ended by the system ({signal.strsignal(-ended.returncode)})"}
    try:
        return json.loads(ended.stdout)
    except ValueError:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        return {"reason": f"reading it failed, {printable(lines[-1]) if lines else f'with status {ended.returncode}'}"}


def write_result(file: str, name: str) -> None:
    """Read the struct `name` with bounded memory, and write what `read_here` returns to stdout as JSON."""
    import h5py  # noqa: F401, its memory and that of scipy are not counted
    import scipy.io  # noqa: F401

    _limit_memory(max(_MIN_MEMORY, _MEMORY_PER_BYTE * Path(file).stat().st_size))
    try:
        text = json.dumps(read_here(file, name))
    except MemoryError:
        text = json.dumps({"reason": "it needs far more memory than a file of this size should"})
    sys.stdout.write(text)


def read_here(file: str, name: str) -> dict[str, Any]:
    """Return the fields of the struct `name`, or the `reason` why it cannot be read, in types of JSON."""
    import h5py
    import scipy.io

    try:
        if h5py.is_hdf5(file):
            return _hdf5_struct(file, name)
        content = scipy.io.loadmat(file, simplify_cells=True)
        return _struct(content, content.get(name))
    except MemoryError:
        raise
    except Exception as error:  # both libraries raise many kinds of errors for damaged or other files
        return {"reason": first_line(error)}


def _limit_memory(above: int) -> None:
    """Limit the memory of this process to `above` bytes more than now, where the system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + above
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _struct(content: Sequence[str], fields: Any) -> dict[str, Any]:
    """Return the names of a file's content if there is no struct, else those of its fields, and their values."""
    if not isinstance(fields, dict):
        return {"names": [name for name in content if not name.startswith("_")], "fields": None}
    values = {name: _value(value) for name, value in fields.items()}
    return {"names": sorted(fields), "fields": {name: value for name, value in values.items() if value is not None}}


def _value(value: Any) -> tuple[list[Any], tuple[int, ...] | None] | None:
    """Return texts and None, or numbers and their shape; None for a value of another kind."""
    array = np.asarray(value, object) if isinstance(value, list) else np.asarray(value)
    if array.dtype.kind in "biuf":
        return array.astype(np.float64).ravel().tolist(), array.shape
    items = array.ravel().tolist() if array.dtype.kind in "OU" else [None]
    return (items, None) if all(isinstance(item, str) for item in items) else None


def _hdf5_struct(file: str, name: str) -> dict[str, Any]:
    import h5py

    with h5py.File(file) as content:
        struct = content.get(name)
        is_struct = isinstance(struct, h5py.Group)
        return _struct(list(content), {each: _hdf5_value(content, struct[each]) for each in struct} if is_struct else 0)


def _hdf5_value(content: Any, dataset: Any) -> Any:
    """Convert a dataset to a number, a matrix in MATLAB's orientation, a text or a list of texts."""
    import h5py

    values = own_values(content, dataset)
    if values.dtype == h5py.ref_dtype:
        return [_text(own_values(content, content[reference])) for reference in values.ravel()]
    return _text(values) if dataset.attrs.get("MATLAB_class") == b"char" else values.T


def _text(codes: np.ndarray) -> str:
    """Join the numbers of a text, which are units of UTF-16."""
    return "".join(map(chr, codes.ravel())).encode("utf-16", "surrogatepass").decode("utf-16")
