"""A moving average of a network's weights, updated without waiting for the device."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """The exponential moving average of the parameters and buffers of a network, as its `module`.

    The base class has the same state, but asks the device at every update whether it is the first.

    Args:
        network: its first update replaces the average.
        decay: of the average at each later update.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average toward the weights of the network; integers, such as counts of batches, are copied."""
        is_first, pairs = not self.n_averaged, list(zip(_tensors(self.module), _tensors(model), strict=True))
        copied = [pair for pair in pairs if is_first or not pair[0].is_floating_point()]
        moved = [pair for pair in pairs if not is_first and pair[0].is_floating_point()]
        if copied:
            torch._foreach_copy_([average for average, _ in copied], [value for _, value in copied])
        if moved:
            torch._foreach_lerp_([average for average, _ in moved], [value for _, value in moved], 1 - self.decay)
        self.n_averaged += 1


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
