"""Attention of CLIPs, whose ResNets pool by attention."""

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from progeo.models.backbones.attention import attend, attend_batch_first, split_heads


class BatchFirstPool(AttentionPool2d):
    """Compute the attention pooling of a ResNet for its mean token alone, which is all that it returns."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool a feature map (B, C, h, w) to vectors (B, E)."""
        cells = x.flatten(2).mT
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + self.positional_embedding.to(x.dtype)
        query = self.q_proj(tokens[:, 0])[:, None]
        parts = (query, self.k_proj(tokens), self.v_proj(tokens))
        attended = attend(*(split_heads(part, self.num_heads) for part in parts))
        return self.c_proj(attended.flatten(1))


def attend_clip_batch_first(network: nn.Module) -> None:
    """Let `BatchFirstAttention` and `BatchFirstPool` compute the attention of a CLIP, or of one of its towers."""
    attend_batch_first(network)
    for module in network.modules():
        if type(module) is AttentionPool2d:
            module.__class__ = BatchFirstPool
