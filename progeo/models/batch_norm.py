"""Choice of the statistics that the batch norms of a frozen network normalize with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from progeo.models.options import BatchNormMode

_STATISTICS = (".running_mean", ".running_var")


def batch_norm_mode(network: nn.Module, wanted: BatchNormMode) -> BatchNormMode:
    """Resolve the batch-norm mode for a network.

    Returns:
        `eval` if the network has no batch norms with running statistics, or for `calibrated` if any of them has been
        trained; else `wanted`.
    """
    norms = _batch_norms(network)
    if not norms or (wanted == "calibrated" and not all(map(_is_untouched, norms))):
        return "eval"
    return wanted


@contextmanager
def batch_statistics(network: nn.Module, *, keep: bool) -> Iterator[None]:
    """Normalize each batch in this context with its own statistics; all other layers stay in eval mode.

    Args:
        network: a network in eval mode.
        keep: set the running statistics to the means of the statistics of all batches, each batch weighted equally;
            else they do not change.
    """
    norms = _batch_norms(network)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        if keep:
            norm.reset_running_stats()
        norm.momentum = None if keep else 0.0  # None: cumulative mean over all batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of all batch norms by their state-dict names, on the CPU."""
    return {name: values.cpu() for name, values in network.state_dict().items() if name.endswith(_STATISTICS)}


def set_running_statistics(network: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Restore the running statistics that `running_statistics` returned."""
    network.load_state_dict({**network.state_dict(), **statistics})


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """List the batch norms with running statistics."""
    return [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


def _is_untouched(norm: _BatchNorm) -> bool:
    """Return whether a batch norm still has its initial running statistics (mean 0, variance 1)."""
    return bool((norm.get_buffer("running_mean") == 0).all() and (norm.get_buffer("running_var") == 1).all())
