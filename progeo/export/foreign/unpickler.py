"""Pickles without what makes them dangerous: only listed names are admitted, and none of them is the real thing."""

import pickle
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
    }
)
PROMPT_LEARNER = "PromptLearner"
SCRIPTED_MODULE = "__torch__"
_PROMPT_LEARNERS = tuple(f"cosplace_model.cosplace_network_stage{stage}.{PROMPT_LEARNER}" for stage in (1, 2))
_DISPATCH = pickle._Unpickler.dispatch
_LEFT_OUT = b"".join(
    (
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.LONG4),
    )
)
_LONGEST_KEY = 8


class Refused(ValueError):
    """A pickle asks for a name that is not admitted."""


class Stub:
    """An object of a class that is not known here: what was stored of it, and nothing that acts."""

    kind = ""

    def take(self, state: Any) -> None:
        """Keep what was stored."""
        if isinstance(state, Mapping):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


class StubUnpickler(pickle._Unpickler):
    """Unpickle plain values, tensors and stubs.

    It is Python's unpickler in Python: the faster one takes all memory where a broken file numbers a value too high.
    Operations that weights do not need are left out: one of them does the same with a length, others look names up by
    number, or hash what may be nested without end. Of the three that change a value, two change dictionaries only, the
    third stubs only.

    Args:
        stream: of the pickle.
        storage: gives the values (N,) of a storage, from its type, its key and N.
    """

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
            return _FUNCTIONS[full]
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
        """Put items into a dictionary, under keys that take no time to hash."""
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError(f"it puts items into a {type(self.stack[-1]).__name__}")
        for key, value in items:
            parts = key if isinstance(key, tuple) else (key,)
            if len(parts) > _LONGEST_KEY or not all(isinstance(part, (str, int, float)) for part in parts):
                raise pickle.UnpicklingError(
                    f"a {type(key).__name__} that is neither a word, nor a number, nor a few of them is a key in it"
                )
            self.stack[-1][key] = value

    def _build(self) -> None:
        """Give an object its state: a stub keeps it, that of a dictionary, of modules' versions, is left out."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].take(state)
        elif not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-1]).__name__}")

    dispatch = MappingProxyType(
        {
            **{code: act for code, act in _DISPATCH.items() if code not in _LEFT_OUT},
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: _set_items,
            pickle.BUILD[0]: _build,
        }
    )

    def _stub(self, full: str, kind: str) -> type:
        """A class of this unpickler alone, so that nothing a pickle does to it outlives the reading."""
        return self._stubs.setdefault(full, type("Stub", (Stub,), {"kind": kind}))


def printable(text: str) -> str:
    """Text of a file that nobody vouches for, to be shown on a screen."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _tensor(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    tensor = torch.as_strided(values, size, stride, offset)
    if tensor.numel() > values.numel():
        raise pickle.UnpicklingError("a tensor has more values than are stored of it")
    return tensor


def _typed_tensor(
    values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], _: bool, __: Any, dtype: torch.dtype
) -> Tensor:
    return _tensor(values.view(dtype), offset, size, stride)


def _first(value: Any, *_: Any) -> Any:
    return value


def _nothing(*_: Any) -> Stub:
    """Instead of a set, bytes, a number of NumPy or a device: weights are made of none."""
    return Stub()


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _empty_ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_parameter": _first,
        "torch.Size": _first,
        "torch.device": _nothing,
        "torch.jit._pickle.restore_type_tag": _first,
        **{f"torch.jit._pickle.build_{kind}list": _first for kind in ("bool", "double", "int", "tensor")},
        "numpy.core.multiarray.scalar": _nothing,
        "numpy._core.multiarray.scalar": _nothing,
        "numpy.dtype": _nothing,
        "collections.OrderedDict": _empty_ordered_dict,
        "collections.defaultdict": _empty_dict,
        "_codecs.encode": _nothing,
        "__builtin__.set": _nothing,
        "builtins.set": _nothing,
    }
)
