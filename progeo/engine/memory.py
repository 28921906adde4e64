"""Memory use of a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from progeo.engine.accelerator import Processor
from progeo.engine.options import Precision


def saved_bytes(forward: Callable[[], object], module: nn.Module) -> int:
    """Measure the bytes that a forward pass saves for the backward pass, excluding the weights of the module."""
    weights = {_storage_of(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> None:
        storage = _storage_of(tensor)
        if storage not in weights:
            kept[storage] = tensor.detach()  # keep a reference, so that the number is not reused

    # Pack to None: the graph holds what `note` returns, and a reference back to it would leak graph and module.
    with saved_tensors_hooks(note, lambda _: None):  # type: ignore[arg-type, return-value]
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage_of(tensor: Tensor) -> int:
    """Return a number that tells the storage of a tensor from others, also one without values, which has no address."""
    return tensor.untyped_storage()._cdata


def trained_before_frozen(forward: Callable[[], object], module: nn.Module) -> list[str]:
    """Return the names of the trained parameters of a module whose gradient passes frozen layers of it."""
    inputs: list[Any] = []
    frozen = [
        part for part in module.modules() if parameter_bytes(part) and not parameter_bytes(part, trained_only=True)
    ]
    hooks = [part.register_forward_pre_hook(lambda _, given: inputs.extend(given)) for part in frozen]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    nodes: list[Any] = [tensor.grad_fn for tensor in inputs if isinstance(tensor, Tensor)]
    seen, reached = set(), set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(before for before, _ in node.next_functions)
            reached.add(getattr(node, "variable", None))
    return [name for name, parameter in module.named_parameters() if parameter in reached]


def used_memory(device: torch.device) -> dict[str, int]:
    """Return the bytes used by name: the peak of a GPU so far, otherwise what of this process is in main memory."""
    if device.type == "cuda":
        return {"device_memory_bytes": torch.cuda.max_memory_allocated(device)}
    return {"memory_bytes": psutil.Process().memory_info().rss}


def parameter_bytes(module: nn.Module, *, trained_only: bool = False) -> int:
    """Return the size in bytes of a module's parameters, or with `trained_only` of those that require a gradient."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained_only)


@contextmanager
def without_values(module: nn.Module, mixed_precision: Precision) -> Iterator[Processor]:
    """Give a module of the meta device tensors that have a device but no values, and compute with such in the block.

    Unlike on the meta device, operations choose the same kernels, and round to the same precision, as with values. The
    processor that is yielded is the device with a precision.
    """
    processor = Processor(torch.device("cpu"), mixed_precision)
    with FakeTensorMode(allow_non_fake_inputs=True):
        empty = {
            name: torch.empty(each.shape, dtype=each.dtype, device=processor.device)
            for name, each in module.state_dict().items()
        }
        module.load_state_dict(empty, assign=True)
        yield processor
