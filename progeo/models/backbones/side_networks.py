"""ViTs with a side network: adapters that refine the tokens of a block outside the ViT, which can stay frozen.

The ViT does not take what the side network computes, so that a frozen one needs no backward pass.
"""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.backbones.extended_vits import ExtendedVits, first_tokens, run_block
from progeo.models.backbones.family import Features

_MAX_MULTICONV = 16
_RANK = 4
_SCALE = 0.5
_EPS = 1e-3
"""That of the batch norms of `MultiConvAdapter`."""


class SideNetworks(ExtendedVits):
    """ViTs of timm whose features are those of a side network.

    It starts from the tokens that the first block with an adapter takes. Each adapter takes what the one before gave,
    and the tokens after its block; the last norm of the ViT is applied to what the last one gives.
    """

    def default_aggregation(self, architecture: str) -> str:
        """Return `gem`."""
        return "gem"

    @abstractmethod
    def adapters(self, channels: int, num_blocks: int) -> list[nn.Module]:
        """Build an adapter for each of the last blocks of a ViT, or for all of them."""

    def extend(self, network: Any, architecture: str) -> None:
        """Add the adapters."""
        network.adapters = nn.ModuleList(self.adapters(network.embed_dim, len(network.blocks))).eval()

    def features(self, network: Any, images: Tensor) -> Features:
        """Run a network on normalized images (B, 3, H, W) of the size of its position embedding."""
        tokens, layout = first_tokens(network, images), network.layout
        grid = layout.cells(images.shape[2:])
        first = len(network.blocks) - len(network.adapters)
        for block in network.blocks[:first]:
            tokens = run_block(network, block, tokens)
        refined = tokens
        for block, adapter in zip(network.blocks[first:], network.adapters, strict=True):
            tokens = run_block(network, block, tokens)
            refined = adapter(refined, tokens, grid)
        return layout.features(network.norm(refined), images.shape[2:])


class MultiConvAdapters(SideNetworks):
    """ViTs with an adapter of convolutions for each of the last 16 blocks (SelaVPR++, Lu et al., TPAMI 2025)."""

    def adapters(self, channels: int, num_blocks: int) -> list[nn.Module]:
        """Build the adapters."""
        return [MultiConvAdapter(channels) for _ in range(min(num_blocks, _MAX_MULTICONV))]


class LowRankAdapters(SideNetworks):
    """ViTs with a low-rank adapter for each block (LoPA of EDTformer, Jin et al., TCSVT 2025)."""

    def adapters(self, channels: int, num_blocks: int) -> list[nn.Module]:
        """Build the adapters."""
        return [LowRankAdapter(channels) for _ in range(num_blocks)]


class MultiConvAdapter(nn.Module):
    """Linear layer, convolutions of three sizes side by side, linear layer, which starts at zero.

    The published training starts the convolutions at a constant, with which channels that start alike stay alike. Here
    they start at random.

    Args:
        channels: E of the ViT, a multiple of 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.down = nn.Linear(channels, hidden)
        self.branches = _Branches(hidden)
        self.up = _zero(nn.Linear(hidden, channels))

    def forward(self, refined: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Refine tokens (B, N, E), the last of which are those of the patches, in `grid` rows and columns."""
        hidden = F.relu(self.down(refined + tokens))
        first = hidden.shape[1] - grid[0] * grid[1]
        mixed = self.branches(hidden[:, first:].mT.unflatten(2, grid)).flatten(2).mT
        return refined + self.up(hidden + torch.cat([hidden[:, :first], mixed], dim=1))


class _Branches(nn.Module):
    """Convolutions of 1, 3 and 5 pixels a side, whose maps make up the channels of the one that they take."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = _Convolution(channels, channels // 2, 1)
        self.three, self.five = (
            nn.Sequential(_Convolution(channels, channels // 16, 1), _Convolution(channels // 16, channels // 4, side))
            for side in (3, 5)
        )

    def forward(self, feature_map: Tensor) -> Tensor:
        return torch.cat([branch(feature_map) for branch in (self.one, self.three, self.five)], dim=1)


class _Convolution(nn.Module):
    """Convolution that keeps the size of maps, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, side, padding=side // 2)
        self.norm = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, feature_map: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(feature_map)))


class LowRankAdapter(nn.Module):
    """Two linear layers with 4 channels between them, of which the second starts at zero.

    Args:
        channels: E of the ViT.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, _RANK)
        self.up = _zero(nn.Linear(_RANK, channels))

    def forward(self, refined: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Refine tokens (B, N, E)."""
        merged = refined + tokens
        return merged + _SCALE * self.up(F.gelu(self.down(merged)))


def _zero(layer: nn.Linear) -> nn.Linear:
    """Set the parameters of a layer to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
