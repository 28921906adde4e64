"""Fingerprint of any module: a digest of its classes and their source files, its weights and all other attributes."""

import functools
import hashlib
import io
import pickle
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_LIBRARIES = ("progeo", "torch", "torchvision", "timm", "open_clip")


def module_fingerprint(module: nn.Module) -> str:
    """Compute a SHA-256 digest of a module that changes with its weights, buffers, attributes, hooks and code.

    Code is identified by its name and the content of its source file; code that it calls in other files does not count.

    Raises:
        ValueError: the module holds something that cannot be identified, such as a lambda.
    """
    stream = io.BytesIO()
    try:
        _Fingerprint(stream, protocol=5).dump(module)
    except Exception as error:  # pickling can fail in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"A {type(module).__qualname__} cannot be told from others by what it holds, so that its descriptors "
            f"cannot be kept: {reason}. Let it hold tensors, modules and plain values alone, of classes in files."
        ) from None
    return hashlib.sha256(stream.getvalue()).hexdigest()


def plugin_digests(parts: Iterable[type | FunctionType]) -> dict[str, str]:
    """Return the digests of the source files of classes and functions, by module, without those of our libraries."""
    modules = {part.__module__ for part in parts if part.__module__.partition(".")[0] not in _LIBRARIES}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules)}
    return {name: _file_digest(file) for name, file in files.items() if file}


class _Fingerprint(pickle.Pickler):
    """Pickler that replaces tensors by digests, and code by its name and source digest; its output is never loaded."""

    def persistent_id(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            values = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return "tensor", str(item.dtype), tuple(item.shape), hashlib.sha256(values.data).hexdigest()
        if isinstance(item, type | FunctionType):
            return "code", item.__module__, item.__qualname__, _source(item)
        if isinstance(item, MethodType):  # otherwise pickled by name only
            return "method", item.__self__, item.__func__
        return ("set", sorted(item, key=repr)) if isinstance(item, set | frozenset) else None


def _source(code: type | FunctionType) -> str:
    """Compute the digest of the source file of a class or function; empty if it is not written in Python.

    Raises:
        ValueError: its name does not lead to it, as for a function inside a function.
    """
    module: Any = sys.modules.get(code.__module__)
    file = getattr(module, "__file__", None) or ""
    found = functools.reduce(lambda part, name: getattr(part, name, None), code.__qualname__.split("."), module)
    if found is not code or (not file and code.__module__ == "__main__"):
        raise ValueError(f"{code.__qualname__} is not what has this name in a file of Python")
    return _file_digest(file) if file.endswith(".py") else ""


@functools.cache
def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
