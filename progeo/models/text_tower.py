"""Exact features of CLIP's frozen text tower for texts with a common prefix, at a fraction of the cost.

Attention is causal, so the prefix does not depend on the tokens after it: it is encoded once, and all texts share its
keys and values. Tokens after the end of text are not computed; the last block computes the end of text only.
"""

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


@torch.no_grad()
def encode_beginning(clip: CLIP, prefix: Tensor) -> Tensor:
    """Compute the keys and values of the common prefix of all texts in every block of the text tower.

    Args:
        clip: a model with a frozen text tower.
        prefix: token embeddings of the prefix, including the start of text, (P, W) with P at least 1.

    Returns:
        (blocks, 2, heads, P, W / heads), without gradient.
    """
    tokens = (prefix + clip.positional_embedding[: len(prefix)])[None]
    beginning = []
    for block in clip.transformer.resblocks:
        normed = block.ln_1(tokens)
        keys, values = _keys_and_values(block.attn, normed)
        beginning.append(torch.cat([keys, values]))
        attended = F.scaled_dot_product_attention(_queries(block.attn, normed), keys, values, is_causal=True)
        tokens = _finish(block, tokens, attended)
    return torch.stack(beginning)


def encode_continuations(clip: CLIP, beginning: Tensor, continuations: Tensor) -> Tensor:
    """Compute text features from the cached prefix and the other tokens of each text.

    Args:
        clip: the model that encoded the prefix.
        beginning: keys and values of the prefix, from `encode_beginning`.
        continuations: token embeddings of each text after the prefix, the end of text last, (B, S, W).

    Returns:
        (B, E), not normalized.
    """
    length, size = beginning.shape[3], continuations.shape[1]
    tokens = continuations + clip.positional_embedding[length : length + size]
    seen = torch.ones(size, length + size, dtype=torch.bool, device=tokens.device).tril(length)
    *blocks, last = clip.transformer.resblocks
    for block, shared in zip(blocks, beginning[:-1], strict=True):
        tokens = _run_block(block, shared, tokens, seen)
    end = _run_block(last, beginning[-1], tokens, seen[-1:])
    return clip.ln_final(end[:, 0]) @ clip.text_projection


def _run_block(block: ResidualAttentionBlock, shared: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
    """Run a block on tokens (B, S, W) after a prefix of P, for the last Q tokens; `seen` is the mask (Q, P + S)."""
    normed = block.ln_1(tokens)
    keys, values = (
        torch.cat([common.expand(len(tokens), -1, -1, -1), own], dim=2)
        for common, own in zip(shared, _keys_and_values(block.attn, normed), strict=True)
    )
    count = len(seen)
    attended = F.scaled_dot_product_attention(_queries(block.attn, normed[:, -count:]), keys, values, attn_mask=seen)
    return _finish(block, tokens[:, -count:], attended)


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


def _finish(block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor) -> Tensor:
    """Apply output projection, residuals and MLP of a block to its attention output (B, heads, S, W / heads)."""
    tokens = tokens + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
