"""Conv-AP: averages of parts of a projected feature map (Ali-bey et al., Neurocomputing 2022, GSV-Cities)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvAP(nn.Module):
    """Conv-AP head: 1 x 1 convolution -> mean of each of `rows` x `columns` parts -> L2 (section 4.1).

    The means are taken before the convolution, which gives the same and costs less, as both are linear.

    Args:
        in_channels: C, channels of the feature map.
        out_channels: D, channels after the convolution.
        rows, columns: the parts that a map is divided into.
    """

    def __init__(self, in_channels: int, out_channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.channel_pool = nn.Conv2d(in_channels, out_channels, 1)
        self.parts = (rows, columns)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) into L2-normalized descriptors (B, D rows columns), a channel's parts together."""
        rows, columns = (
            _averages(size, count, feature_map) for size, count in zip(feature_map.shape[2:], self.parts, strict=True)
        )
        return F.normalize(self.channel_pool(rows @ feature_map @ columns.mT).flatten(1), dim=1)


def _averages(size: int, count: int, like: Tensor) -> Tensor:
    """Compute the weights (count, size) that average cells along an axis as `F.adaptive_avg_pool2d` does.

    Part i is of the cells from floor(i size / count) to ceil((i + 1) size / count), so that neighbors may share one.
    They are computed with tensors, so that they can be exported for every size.
    """
    cells = torch.arange(size, device=like.device)
    parts = torch.arange(count, device=like.device)[:, None]
    inside = ((cells + 1) * count > parts * size) & (cells * count < (parts + 1) * size)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)
