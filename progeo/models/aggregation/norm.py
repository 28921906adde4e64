"""Normalization of descriptors."""

import torch.nn.functional as F
from torch import Tensor, nn


class L2Norm(nn.Module):
    """L2 normalization of descriptors to unit length."""

    def forward(self, descriptors: Tensor) -> Tensor:
        """Normalize (B, D) along its last dimension."""
        return F.normalize(descriptors, dim=-1)
