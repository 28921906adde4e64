"""Global average pooling, alone and with a linear layer; L2 normalization alone."""

import torch.nn.functional as F
from torch import Tensor, nn


class L2Norm(nn.Module):
    """L2 normalization of descriptors to unit length."""

    def forward(self, descriptors: Tensor) -> Tensor:
        """Normalize (B, D) along its last dimension."""
        return F.normalize(descriptors, dim=-1)


class MeanPool(nn.Module):
    """Global average pooling, as in torchvision's classifiers, then L2."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool (B, C, h, w) into L2-normalized descriptors (B, C)."""
        return F.normalize(feature_map.mean(dim=(2, 3)), dim=1)


class MeanLinear(nn.Module):
    """Mean-linear head: global average pooling -> linear -> L2 (Divide&Classify).

    Args:
        in_channels: channels of the feature map.
        out_dim: D, the dimension of the descriptor.
    """

    def __init__(self, in_channels: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool (B, C, h, w) into L2-normalized descriptors (B, D)."""
        return F.normalize(self.linear(feature_map.mean(dim=(2, 3))), dim=1)
