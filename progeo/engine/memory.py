"""How much memory a network takes, and what to say when there is not enough."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def explaining_out_of_memory(advice: str) -> Iterator[None]:
    """End with one sentence and this advice when a device or the machine has no memory left.

    Raises:
        MemoryError: it had none.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        reason = (str(error).splitlines() or ["no memory"])[0]
        raise MemoryError(f"Out of memory. {advice} ({reason})") from None


def saved_bytes(forward: Callable[[], object], module: nn.Module) -> int:
    """How many bytes a computation keeps for its gradient, besides the weights of a module."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict(keep_vars=True).values()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> None:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor.detach()  # held, so that no other takes its address

    # Nothing leads back to the graph, which holds what it is given here: it would stay for ever, and the module too.
    with saved_tensors_hooks(note, lambda _: None):  # type: ignore[arg-type, return-value]
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def parameter_bytes(module: nn.Module, *, trained_only: bool = False) -> int:
    """How many bytes the parameters of a module take."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad or not trained_only)
