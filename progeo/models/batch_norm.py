"""Batch norms of a frozen network: with which statistics they normalize what passes through them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormMode = Literal["eval", "calibrated", "batch"]
"""Which statistics normalize: `eval` the running ones of the weights, `calibrated` those of one pass over images where
the weights never saw any, `batch` those of each batch."""
_STATISTICS = ("running_mean", "running_var")


def batch_norm_mode(network: nn.Module, wanted: BatchNormMode) -> BatchNormMode:
    """The mode that `wanted` comes to in a network: `eval` where it makes no difference."""
    norms = _batch_norms(network).values()
    if not norms or (wanted == "calibrated" and not all(map(_is_untouched, norms))):
        return "eval"
    return wanted


@contextmanager
def batch_statistics(network: nn.Module, *, keep: bool) -> Iterator[None]:
    """Let each batch that passes in this block be normalized with its own statistics, all else as in eval mode.

    Args:
        network: in eval mode.
        keep: whether the running statistics become the means of those of all batches, whatever their sizes; else they
            stay as they are.
    """
    norms = _batch_norms(network).values()
    before = [norm.momentum for norm in norms]
    for norm in norms:
        if keep:
            norm.reset_running_stats()
        norm.momentum = None if keep else 0.0  # None is the mean of all batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Means and variances of all batch norms by their names in the state dict, on the CPU."""
    norms = _batch_norms(network).items()
    return {f"{name}.{kind}": getattr(norm, kind).cpu() for name, norm in norms for kind in _STATISTICS}


@torch.no_grad()
def set_running_statistics(network: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Take over what `running_statistics` gave."""
    for name, norm in _batch_norms(network).items():
        for kind in _STATISTICS:
            getattr(norm, kind).copy_(statistics[f"{name}.{kind}"])


def _batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that have running statistics, by name."""
    parts = network.named_modules()
    return {name: part for name, part in parts if isinstance(part, _BatchNorm) and part.track_running_stats}


def _is_untouched(norm: _BatchNorm) -> bool:
    """Whether a batch norm has the running statistics that it was built with."""
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())
