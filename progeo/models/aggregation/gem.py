"""Generalized-mean pooling (GeM), alone and with a linear layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN = 1e-6
"""Lowest value that is raised to a power, which would not have a gradient at 0."""


class GeM(nn.Module):
    """GeM head: L2 over channels -> generalized-mean pooling -> linear -> L2 (CosPlace, section 4.1).

    Args:
        in_channels: channels of the feature map.
        out_dim: D, the dimension of the descriptor.
        local_linear: whether a linear layer of the local features comes before, as in SelaVPR++.
    """

    def __init__(self, in_channels: int, out_dim: int, *, local_linear: bool = False) -> None:
        super().__init__()
        self.local_linear = nn.Linear(in_channels, in_channels) if local_linear else None
        self.p = initial_power()
        self.linear = nn.Linear(in_channels, out_dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool (B, C, h, w) into L2-normalized descriptors (B, D)."""
        if self.local_linear is not None:
            feature_map = self.local_linear(feature_map.movedim(1, 3)).movedim(3, 1)
        pooled = generalized_mean(F.normalize(feature_map, dim=1), self.p)
        return F.normalize(self.linear(pooled), dim=1)


class GeMPool(nn.Module):
    """Generalized-mean pooling, then L2 (Radenovic et al., TPAMI 2019, equation 3, with one power for all channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.p = initial_power()

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool (B, C, h, w) into L2-normalized descriptors (B, C)."""
        return F.normalize(generalized_mean(feature_map, self.p), dim=1)


def initial_power() -> nn.Parameter:
    """Return the power p (1,) before training, 3."""
    return nn.Parameter(torch.full((1,), 3.0))


def generalized_mean(feature_map: Tensor, power: Tensor) -> Tensor:
    """Pool (B, C, h, w), where values below 1e-6 count as 1e-6, into (mean of x^p)^(1/p), (B, C)."""
    return feature_map.clamp(min=_MIN).pow(power).mean(dim=(2, 3)).pow(1 / power)
