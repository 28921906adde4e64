"""DINOv2 under the names of its authors, and as they compute it."""

import math

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24)}
"""Channels and number of blocks."""


class _Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(channels, 3 * channels), "proj": nn.Linear(channels, channels)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.rand(channels) / 10}) for _ in range(2))

    def attended(self, tokens):
        queries, keys, values = self.attn["qkv"](tokens).unflatten(2, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.mT / 8).softmax(dim=3)
        return self.attn["proj"]((weights @ values).transpose(1, 2).flatten(2))

    def forward(self, tokens):
        tokens = tokens + self.ls1["gamma"] * self.attended(self.norm1(tokens))
        return tokens + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


class Dinov2(nn.Module):
    """DINOv2 for images of 518 pixels, with random weights; those of other sizes get a resized position embedding.

    Args:
        size: see `SIZES`.
        registers: number of register tokens.
        grid: rows and columns of the position embedding, if it is not that for 518 pixels.
    """

    def __init__(self, size, registers=0, grid=37):
        super().__init__()
        channels, depth = SIZES[size]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, channels, 14, stride=14)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid * grid, channels))
        if registers:
            self.register_tokens = nn.Parameter(torch.randn(1, registers, channels))
        self.blocks = nn.ModuleList(_Block(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def positions(self, rows, columns):
        """The position embedding as the authors resize it: always, except to the grid that it is for."""
        grid = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (grid, grid):
            return self.pos_embed
        cells = self.pos_embed[:, 1:].mT.unflatten(2, (grid, grid))
        scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        cells = F.interpolate(cells, scale_factor=scale, mode="bicubic", antialias=False)
        assert cells.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], cells.flatten(2).mT], dim=1)

    def first_tokens(self, images):
        """Class token, registers and patches before the first block."""
        cells = self.patch_embed["proj"](images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), cells.flatten(2).mT], dim=1)
        tokens = tokens + self.positions(*cells.shape[2:])
        if not hasattr(self, "register_tokens"):
            return tokens
        return torch.cat([tokens[:, :1], self.register_tokens.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)
