"""Count what a stage costs, which says more about its growth than a clock on a busy machine."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from numpy._core import _multiarray_umath
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import progeo

_PACKAGE = str(Path(progeo.__file__).parent)


class Costs(NamedTuple):
    """Sums over all that was done in this thread, including what was freed meanwhile."""

    lines: int
    """Lines of the package that ran."""
    array_bytes: int
    """Bytes that NumPy and Arrow allocated for arrays."""
    tensor_elements: int
    """Elements of the tensors that operations of PyTorch returned."""
    files: int
    """Files that were opened by Python."""


def costs_of(function: Callable[[], object]) -> Costs:
    """Run a function and count what it costs."""
    _OPENED.clear()
    before = _arrow_bytes()
    with _counted_lines() as lines, _counted_bytes() as sizes, _CountedElements() as elements:
        function()
    array_bytes = sizes[0] + _arrow_bytes() - before
    return Costs(lines[0], array_bytes, elements.count, len(_OPENED))


def _arrow_bytes() -> int:
    pool = pa.default_memory_pool()
    return pool.total_bytes_allocated() if hasattr(pool, "total_bytes_allocated") else 0  # the lowest version has none


_OPENED: list[None] = []
sys.addaudithook(lambda event, _: _OPENED.append(None) if event == "open" else None)


@contextmanager
def _counted_lines() -> Iterator[list[int]]:
    count = [0]

    def ran(frame, event, argument):
        count[0] += 1
        return ran

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: ran if frame.f_code.co_filename.startswith(_PACKAGE) else None)
    try:
        yield count
    finally:
        sys.settrace(before)


class _CountedElements(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.count += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_AllocateZeros = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_Resize = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_ALLOCATED = [0]


class _Handler(ctypes.Structure):
    """`PyDataMem_Handler` of NumPy's C interface, by which arrays get their memory."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", _Allocate),
        ("calloc", _AllocateZeros),
        ("realloc", _Resize),
        ("free", _Free),
    )


def _build_handler() -> _Handler:
    library = ctypes.CDLL(None)
    for name in ("malloc", "calloc", "realloc"):
        getattr(library, name).restype = ctypes.c_void_p
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.malloc.argtypes, library.calloc.argtypes = (size,), (size, size)
    library.realloc.argtypes, library.free.argtypes = (pointer, size), (pointer,)

    def counted(number_of_bytes: int) -> None:
        _ALLOCATED[0] += number_of_bytes

    return _Handler(
        b"counting",
        1,
        None,
        _Allocate(lambda _, size: (counted(size), library.malloc(size))[1]),
        _AllocateZeros(lambda _, count, size: (counted(count * size), library.calloc(count, size))[1]),
        _Resize(lambda _, memory, size: (counted(size), library.realloc(memory, size))[1]),
        _Free(lambda _, memory, size: library.free(memory)),
    )


_HANDLER = _build_handler()
"""Kept for good: an array that was allocated by it is freed by it, whenever that is."""


@contextmanager
def _counted_bytes() -> Iterator[list[int]]:
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
    ctypes.pythonapi.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    table = ctypes.pythonapi.PyCapsule_GetPointer(_multiarray_umath._ARRAY_API, None)
    address = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[304]  # of PyDataMem_SetHandler, part of the ABI
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)
    _ALLOCATED[0] = 0
    before = set_handler(ctypes.pythonapi.PyCapsule_New(ctypes.addressof(_HANDLER), b"mem_handler", None))
    try:
        yield _ALLOCATED
    finally:
        set_handler(before)
