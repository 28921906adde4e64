"""Encoders of prompts: a text transformer on the tokens needed alone, or a CLIP itself on all of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from progeo.models.backbones.attention import attend, join_heads, split_heads
from progeo.models.text_towers.structure import TextStack, needed_tokens
from progeo.models.text_towers.tokenizers import LEARNED

# Chunks of this size keep a GPU busy, and the allocator reuses their memory; larger chunks fragment it.
_TEXTS_AT_ONCE = 256


class PromptEncoder(nn.Module, ABC):
    """Compute the features of prompts from their learned vectors; all else about them is fixed.

    The tower's weights are neither saved nor moved with it, and get no gradient if they are frozen.

    Args:
        context_length: number of tokens that the tower reads.
        tokens_computed: how many of them are computed for each prompt.
        shared_tokens: how many are computed once for all.
    """

    def __init__(self, context_length: int, tokens_computed: int, shared_tokens: int = 0) -> None:
        super().__init__()
        self.context_length, self.tokens_computed = context_length, tokens_computed
        self.shared_tokens = shared_tokens

    def forward(self, context: Tensor, texts: Tensor | None = None) -> Tensor:
        """Compute text features (B, E), not normalized.

        Args:
            context: learned vectors, (B, k, W).
            texts: index of the prompt of each, int64 (B,); None takes the first for all.
        """
        if texts is None:
            texts = torch.zeros(len(context), dtype=torch.long, device=context.device)
        parts = zip(context.split(_TEXTS_AT_ONCE), texts.split(_TEXTS_AT_ONCE), strict=True)
        return torch.cat([self._encode(*part) for part in parts])

    @abstractmethod
    def _encode(self, context: Tensor, texts: Tensor) -> Tensor: ...


class FollowedEncoder(PromptEncoder):
    """Compute only the tokens that the pooled one depends on; the common beginning once, of the last block one token.

    Args:
        stack: the text transformer.
        ids: ids of N prompts that differ in words alone, (N, L), see `Tokenizer.sequence`.
    """

    ids: Tensor
    rest: Tensor
    fixed: Tensor | None
    positions: Tensor
    beginning: Tensor
    seen: Tensor | None

    def __init__(self, stack: TextStack, ids: Tensor) -> None:
        needed = needed_tokens(stack, ids)
        super().__init__(ids.shape[1], len(needed.rest), len(needed.beginning))
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("rest", needed.rest, persistent=False)
        first = stack.embed(ids[:1]).detach()
        self.register_buffer("fixed", first[:, needed.rest] if len(ids) == 1 else None, persistent=False)
        self.register_buffer("positions", stack.positions[needed.rest].detach(), persistent=False)
        beginning = first[0, needed.beginning] + stack.positions[needed.beginning]
        self.register_buffer("beginning", _encode_beginning(stack, beginning, needed.seen_beginning), persistent=False)
        self.register_buffer("seen", None if needed.seen.all() else needed.seen, persistent=False)
        self._pooled = needed.pooled
        self._runs = _runs(needed.learned)
        self._stack = (stack,)  # in a tuple, so that it is not registered as a submodule

    def _encode(self, context: Tensor, texts: Tensor) -> Tensor:
        (stack,) = self._stack
        tokens = _filled(self._fixed_tokens(texts), context, self._runs) + self.positions
        *blocks, last = stack.blocks
        for block, shared in zip(blocks, self.beginning[:-1], strict=True):
            tokens = _run_block(block, shared, tokens, self.seen, slice(None))
        pooled = slice(self._pooled, self._pooled + 1)
        return stack.project(_run_block(last, self.beginning[-1], tokens, self.seen, pooled)[:, 0])

    def _fixed_tokens(self, texts: Tensor) -> Tensor:
        """Return the embeddings (B, S, W) of the computed tokens of prompts; those of many are not kept in memory."""
        if self.fixed is not None:
            return self.fixed.expand(len(texts), -1, -1)
        return self._stack[0].embed(self.ids[texts]).detach()[:, self.rest]


class FullEncoder(PromptEncoder):
    """Let the CLIP itself compute all tokens, with the learned vectors written into the output of its embedding.

    Args:
        encode: computes features (B, E) of ids (B, L).
        embedding: the tower's token embedding.
        ids: ids of N prompts that differ in words alone, (N, L).
        ordinary: id of an ordinary word, which stands for learned vectors.
        context_length: number of tokens that the tower reads.
    """

    ids: Tensor

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        embedding: nn.Embedding,
        ids: Tensor,
        *,
        ordinary: int,
        context_length: int,
    ) -> None:
        super().__init__(context_length, ids.shape[1])
        self.register_buffer("ids", torch.where(ids == LEARNED, ordinary, ids), persistent=False)
        self._runs = _runs(ids[0] == LEARNED)
        self._tower = (encode, embedding)

    def _encode(self, context: Tensor, texts: Tensor) -> Tensor:
        encode, embedding = self._tower
        hook = embedding.register_forward_hook(lambda module, inputs, output: _filled(output, context, self._runs))
        try:
            return encode(self.ids[texts])
        finally:
            hook.remove()


def _runs(learned: Tensor) -> list[tuple[bool, int]]:
    """Return the runs of learned and of fixed tokens, each with its length, of a mask (S,)."""
    values, lengths = learned.unique_consecutive(return_counts=True)
    return list(zip(values.tolist(), lengths.tolist(), strict=True))


def _filled(tokens: Tensor, context: Tensor, runs: list[tuple[bool, int]]) -> Tensor:
    """Replace the learned tokens of (B, S, W) by the context (B, k, W)."""
    parts, start, used = [], 0, 0
    for learned, length in runs:
        parts.append(context[:, used : used + length] if learned else tokens[:, start : start + length])
        used += length if learned else 0
        start += length
    return torch.cat(parts, dim=1)


@torch.no_grad()
def _encode_beginning(stack: TextStack, tokens: Tensor, seen: Tensor) -> Tensor:
    """Compute keys and values of the common beginning (P, W) in every block, (blocks, 2, heads, P, W / heads)."""
    causal = torch.equal(seen, torch.ones_like(seen).tril())
    mask, tokens = (None if causal else seen), tokens[None]
    beginning = []
    for block in stack.blocks:
        normed = block.ln_1(tokens)
        keys, values = _keys_and_values(block.attn, normed)
        beginning.append(torch.cat([keys, values]))
        queries = _queries(block.attn, normed)
        attended = attend(queries, keys, values, attn_mask=mask, is_causal=causal)
        tokens = _finish(block, tokens, attended)
    return torch.stack(beginning)


def _run_block(
    block: ResidualAttentionBlock, shared: Tensor, tokens: Tensor, seen: Tensor | None, rows: slice
) -> Tensor:
    """Run a block on tokens (B, S, W) after a beginning of P, for some rows; `seen` is the mask (S, P + S) of all."""
    normed = block.ln_1(tokens)
    keys, values = (
        torch.cat([common.to(own.dtype).expand(len(tokens), -1, -1, -1), own], dim=2)
        for common, own in zip(shared, _keys_and_values(block.attn, normed), strict=True)
    )
    queries, mask = _queries(block.attn, normed[:, rows]), None if seen is None else seen[rows]
    attended = attend(queries, keys, values, attn_mask=mask)
    return _finish(block, tokens[:, rows], attended)


def _queries(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    width = attention.embed_dim
    projected = F.linear(tokens, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    return split_heads(projected, attention.num_heads)


def _keys_and_values(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    width = attention.embed_dim
    projected = F.linear(tokens, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    keys, values = projected.chunk(2, dim=2)
    return split_heads(keys, attention.num_heads), split_heads(values, attention.num_heads)


def _finish(block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor) -> Tensor:
    """Apply output projection, residuals and MLP of a block to its attention output (B, heads, S, W / heads)."""
    tokens = tokens + block.ls_1(block.attn.out_proj(join_heads(attended)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
