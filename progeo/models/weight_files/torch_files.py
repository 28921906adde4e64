"""Read files of `torch.save` and TorchScript archives without running code in them.

`torch.load(weights_only=True)` reads them, with an inert stub for every name that it does not know.
"""

import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from progeo.printable import first_line, printable

_START_OF_ARCHIVE = b"PK\3\4"
_START_OF_PICKLE = b"\x80"
_PROTOCOL = 2
_LEGACY_PICKLES = 4
"""Number of pickles up to the content in the format before PyTorch 1.6: magic number, version, system and content."""
_SCRIPTED = "__torch__."
_LONGEST_NAME = 1000
_RUN_CODE = frozenset(
    (
        *(f"builtins.{name}" for name in ("eval", "exec", "execfile", "compile", "apply", "__import__", "open")),
        *("os", "posix", "nt", "sys", "subprocess", "multiprocessing", "pty", "shutil", "socket", "webbrowser"),
        *("importlib", "imp", "runpy", "code", "pip", "pdb", "timeit", "ctypes", "io.open", "_io.open"),
        *("types.FunctionType", "types.CodeType", "pickle", "_pickle", "marshal", "dill", "cloudpickle", "numpy.load"),
        *("torch.load", "torch.hub", "torch.jit.load", "torch.serialization.load", "torch.storage._load_from_bytes"),
    )
)
"""Modules and names that run commands or code, or access files and networks, including all names below them."""


class _RunsCodeError(ValueError):
    """A file refers to a name that runs commands or code."""


class Stub:
    """An inert stand-in for an object of another class: it holds the stored attributes and no behavior."""

    kind = ""
    """Full name of the class in the file."""

    def __new__(cls, *_: Any, **__: Any) -> "Stub":
        """Create an empty stub; arguments in the file for the class or function are dropped."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Store the attributes, and those in slots, whose names are strings."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.__dict__.update({name: value for name, value in part.items() if isinstance(name, str)})


def _first(value: Any, *_: Any) -> Any:
    return value


class _Dictionary:
    """A stand-in for subclasses of dictionaries, as `torch.load` fills exact dictionaries only."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Create an empty ordered dictionary."""
        return OrderedDict()


class _List:
    """A stand-in for subclasses of lists and for queues, as `torch.load` fills exact lists only."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Create an empty list."""
        return []


_REPLACEMENTS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "builtins.getattr": lambda *_: Stub,  # an enumeration member, a method or a nested class
        "torch.jit._pickle.restore_type_tag": _first,
        **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("bool", "double", "int", "tensor")},
    }
)
"""Inert replacements of functions whose results are no stubs."""
_FILLED_BY = MappingProxyType({"SETITEM": _Dictionary, "SETITEMS": _Dictionary, "APPEND": _List, "APPENDS": _List})
"""Operations that fill a collection, and the class that replaces the class of their collection."""
_KEEP_TARGET = ("NEWOBJ", "REDUCE", "BUILD", *_FILLED_BY)
"""Operations whose result is an instance of the class that they pop from the stack, or the popped instance itself."""


def read_torch_file(path: Path) -> Any:
    """Read a file of `torch.save` or `torch.jit.save`: plain values, tensors on the CPU, and stubs for other objects.

    Of a TorchScript archive only the values of its modules are read, not its code.

    Raises:
        ValueError: a file that is corrupt, of another kind, or that refers to functions that run commands or code.
    """
    try:
        file, stubs = _opened(path)
        with torch.serialization.safe_globals([Stub, *((stub, name) for name, stub in stubs.items())]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except _RunsCodeError as error:
        raise ValueError(f"{path} is refused, nothing of it was run: {error}.") from None
    except (pickle.UnpicklingError, TypeError) as error:
        cause = error.__context__ or error  # torch wraps it in advice that does not apply
        raise ValueError(
            f"{path} cannot be read safely: {first_line(cause)}. Load it in the program that wrote it, and save the "
            f"state dict alone with torch.save."
        ) from None
    except Exception as error:  # a file of another kind can fail in any way
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(f"{path} is not a complete file of PyTorch: {first_line(error)}.") from None


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
    non_persistent = values.get("_non_persistent_buffers_set")
    mappings = [values.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
    return [
        (name, value)
        for mapping in mappings
        if isinstance(mapping, Mapping)
        for name, value in mapping.items()
        if isinstance(name, str) and not (isinstance(non_persistent, set) and name in non_persistent)
    ]


def _opened(path: Path) -> tuple[Path | BytesIO, dict[str, Callable[..., Any]]]:
    """Return the file, or a copy in memory that `torch.load` accepts, and the stubs for its classes and functions."""
    stubs: dict[str, Callable[..., Any]] = {}
    if zipfile.is_zipfile(path):
        return _opened_archive(path, stubs), stubs
    if not path.stat().st_size:
        raise ValueError("it is empty")
    # Memory-mapped, so that reading with a corrupt, too large length stops at the end and allocates nothing.
    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as mapped:
        if mapped[:4] == _START_OF_ARCHIVE:
            raise ValueError("it is truncated")
        if mapped[:1] != _START_OF_PICKLE:
            raise ValueError("it does not begin as one")
        for _ in range(_LEGACY_PICKLES):
            _add_stubs(mapped, stubs)
    return path, stubs


def _opened_archive(path: Path, stubs: dict[str, Callable[..., Any]]) -> Path | BytesIO:
    """Return the archive; of a TorchScript archive, which `torch.load` refuses, a copy of its values without code."""
    with zipfile.ZipFile(path) as archive:
        records = archive.namelist()
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is an ordinary zip archive, without the data.pkl of PyTorch")
        folder = pickles[0].removesuffix("data.pkl")
        kinds = (f"{folder}data", f"{folder}version", f"{folder}byteorder")
        values_of = [entry for entry in archive.infolist() if entry.filename.startswith(kinds)]
        if sum(entry.file_size for entry in values_of) > path.stat().st_size:  # PyTorch does not compress them
            raise ValueError("its records are larger than the file")
        if corrupt := archive.testzip():  # torch.load does not verify the checksums
            raise ValueError(f"its {corrupt.partition('/')[2]} is corrupt")
        _add_stubs(BytesIO(archive.read(pickles[0])), stubs)
        if f"{folder}constants.pkl" not in records:
            return path
        values = BytesIO()
        with zipfile.ZipFile(values, "w") as copy:
            for entry in values_of:
                copy.writestr(entry.filename, archive.read(entry))
        values.seek(0)
        return values


def _add_stubs(stream: Any, stubs: dict[str, Callable[..., Any]]) -> None:
    """Add a stub for every class and function in a pickle, by the full name under which `torch.load` looks it up.

    The stack of the pickle is followed to find the classes whose instances are filled as dictionaries or lists.
    """
    stack: list[str | None] = []
    marks: list[int] = []
    memo: dict[int, str | None] = {}
    former: dict[str, str] = {}
    operations: Iterable[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(stream)
    for operation, argument, _ in operations:
        name = operation.name
        if name == "PROTO" and argument != _PROTOCOL:
            raise pickle.UnpicklingError(f"its pickle protocol is {argument}, that of PyTorch is {_PROTOCOL}")
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
            full = f"{module}.{attribute}"
            if _runs_code(full):
                raise _RunsCodeError(f"it asks for {printable(full)}, which weights do not need")
            stubs.setdefault(full, _REPLACEMENTS.get(full) or type("Stub", (Stub,), {"kind": full}))
            former[argument.replace(" ", ".")] = full
            stack.append(full)
        else:
            taken = len(operation.stack_before)
            if pickletools.markobject in operation.stack_before:
                del stack[marks.pop() :]
                taken -= 2  # the mark and the slice above it
            target = stack[len(stack) - taken] if name in _KEEP_TARGET else None
            if target is not None and name in _FILLED_BY:
                stubs[target] = _FILLED_BY[name]
            del stack[len(stack) - taken :]
            stack += [target] * len(operation.stack_after)
    # PyTorch renames fewer of the names of Python 2 than Python does; which of them depends on its version.
    stubs.update({name: stubs[full] for name, full in former.items()})


def _runs_code(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: end + 1]) in _RUN_CODE for end in range(len(parts)))
