"""Bag-of-Queries (BoQ): learned queries look for content in a feature map (Ali-bey et al., CVPR 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.counts import check_counts
from progeo.models.backbones.attention import attend_batch_first

_HEAD_DIM = 64
"""Channels of a head of attention."""


class BoQ(nn.Module):
    """BoQ head: 3 x 3 convolution -> layer norm -> blocks -> projection of all blocks' answers -> L2.

    Each block encodes the local features of the block before it, and its own queries attend to them (section 3.2).

    Args:
        in_channels: C, channels of the feature map.
        channels: D, channels after the convolution, a multiple of 64.
        num_queries: queries of a block.
        num_layers: number of blocks.
        rows: R, what the answers of all blocks are projected to.
    """

    def __init__(self, in_channels: int, *, channels: int, num_queries: int, num_layers: int, rows: int) -> None:
        super().__init__()
        self.proj_c = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm_input = nn.LayerNorm(channels)
        self.boqs = nn.ModuleList(_Block(channels, num_queries) for _ in range(num_layers))
        self.fc = nn.Linear(num_layers * num_queries, rows)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) into L2-normalized descriptors (B, D R), the rows of a channel together."""
        tokens = self.norm_input(self.proj_c(feature_map).flatten(2).mT)
        answers = []
        for block in self.boqs:
            tokens, answer = block(tokens)
            answers.append(answer)
        return F.normalize(self.fc(torch.cat(answers, dim=1).mT).flatten(1), dim=1)


def check_boq(*, channels: int, **counts: int) -> None:
    """Check the options of BoQ.

    Raises:
        ValueError: a number below 1, or channels that do not divide into heads.
    """
    check_counts("boq", channels=channels, **counts)
    if channels % _HEAD_DIM:
        raise ValueError(f"`aggregation_options`: channels of boq must be a multiple of {_HEAD_DIM}, got {channels}.")


class _Block(nn.Module):
    """A transformer encoder layer, and queries that attend to each other and then to its output."""

    def __init__(self, channels: int, num_queries: int) -> None:
        super().__init__()
        heads = channels // _HEAD_DIM
        self.encoder = nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, num_queries, channels))
        self.self_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_q = nn.LayerNorm(channels)
        self.cross_attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(channels)
        attend_batch_first(self)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tokens (B, N, D) and answer the queries: (B, N, D) and (B, Q, D)."""
        tokens = _encoded(self.encoder, tokens)
        # All images share the queries, so their attention to each other is computed once, in training, too.
        queries = self.norm_q(self.queries + _attended(self.self_attn, self.queries, self.queries))
        return tokens, self.norm_out(_attended(self.cross_attn, queries.expand(tokens.shape[0], -1, -1), tokens))


def _encoded(layer: nn.TransformerEncoderLayer, tokens: Tensor) -> Tensor:
    """Compute the forward of a layer without dropout, whose own fast path cannot be exported."""
    tokens = layer.norm1(tokens + _attended(layer.self_attn, tokens, tokens))
    return layer.norm2(tokens + layer.linear2(F.relu(layer.linear1(tokens))))


def _attended(attention: nn.Module, queries: Tensor, tokens: Tensor) -> Tensor:
    """Let queries (B, Q, D) attend to tokens (B, N, D): (B, Q, D)."""
    return attention(queries, tokens, tokens)[0]
