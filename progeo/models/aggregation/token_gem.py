"""The token of a backbone beside the generalized mean of its feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.gem import generalized_mean, initial_power


class TokenGeM(nn.Module):
    """Concatenate the token and the GeM of the L2-normalized local features, each of unit length, then L2.

    These are the class token and the first region, the whole image, of CricaVPR (Lu et al., CVPR 2024, section 3.2),
    without the encoder behind them that lets images of a batch see each other. Both get unit length first, so that they
    weigh the same: there that encoder weighs them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = initial_power()

    def forward(self, feature_map: Tensor, token: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) and (B, E) into L2-normalized descriptors (B, E + C), the token first."""
        pooled = generalized_mean(F.normalize(feature_map, dim=1), self.p)
        return F.normalize(torch.cat([F.normalize(token, dim=1), F.normalize(pooled, dim=1)], dim=1), dim=1)
