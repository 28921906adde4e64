"""Attention on tokens as they lie in memory, each image's one after the other."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SLOW_BACKWARD = {("cpu", torch.bfloat16): 512}
"""Most keys up to which attention that needs a gradient is computed by its formula, by device and dtype.

There the backward pass of PyTorch's flash attention takes longer, measured with 64 channels a head: 9 times as long for
11 keys, 3.6 for 50, 1.8 for 197, 1.2 for 577, and 0.7 for 1,025.
"""


class BatchFirstAttention(nn.MultiheadAttention):
    """Compute the attention of tokens (B, N, W) without the weights of pairs.

    PyTorch's own forward transposes tokens to (N, B, W). A matrix that needs no gradient is then multiplied by `bmm`,
    which takes a copy of the matrix for every token: in bfloat16 on a CPU this is most of the time of a CLIP.
    """

    def forward(  # type: ignore[override] # only what the towers call
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Compute the output (B, Q, W) of queries (B, Q, W), keys (B, K, ...) and values (B, K, ...).

        Args:
            need_weights: must be false.
            attn_mask: added to the logits, (Q, K) or (B * heads, Q, K).
        """
        assert not need_weights
        projected = self._projected(query, key, value)
        queries, keys, values = (split_heads(part, self.num_heads) for part in projected)
        if attn_mask is not None:
            assert attn_mask.is_floating_point()  # a bool mask has the opposite meaning in `nn.MultiheadAttention`
            attn_mask = attn_mask.unflatten(0, (len(query), -1)) if attn_mask.ndim == 3 else attn_mask
        dropout = self.dropout if self.training else 0.0
        attended = attend(queries, keys, values, attn_mask=attn_mask, dropout_p=dropout)
        return self.out_proj(join_heads(attended)), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)
        weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        parts = zip((query, key, value), weights, self.in_proj_bias.chunk(3), strict=True)
        return tuple(F.linear(tokens.contiguous(), weight, bias) for tokens, weight, bias in parts)


def attend_batch_first(network: nn.Module) -> None:
    """Let `BatchFirstAttention` compute the attention of a network, with its parameters, where it computes the same."""
    for module in network.modules():
        is_plain = type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn
        if is_plain and module.batch_first:
            module.__class__ = BatchFirstAttention


def attend(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Compute `F.scaled_dot_product_attention` by the backend of `SLOW_BACKWARD`; a GPU chooses among all of them."""
    limit = SLOW_BACKWARD.get((queries.device.type, queries.dtype), 0)
    needs_gradient = torch.is_grad_enabled() and any(part.requires_grad for part in (queries, keys, values))
    if needs_gradient and keys.shape[2] <= limit:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(queries, keys, values, **options)
    return F.scaled_dot_product_attention(queries, keys, values, **options)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Split (B, N, W) into (B, heads, N, W / heads)."""
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)


def join_heads(attended: Tensor) -> Tensor:
    """Join (B, heads, N, W / heads) to (B, N, W)."""
    return attended.transpose(1, 2).flatten(2)
