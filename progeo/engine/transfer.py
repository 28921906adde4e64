"""Copies between the main memory and a GPU that the process does not wait for; on a CPU nothing is copied."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import recursively_apply
from torch import Tensor

_Tree = TypeVar("_Tree")
_SMALL_BYTES = 2**20
"""Tensors up to this size travel together: a copy of its own costs more than its bytes."""
_ALIGNMENT = 64


def to_device(tree: _Tree, device: torch.device) -> _Tree:
    """Copy the tensors of nested tuples, lists and dicts to a device, the small ones in one copy.

    On a GPU the copies run beside its computations, and the process does not wait for them. Pinned tensors are copied
    from where they are.

    Args:
        tree: its tensors are on the CPU, or on the device already; all else is returned as it is.
    """
    if device.type != "cuda":
        return recursively_apply(lambda tensor: tensor.to(device), tree)
    tensors: list[Tensor] = []
    recursively_apply(tensors.append, tree)
    here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    stream, current = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        large = [each for each in here if each.nbytes > _SMALL_BYTES]
        moved = dict(zip(map(id, large), (_pinned(each).to(device, non_blocking=True) for each in large), strict=True))
        small = [each for each in here if each.nbytes <= _SMALL_BYTES]
        if small:
            buffer = packed(small, pin=True).to(device, non_blocking=True)
            moved |= dict(zip(map(id, small), unpacked(buffer, small), strict=True))
    current.wait_stream(stream)
    for tensor in moved.values():
        tensor.record_stream(current)  # or its memory could be reused while the step still reads it
    return recursively_apply(lambda tensor: moved.get(id(tensor), tensor), tree)


def is_asynchronous(device: torch.device) -> bool:
    """Return whether a device computes, and reads pinned memory, while the process goes on."""
    return device.type == "cuda"


def packed(tensors: list[Tensor], *, pin: bool = False) -> Tensor:
    """Return the values of CPU tensors one after the other in one buffer, uint8 (n,), pinned if `pin`."""
    ends = _ends(tensors)
    buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pin)
    for view, tensor in zip(unpacked(buffer, tensors), tensors, strict=True):
        view.copy_(tensor)
    return buffer


def unpacked(buffer: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Return the parts of a buffer of `packed` as tensors with the types and shapes of those that it was made of."""
    starts = [0, *_ends(like)]
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


def fetched(tensor: Tensor) -> Callable[[], list[Any]]:
    """Start to copy a tensor to the CPU; the returned function waits for its values and returns them as a list."""
    if tensor.device.type != "cuda":
        return tensor.tolist
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[Any]:
        copied.synchronize()
        return pinned.tolist()

    return read


def _ends(tensors: list[Tensor]) -> list[int]:
    """Return where the bytes of each tensor end in a buffer, rounded up so that every type can begin there."""
    ends, end = [], 0
    for tensor in tensors:
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        ends.append(end)
    return ends


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
