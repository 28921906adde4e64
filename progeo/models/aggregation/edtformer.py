"""EDTformer: learned queries gather a descriptor from the tokens of an image (Jin et al., TCSVT 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.counts import check_counts
from progeo.models.backbones.attention import attend_batch_first
from progeo.models.backbones.family import Traits

_STD = 1e-6
"""Standard deviation of the queries before training."""


class EDTformer(nn.Module):
    """EDTformer head: linear layer -> decoder blocks -> linear layers over channels and over queries -> L2.

    A block lets the queries attend to each other, then to the features of the token and the map. It has no perceptron.

    Args:
        in_channels: C, channels of the feature map, and dimension of the token.
        num_queries: Q.
        num_layers: number of blocks.
        num_heads: heads of their attention, which divide C.
        channels: D, channels after the blocks.
        rows: R, what the queries are projected to.
        dropout: probability of dropout, of the weights of attention and of its output.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        channels: int,
        rows: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, in_channels)
        self.queries = nn.Parameter(torch.empty(1, num_queries, in_channels).normal_(std=_STD))
        self.layers = nn.ModuleList(_Block(in_channels, num_heads, dropout) for _ in range(num_layers))
        self.channel_proj = nn.Linear(in_channels, channels)
        self.row_proj = nn.Linear(num_queries, rows)

    def forward(self, feature_map: Tensor, token: Tensor) -> Tensor:
        """Aggregate (B, C, h, w) and (B, C) into L2-normalized descriptors (B, D R), the rows of a channel together."""
        features = self.fc(torch.cat([token[:, None], feature_map.flatten(2).mT], dim=1))
        # Dropout is another for each image; without it, the first self-attention is that of all.
        answers = self.queries.expand(features.shape[0] if self.training else 1, -1, -1)
        for layer in self.layers:
            answers = layer(answers, features)
        return F.normalize(self.row_proj(self.channel_proj(answers).mT).flatten(1), dim=1)


class _Block(nn.Module):
    """Self-attention of queries, then their attention to features, each followed by a sum and a layer norm."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = (
            nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True) for _ in range(2)
        )
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        attend_batch_first(self)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Answer queries (B, Q, C), or (1, Q, C) of all images, from features (B, N, C): (B, Q, C)."""
        queries = self.norm1(queries + self.dropout(self.self_attn(queries, queries, queries)[0]))
        queries = queries.expand(features.shape[0], -1, -1)
        return self.norm2(queries + self.dropout(self.multihead_attn(queries, features, features)[0]))


def check_edtformer(traits: Traits, *, num_heads: int, dropout: float, **counts: int) -> None:
    """Check the options of EDTformer, and whether it can be on top of a backbone.

    Raises:
        ValueError: a number below 1, a probability that is none, or features that do not fit.
    """
    check_counts("edtformer", num_heads=num_heads, **counts)
    if not 0 <= dropout < 1:
        raise ValueError(f"`aggregation_options`: dropout of edtformer must be from 0 to below 1, got {dropout}.")
    if traits.channels != traits.token_dim:
        raise ValueError(
            f"`aggregation` edtformer needs a token of as many dimensions as the feature map has channels, and the "
            f"backbone gives {traits.token_dim} and {traits.channels}: use another."
        )
    if traits.channels is not None and traits.channels % num_heads:
        raise ValueError(
            f"`aggregation_options`: num_heads of edtformer must divide the {traits.channels} channels of the "
            f"backbone, got {num_heads}."
        )
