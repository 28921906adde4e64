"""Pickles without what makes them dangerous: only listed names are admitted, and none of them is the real thing."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
    }
)
PROMPT_LEARNER = "PromptLearner"
SCRIPTED_MODULE = "__torch__"
_PROMPT_LEARNERS = tuple(f"cosplace_model.cosplace_network_stage{stage}.{PROMPT_LEARNER}" for stage in (1, 2))
_DISPATCH = pickle._Unpickler.dispatch
_LEFT_OUT = b"".join(
    (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4)
)


class Refused(ValueError):
    """A pickle asks for a name that is not admitted."""


class Stub:
    """An object of a class that is not known here: what was stored of it, and nothing that acts."""

    kind = ""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


class _Function:
    """A function that a pickle may call; made anew for each, and without attributes that a pickle could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class StubUnpickler(pickle._Unpickler):
    """Unpickle plain values, tensors and stubs.

    It is Python's unpickler in Python: the faster one takes all memory where a broken file numbers a value too high.
    Operations that weights do not need are left out: one of them does the same with a length, others look names up by
    number.

    Args:
        stream: of the pickle.
        storage: gives the values (N,) of a storage, from its type, its key and N.
    """

    dispatch = MappingProxyType({code: act for code, act in _DISPATCH.items() if code not in _LEFT_OUT})

    def __init__(self, stream: BytesIO | mmap, storage: Callable[[torch.dtype, str, int], Tensor]) -> None:
        super().__init__(stream, encoding="latin1")
        self._storage = storage
        self._stubs: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The harmless counterpart of a name.

        Raises:
            Refused: it has none.
        """
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _Function(_FUNCTIONS[full])
        if full == "collections.OrderedDict":
            return OrderedDict
        if (module == "torch" and name in DTYPES) or full == "torch.storage.UntypedStorage":
            return DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full in _PROMPT_LEARNERS or full == "argparse.Namespace":
            return self._stub(full, name)
        if module == SCRIPTED_MODULE or module.startswith(f"{SCRIPTED_MODULE}."):
            return self._stub(full, SCRIPTED_MODULE)
        raise Refused(f"it asks for {printable(full)}, which weights do not need and which is not admitted")

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or in older files a class."""
        if pid[0] == "module":
            return pid[1]
        if pid[0] != "storage":
            raise pickle.UnpicklingError(f"something of the unknown kind {pid[0]!r}")
        _, dtype, key, _, size, *view = pid
        if view not in ([], [None]):
            raise pickle.UnpicklingError("a storage that is a part of another one, as PyTorch 0.3 wrote it")
        return self._storage(dtype, key, size)

    def _stub(self, full: str, kind: str) -> type:
        """A class of this unpickler alone, so that nothing a pickle does to it outlives the reading."""
        return self._stubs.setdefault(full, type("Stub", (Stub,), {"kind": kind}))


def printable(text: str) -> str:
    """Text of a file that nobody vouches for, to be shown on a screen."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _tensor(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(values, size, stride, offset)


def _typed_tensor(
    values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _: bool, __: Any, dtype: torch.dtype
) -> Tensor:
    return _tensor(values.view(dtype), offset, size, stride)


def _first(value: Any, *_: Any) -> Any:
    return value


def _nothing(*_: Any) -> Stub:
    """Instead of a number of NumPy or a device: weights are made of neither."""
    return Stub()


def _bytes(text: str, _: str) -> bytes:
    return text.encode("latin1")


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _first,
        "torch.Size": tuple,
        "torch.device": _nothing,
        "torch.jit._pickle.restore_type_tag": _first,
        **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("bool", "double", "int", "tensor")},
        "numpy.core.multiarray.scalar": _nothing,
        "numpy._core.multiarray.scalar": _nothing,
        "numpy.dtype": _nothing,
        "collections.defaultdict": _empty_dict,
        "_codecs.encode": _bytes,
        "__builtin__.set": set,
        "builtins.set": set,
    }
)
