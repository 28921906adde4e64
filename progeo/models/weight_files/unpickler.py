"""Safe unpickler: names in a pickle never resolve to real classes or functions, and none of them is called."""

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from mmap import mmap
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

DTYPES = MappingProxyType(
    {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "UntypedStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
        "QInt8Storage": torch.int8,  # of quantized tensors, which are stubs
        "QUInt8Storage": torch.uint8,
        "QInt32Storage": torch.int32,
    }
)
_RUN_CODE = frozenset(
    (
        *(f"builtins.{name}" for name in ("eval", "exec", "execfile", "compile", "apply", "__import__", "reload")),
        *(f"builtins.{name}" for name in ("setattr", "delattr", "globals", "locals", "vars", "breakpoint")),
        *(f"builtins.{name}" for name in ("open", "file", "input", "exit", "quit")),
        *("os", "posix", "nt", "subprocess", "_posixsubprocess", "_winapi", "multiprocessing", "asyncio", "pty"),
        *("shutil", "webbrowser", "sys", "importlib", "imp", "runpy", "ctypes", "_ctypes", "code", "codeop"),
        *("pip", "ensurepip", "venv", "distutils", "setuptools", "pydoc", "lib2to3", "idlelib"),
        *("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib.load", "pandas.read_pickle"),
        *("bdb", "pdb", "profile", "cProfile", "timeit", "trace", "doctest", "types.CodeType", "types.FunctionType"),
        *("operator.attrgetter", "operator.methodcaller", "io.open", "io.FileIO", "_io.open", "_io.FileIO"),
        *("_operator.attrgetter", "_operator.methodcaller", "io.open_code", "_io.open_code", "pkgutil.resolve_name"),
        *("_frozen_importlib", "_frozen_importlib_external", "_imp", "zipimport", "popen2", "platform.popen"),
        *("codecs.open", "socket", "_socket", "socketserver", "ssl", "ftplib", "smtplib", "telnetlib", "xmlrpc"),
        *("http.client", "http.server", "urllib.request", "requests", "aiohttp", "httpx"),
        *("numpy.load", "numpy.f2py", "numpy.testing", "torch.load", "torch.hub", "torch.package"),
        *("torch.serialization.load", "torch.serialization._load", "torch.storage._load_from_bytes"),
        *("torch.jit.load", "torch.utils.cpp_extension", "torch._inductor", "torch.ops", "torch.classes"),
    )
)
"""Modules and names that run commands or code, or access files and networks, including all names below them."""
_MAX_NAMES = 10_000
_DISPATCH = pickle._Unpickler.dispatch
_LEFT_OUT = b"".join(
    (*(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.DICT, pickle.LONG4),)
)
_NOT_ADMITTED = "it asks for {}, which weights do not need and which is not admitted"
_LONGEST_KEY = 8
_QUICKLY_HASHED = (str, bytes, int, float, complex, type, type(None), torch.dtype, Tensor)


class Refused(ValueError):
    """The pickle refers to a name that is not admitted."""


class Stub:
    """An inert stand-in for an object of another class: it holds the stored attributes and no behavior."""

    kind = ""
    """Full name of the class in the file."""

    def __new__(cls, *_: Any, **__: Any) -> "Stub":
        """Create an empty stub; arguments in the file for the class or function are dropped."""
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> "Stub":
        """Return an empty stub for any call of this object in the file."""
        return Stub()

    def take(self, items: Iterable[tuple[Any, Any]]) -> None:
        """Store the items whose keys are strings as attributes."""
        self.__dict__.update({name: value for name, value in items if isinstance(name, str)})


class StubUnpickler(pickle._Unpickler):
    """Unpickler that returns only plain values, tensors and stubs.

    It extends the pure-Python unpickler: the C one allocates all memory if a corrupt file has a too large memo index.
    Opcodes that weights do not need are removed, as they look names up by number or hash values of unlimited nesting.
    Opcodes that change a value change dictionaries, lists and stubs only. Sets become lists, as lists hash nothing.

    Args:
        stream: stream of the pickle.
        storage: returns the values (N,) of a storage, from its dtype, its key and N.
    """

    def __init__(self, stream: BytesIO | mmap, storage: Callable[[torch.dtype, str, int], Tensor]) -> None:
        super().__init__(stream, encoding="latin1")
        self._storage = storage
        self._stubs: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name to its safe replacement: our own function or dtype if tensors need it, else a stub class.

        Raises:
            Refused: the name runs commands or code.
        """
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _FUNCTIONS[full]
        if (module == "torch" and name in DTYPES) or full == "torch.storage.UntypedStorage":
            return DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if _runs_code(module, name):
            raise Refused(_NOT_ADMITTED.format(printable(full)))
        return self._stub(full)

    def persistent_load(self, pid: Any) -> Any:
        """Load a storage, or in older files a class.

        Raises:
            UnpicklingError: the reference is neither, or to a view of another storage.
        """
        if pid[0] == "module":
            return pid[1]
        _, dtype, key, _, size, *view = pid
        if pid[0] != "storage" or not (isinstance(dtype, torch.dtype) and type(key) is str and type(size) is int):
            raise pickle.UnpicklingError("something other than tensors lies beside it")
        if view not in ([], [None]):
            raise pickle.UnpicklingError("a storage that is a part of another one, as PyTorch 0.3 wrote it")
        return self._storage(dtype, key, size)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([(key, value)])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._put(zip(items[::2], items[1::2], strict=True))

    def _put(self, items: Iterable[tuple[Any, Any]]) -> None:
        """Put items into a dictionary or a stub; a key that may be slow to hash is replaced by a stub."""
        target = self.stack[-1]
        if isinstance(target, Stub):
            Stub.take(target, items)
            return
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"it puts items into a {type(target).__name__}")
        for key, value in items:
            parts = key if isinstance(key, tuple) else (key,)
            is_quick = len(parts) <= _LONGEST_KEY and all(isinstance(part, (*_QUICKLY_HASHED, Stub)) for part in parts)
            target[key if is_quick else Stub()] = value

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _append_all(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, values: list[Any]) -> None:
        """Append values to a list; for a stub they are dropped."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Stub):
            raise pickle.UnpicklingError(f"it appends to a {type(self.stack[-1]).__name__}")

    def _build(self) -> None:
        """Set the state of a stub; that of a dictionary (the module versions of a state dict) is dropped."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub):
            for part in state if isinstance(state, tuple) else (state,):  # attributes, and those in slots
                if isinstance(part, Mapping):
                    Stub.take(self.stack[-1], part.items())
        elif not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-1]).__name__}")

    dispatch = MappingProxyType(
        {
            **{code: act for code, act in _DISPATCH.items() if code not in _LEFT_OUT},
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.APPEND[0]: _append,
            pickle.APPENDS[0]: _append_all,
            pickle.EMPTY_SET[0]: _DISPATCH[pickle.EMPTY_LIST[0]],
            pickle.ADDITEMS[0]: _append_all,
            pickle.FROZENSET[0]: _DISPATCH[pickle.LIST[0]],
            pickle.BYTEARRAY8[0]: _DISPATCH[pickle.BINBYTES8[0]],  # which does not allocate the full length first
            pickle.BUILD[0]: _build,
        }
    )

    def _stub(self, full: str) -> type:
        """Create or reuse a stub class that belongs to this unpickler, so that no change to it outlives the reading."""
        if full not in self._stubs:
            if len(self._stubs) == _MAX_NAMES:
                raise pickle.UnpicklingError(f"it asks for more than {_MAX_NAMES:,} names")
            self._stubs[full] = type("Stub", (Stub,), {"kind": full})
        return self._stubs[full]


def printable(text: str) -> str:
    """Replace non-printable characters by `?` in text of an untrusted file, so that it is safe to display."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _runs_code(module: str, name: str) -> bool:
    """Return whether a name of Python 2 or 3 runs commands or code, or is an attribute of a replaced function."""
    first, *more = name.split(".")
    if more and (
        f"{module}.{first}" in _FUNCTIONS
        or any(part.startswith("__") or part in _RUN_CODE for part in (first, *more))  # such as `os.system` of a module
    ):
        return True
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    parts = f"{module}.{name}".split(".")
    return any(".".join(parts[: end + 1]) in _RUN_CODE for end in range(len(parts)))


def _tensor(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    tensor = torch.as_strided(values, size, stride, offset)
    if tensor.numel() > values.numel():
        raise pickle.UnpicklingError("a tensor has more values than are stored of it")
    return tensor


def _typed_tensor(
    values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _: bool, __: Any, dtype: torch.dtype
) -> Tensor:
    return _tensor(values.view(dtype), offset, size, stride)


def _tensor_of_a_class(rebuild: Callable[..., Any], _: Any, arguments: tuple[Any, ...], __: Any) -> Any:
    """Rebuild a tensor of a subclass or with attributes as a plain tensor."""
    return rebuild(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _ordered_dict(items: Iterable[tuple[Any, Any]] = ()) -> OrderedDict[Any, Any]:
    """Create an ordered dictionary with string keys; Python 2 passes its items as an argument."""
    return OrderedDict((name, value) for name, value in items if isinstance(name, str))


def _attribute(owner: Any, name: Any, *_: Any) -> type[Stub]:
    """Resolve an attribute of a stub (an enumeration member, a method, a nested class) to the class `Stub`.

    Raises:
        Refused: an attribute of another object, or a dunder other than `__new__`, which could lead out of the class.
    """
    is_stub = isinstance(owner, Stub) or (isinstance(owner, type) and issubclass(owner, Stub))
    if not is_stub or not isinstance(name, str) or (name.startswith("__") and name != "__new__"):
        raise Refused(_NOT_ADMITTED.format("builtins.getattr"))
    return Stub


_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._tensor._rebuild_from_type_v2": _tensor_of_a_class,
        "torch.Size": _first,
        "torch.jit._pickle.restore_type_tag": _first,
        **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("bool", "double", "int", "tensor")},
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _empty_dict,
        **{f"{builtins}.set": _first for builtins in ("__builtin__", "builtins")},  # as a list, which hashes nothing
        **{f"{builtins}.getattr": _attribute for builtins in ("__builtin__", "builtins")},
    }
)
