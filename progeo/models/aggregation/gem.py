"""Generalized-mean pooling (GeM)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        self.p = nn.Parameter(torch.full((1,), 3.0))
        self.linear = nn.Linear(in_channels, out_dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool (B, C, h, w) into L2-normalized descriptors (B, D)."""
        if self.local_linear is not None:
            feature_map = self.local_linear(feature_map.movedim(1, 3)).movedim(3, 1)
        channels = F.normalize(feature_map, dim=1).clamp(min=1e-6)
        pooled = channels.pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)
        return F.normalize(self.linear(pooled), dim=1)
