"""ViTs with learned aggregation tokens, which gather what a descriptor needs (ImAge, Lu et al., NeurIPS 2025)."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.aggregation.centroids import cluster_centers, sharpness
from progeo.models.backbones.extended_vits import ExtendedVits, first_tokens, run_block
from progeo.models.backbones.family import Features, Traits

_NAME = re.compile(r"(?P<vit>[^+]+)(?:\+(?P<count>[1-9]\d?)@(?P<block>\d{1,2}))?")
_COUNT, _BLOCK = 8, 8
_STD = 1e-6
"""Standard deviation of the tokens before they are initialized."""


class AggregationTokens(ExtendedVits):
    """ViTs of timm into whose tokens learned ones are inserted before a block; the network's token is all of these.

    `vit_base_patch14_reg4_dinov2+8@8` is a ViT with 8 tokens, inserted before block 8, counted from 0. The name of the
    ViT alone stands for these numbers, which are the published ones.
    """

    def vit(self, architecture: str) -> str:
        """Return timm's name of the ViT."""
        return architecture.partition("+")[0]

    def knows(self, architecture: str) -> bool:
        """Return whether timm has the ViT, and the tokens are given in the right form, if at all."""
        return _NAME.fullmatch(architecture) is not None and super().knows(architecture)

    def default_aggregation(self, architecture: str) -> str:
        """Return `token`."""
        return "token"

    def extend(self, network: Any, architecture: str) -> None:
        """Add the tokens and the number of the block that they are inserted before."""
        count, block = numbers_of(architecture)
        if block >= len(network.blocks):
            raise ValueError(
                f"`architecture` {architecture} cannot have tokens before block {block}, as the last of its blocks is "
                f"{len(network.blocks) - 1}: name another, such as {self.vit(architecture)}+{count}@"
                f"{2 * len(network.blocks) // 3}."
            )
        network.aggregation_tokens = nn.Parameter(torch.empty(1, count, network.embed_dim).normal_(std=_STD))
        network.inserted_before = block

    @torch.no_grad()
    def initialize(self, network: Any, local_features: Callable[[], Tensor], seed: int) -> None:
        """Start from the centers of clusters of local features, as NetVLAD assigns to them at its start.

        Published are clusters of local features without the tokens; here the tokens, which are near zero, take part.
        """
        features = F.normalize(local_features(), dim=1)
        centers = cluster_centers(features, network.aggregation_tokens.shape[1], seed=seed)
        network.aggregation_tokens.copy_(sharpness(centers, features) * F.normalize(centers, dim=1))

    def traits(self, network: Any) -> Traits:
        """Return what is known of a network."""
        return replace(super().traits(network), token_dim=network.aggregation_tokens.numel())

    def features(self, network: Any, images: Tensor) -> Features:
        """Run a network on normalized images (B, 3, H, W) of the size of its position embedding."""
        tokens = first_tokens(network, images)
        for number, block in enumerate(network.blocks):
            if number == network.inserted_before:
                inserted = network.aggregation_tokens.expand(tokens.shape[0], -1, -1)
                tokens = torch.cat([inserted, tokens], dim=1)
            tokens = run_block(network, block, tokens)
        count = network.aggregation_tokens.shape[1]
        inserted, own = network.norm(tokens).tensor_split([count], dim=1)
        return Features(network.layout.features(own, images.shape[2:]).map, inserted.flatten(1))


def numbers_of(architecture: str) -> tuple[int, int]:
    """Return the number of tokens in the name of a network, and the block that they are inserted before."""
    found = _NAME.fullmatch(architecture)
    assert found is not None  # the family knows the name
    return int(found["count"] or _COUNT), int(found["block"] or _BLOCK)
