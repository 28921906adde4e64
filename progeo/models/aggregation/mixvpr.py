"""MixVPR: every cell of a feature map mixed with all others (Ali-bey et al., WACV 2023)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.counts import check_counts


class MixVPR(nn.Module):
    """MixVPR head: mixers of each channel over all cells -> projection of channels and of cells -> L2.

    The mixers are x + W2 ReLU(W1 LayerNorm(x)) (equation 1). Both projections are linear, so their order only matters
    for the cost: the cells are projected first here, as they become few.

    Args:
        in_channels: C, channels of the feature map.
        grid: rows and columns of the only feature maps that it takes.
        out_channels: D, channels after the projection.
        rows: R, what the cells are projected to.
        depth: number of mixers.
        ratio: hidden cells of a mixer per cell.
    """

    def __init__(
        self, in_channels: int, grid: tuple[int, int], *, out_channels: int, rows: int, depth: int, ratio: float
    ) -> None:
        super().__init__()
        self.grid = grid
        cells = grid[0] * grid[1]
        self.mix = nn.Sequential(*(_Mixer(cells, round(cells * ratio)) for _ in range(depth)))
        self.channel_proj = nn.Linear(in_channels, out_channels)
        self.row_proj = nn.Linear(cells, rows)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Aggregate (B, C, *grid) into L2-normalized descriptors (B, D R), the rows of a channel together.

        Raises:
            ValueError: a map of another size.
        """
        if (found := tuple(feature_map.shape[2:])) != self.grid:
            wanted, got = (" x ".join(map(str, size)) for size in (self.grid, found))
            raise ValueError(f"MixVPR takes feature maps of {wanted} cells only, got {got}: use images of one size.")
        mixed = self.mix(feature_map.flatten(2))
        cells = F.linear(mixed, self.row_proj.weight)  # (B, C, R)
        channels = F.linear(cells.mT, self.channel_proj.weight).mT  # (B, D, R)
        # A bias of the channels is one of every cell, which the rows add up.
        bias = self.channel_proj.bias[:, None] * self.row_proj.weight.sum(dim=1) + self.row_proj.bias
        return F.normalize((channels + bias).flatten(1), dim=1)


def check_mixvpr(*, grid: tuple[int, int], ratio: float, **counts: int) -> None:
    """Check the options of MixVPR.

    Raises:
        ValueError: a number below 1, a grid that is none, or no hidden cells.
    """
    check_counts("mixvpr", **counts)
    if len(grid) != 2 or not all(isinstance(size, int) and size > 0 for size in grid):
        raise ValueError(f"`aggregation_options`: grid of mixvpr must be [rows, columns], got {list(grid)}.")
    if not 1 <= ratio * grid[0] * grid[1] < math.inf:
        raise ValueError(f"`aggregation_options`: ratio of mixvpr must give at least one hidden cell, got {ratio}.")


class _Mixer(nn.Module):
    """Add a function of all cells to each cell, the same for every channel."""

    def __init__(self, cells: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.LayerNorm(cells), nn.Linear(cells, hidden), nn.ReLU(), nn.Linear(hidden, cells))
        for layer in self.mix:
            if isinstance(layer, nn.Linear):  # as published
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, cells: Tensor) -> Tensor:
        """Mix (B, C, cells)."""
        return cells + self.mix(cells)
