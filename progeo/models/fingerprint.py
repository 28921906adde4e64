"""What any module is, in one digest: its classes and the files they stand in, its weights, all else that it holds."""

import functools
import hashlib
import io
import pickle
import sys
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def module_fingerprint(module: nn.Module) -> str:
    """Digest a module: other weights, buffers, attributes, hooks or code give another digest.

    Code counts by its name and the file it stands in; what it calls in other files does not.

    Raises:
        ValueError: it holds something of which that cannot be told, such as a function without a name.
    """
    stream = io.BytesIO()
    try:
        _Fingerprint(stream, protocol=5).dump(module)
    except Exception as error:  # objects refuse to be pickled in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"A {type(module).__qualname__} cannot be told from others by what it holds, so that its descriptors "
            f"cannot be kept: {reason}. Let it hold tensors, modules and plain values alone, of classes in files."
        ) from None
    return hashlib.sha256(stream.getvalue()).hexdigest()


class _Fingerprint(pickle.Pickler):
    """Writes a digest of tensors, and code by name and source; nothing reads it back."""

    def persistent_id(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            values = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return "tensor", str(item.dtype), tuple(item.shape), hashlib.sha256(values).hexdigest()
        if isinstance(item, type | FunctionType):
            return "code", item.__module__, item.__qualname__, _source(item)
        if isinstance(item, MethodType):  # pickled by its name alone otherwise
            return "method", item.__self__, item.__func__
        return ("set", sorted(item, key=repr)) if isinstance(item, set | frozenset) else None


def _source(code: type | FunctionType) -> str:
    """A digest of the file that a class or function stands in; of one that is not written in Python there is none."""
    module = sys.modules.get(code.__module__)
    file = getattr(module, "__file__", None) or ""
    if _named(module, code.__qualname__) is not code or (not file and code.__module__ == "__main__"):
        raise ValueError(f"{code.__qualname__} is not what has this name in a file of Python")
    return _file_digest(file) if file.endswith(".py") else ""


def _named(module: ModuleType | None, name: str) -> Any:
    """What has a dotted name in a module; None where nothing has, as in a function."""
    return functools.reduce(lambda found, part: getattr(found, part, None), name.split("."), module)


@functools.cache
def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
