"""Read files of `torch.save` and TorchScript archives without running code in them."""

import mmap
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progeo.models.weight_files.unpickler import Refused, Stub, StubUnpickler, printable

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_START_OF_ARCHIVE = b"PK\3\4"
_START_OF_PICKLE = b"\x80"
_SCRIPTED = "__torch__."
_LONGEST_NAME = 1000


def read_torch_file(path: Path) -> Any:
    """Read a file of `torch.save` or `torch.jit.save`: plain values, tensors on the CPU, and stubs for other objects.

    Of a TorchScript archive only the values of its modules are read, not its code.

    Raises:
        ValueError: a file that is corrupt, of another kind, or that refers to functions that run commands or code.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        if not path.stat().st_size:
            raise ValueError("it is empty")
        # Memory-mapped, so that reading with a corrupt, too large length stops at the end and allocates nothing.
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            if mapped[:4] == _START_OF_ARCHIVE:
                raise ValueError("it breaks off")
            if mapped[:1] != _START_OF_PICKLE:
                raise ValueError("it does not begin as one")
            return _read_legacy(mapped)
    except Refused as refused:
        raise ValueError(f"{path} is refused, nothing of it was run: {refused}.") from None
    except OSError:
        raise
    except Exception as error:  # a file of another kind can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path} is not a complete file of PyTorch: {printable(reason)}.") from None


def is_module(value: Any) -> bool:
    """Return whether a value is a module of TorchScript, or an `nn.Module` that was pickled as an object."""
    if not isinstance(value, Stub):
        return False
    return f"{type(value).kind}.".startswith(_SCRIPTED) or isinstance(vars(value).get("_parameters"), Mapping)


def tensors_of(module: Stub) -> dict[str, Tensor]:
    """Collect all tensors of a module and its submodules by dotted names."""
    found: dict[str, Tensor] = {}
    waiting, seen = [("", module)], {id(module)}
    while waiting:
        prefix, part = waiting.pop()
        for name, value in _members(part):
            if isinstance(value, Tensor):
                found[prefix + name] = value
            elif isinstance(value, Stub) and id(value) not in seen and len(prefix) < _LONGEST_NAME:
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return found


def _members(module: Stub) -> list[tuple[str, Any]]:
    """List the parameters, persistent buffers and submodules of an `nn.Module`, or all attributes of another stub."""
    values = vars(module)
    if not isinstance(values.get("_parameters"), Mapping):
        return list(values.items())
    passing = values.get("_non_persistent_buffers_set")
    rooms = [values.get(room) for room in ("_parameters", "_buffers", "_modules")]
    return [
        (name, value)
        for room in rooms
        if isinstance(room, Mapping)
        for name, value in room.items()
        if isinstance(name, str) and not (isinstance(passing, list) and name in passing)
    ]


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is an ordinary zip archive, without the data.pkl of PyTorch")
        folder, room = pickles[0].removesuffix("data.pkl"), path.stat().st_size

        def record(name: str) -> bytes:
            nonlocal room
            found = archive.getinfo(f"{folder}{name}")
            if found.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its {name} is compressed, which PyTorch never does")
            room -= found.file_size
            if room < 0:
                raise ValueError("it is shorter than its records")
            return archive.read(found)

        if f"{folder}byteorder" in archive.namelist() and record("byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, _: int) -> Tensor:
            if key not in storages:
                data = bytearray(record(f"data/{key}"))
                storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return storages[key]

        return StubUnpickler(BytesIO(record("data.pkl")), storage).load()


def _read_legacy(stream: mmap.mmap) -> Any:
    """Read the format of `torch.save` before PyTorch 1.6: a sequence of pickles, then the values of all storages."""
    if _plain(stream) != _LEGACY_MAGIC or _plain(stream) != _LEGACY_VERSION:
        raise ValueError("it does not begin as one")
    system = _plain(stream)
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    storages: dict[str, Tensor] = {}
    room = len(stream)

    def storage(dtype: torch.dtype, key: str, length: int) -> Tensor:
        nonlocal room
        if key not in storages:
            room -= length * dtype.itemsize
            if room < 0:
                raise ValueError("it is shorter than its tensors")
            storages[key] = torch.empty(length, dtype=dtype)
        return storages[key]

    value = StubUnpickler(stream, storage).load()
    keys = _plain(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it does not name its tensors")
    for key in keys:
        values = storages[key]
        (length,) = struct.unpack("<q", stream.read(8))
        data = bytearray(stream.read(values.numel() * values.itemsize))
        if length != len(values) or len(data) < values.numel() * values.itemsize:
            raise ValueError("it is shorter than its tensors")
        if data:
            values.copy_(torch.frombuffer(data, dtype=values.dtype))
    return value


def _plain(stream: mmap.mmap) -> Any:
    """Read a pickle that must not contain tensors."""

    def no_storage(dtype: torch.dtype, key: str, length: int) -> Tensor:
        raise ValueError("tensors where there should be none")

    return StubUnpickler(stream, no_storage).load()
