"""CLIP's frozen text tower over texts with a common beginning: exactly its features, at a fraction of the cost."""

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor, nn


def encode_continuations(clip: CLIP, prefix: Tensor, continuations: Tensor) -> Tensor:
    """Text features of texts that begin alike and end at their last token.

    Attention is causal, so the beginning does not depend on what follows it: it is encoded once, without gradient, and
    its keys and values serve all texts. Nothing behind the end of text matters, and in the last block only the end of
    text itself is needed.

    Args:
        clip: a model whose text tower is frozen.
        prefix: embeddings of the common tokens, from the start of text on, (P, W) with P at least 1.
        continuations: embeddings of each text's other tokens, the end of text last, (B, S, W).

    Returns:
        (B, E), not normalised.
    """
    length = len(prefix)
    places = clip.positional_embedding
    shared = (prefix + places[:length])[None]
    own = continuations + places[length : length + continuations.shape[1]]
    *blocks, last = clip.transformer.resblocks
    for block in blocks:
        shared, own = _run_block(block, shared, own)
    _, end = _run_block(last, shared, own, queries=1)
    return clip.ln_final(end[:, 0]) @ clip.text_projection


def _run_block(block: nn.Module, shared: Tensor, own: Tensor, *, queries: int | None = None) -> tuple[Tensor, Tensor]:
    """One residual block over shared (1, P, W) and own (B, S, W) tokens, or over the last `queries` of the own."""
    with torch.no_grad():
        normed = block.ln_1(shared)
        shared_keys, shared_values = _keys_and_values(block.attn, normed)
        attended = F.scaled_dot_product_attention(
            _queries(block.attn, normed), shared_keys, shared_values, is_causal=True
        )
        shared = _finish(block, shared, attended)
    count, size = own.shape[:2]
    normed = block.ln_1(own)
    keys, values = (
        torch.cat([common.expand(count, -1, -1, -1), mine], dim=2)
        for common, mine in zip((shared_keys, shared_values), _keys_and_values(block.attn, normed), strict=True)
    )
    seen = torch.ones(size, keys.shape[2], dtype=torch.bool, device=own.device).tril(keys.shape[2] - size)
    first = size - (queries or size)
    attended = F.scaled_dot_product_attention(
        _queries(block.attn, normed[:, first:]), keys, values, attn_mask=seen[first:]
    )
    return shared, _finish(block, own[:, first:], attended)


def _queries(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    width = attention.embed_dim
    projected = F.linear(tokens, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    return _heads(projected, attention.num_heads)


def _keys_and_values(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    width = attention.embed_dim
    projected = F.linear(tokens, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    keys, values = projected.chunk(2, dim=2)
    return _heads(keys, attention.num_heads), _heads(values, attention.num_heads)


def _heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Split (B, S, W) into (B, heads, S, W / heads)."""
    return tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _finish(block: nn.Module, tokens: Tensor, attended: Tensor) -> Tensor:
    """Output projection, residuals and MLP of a block, from its attention (B, heads, S, W / heads)."""
    tokens = tokens + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
