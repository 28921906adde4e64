"""Structure of a text transformer of open_clip: which tokens a text feature depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

from progeo.models.text_towers.tokenizers import LEARNED


@dataclass(frozen=True)
class TextStack:
    """Parts of a text transformer that can be computed token by token, and what it pools and masks."""

    token_embedding: nn.Embedding
    positions: Tensor
    """Position embedding of all tokens, (T, W)."""
    blocks: Sequence[ResidualAttentionBlock]
    norm: nn.Module
    projection: nn.Module | Tensor | None
    causal_mask: Tensor | None
    """Additive, (T, T); None where every token sees all."""
    pool: str
    """The pooled token: `first`, `last`, `argmax` of the ids, or `eos`."""
    eos_id: int
    class_token: Tensor | None = None
    """Embedding of a token appended to every text and pooled, (W,)."""
    pad_id: int | None = None
    """Id of tokens that are masked; None if none are."""
    shifts_mask: bool = False
    """Whether the mask of padding is one token late, so that the first token is always seen and the class token only
    if the text has no padding, as in CoCa's published weights."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (N, T, W) of ids (N, L), without positions and learned vectors."""
        tokens = self.token_embedding(ids.clamp(min=0)).to(self.positions.dtype)
        if self.class_token is None:
            return tokens
        return torch.cat([tokens, self.class_token.expand(len(ids), 1, -1)], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """Compute features (B, E) of pooled tokens (B, W)."""
        normed = self.norm(tokens)
        if self.projection is None:
            return normed
        return self.projection(normed) if isinstance(self.projection, nn.Module) else normed @ self.projection

    def pooled(self, ids: Tensor) -> int:
        """Return the position of the pooled token of a text with ids (L,).

        Raises:
            ValueError: there is none.
        """
        if self.class_token is not None:
            return len(ids)
        if self.pool == "eos":
            if self.eos_id not in ids:
                raise ValueError(f"it pools the token {self.eos_id}, which the text does not have")
            return int((ids == self.eos_id).int().argmax())
        return {"first": 0, "last": len(ids) - 1, "argmax": int(ids.argmax())}[self.pool]

    def visible(self, ids: Tensor) -> Tensor:
        """Return which keys each token sees in a text with ids (L,), bool (T, T)."""
        length = len(ids) + (self.class_token is not None)
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device)
        if self.causal_mask is not None:
            seen &= (self.causal_mask[:length, :length] == 0).to(ids.device)
        if self.pad_id is not None:
            valid = ids != self.pad_id
            if self.class_token is not None:
                always = valid.new_ones(1)
                valid = torch.cat([always, valid] if self.shifts_mask else [valid, always])
            seen &= valid
        return seen


@dataclass(frozen=True)
class Needed:
    """The tokens of prompts that are computed."""

    beginning: Tensor
    """Positions of the leading tokens that all prompts have and that see only each other, int64 (P,)."""
    rest: Tensor
    """Positions of the others that the pooled token depends on, int64 (S,)."""
    learned: Tensor
    """Which of the rest are learned vectors, bool (S,)."""
    seen: Tensor
    """Which of both the rest sees, bool (S, P + S)."""
    seen_beginning: Tensor
    """Which of the beginning it sees itself, bool (P, P)."""
    pooled: int
    """Index of the pooled token in the rest."""


def needed_tokens(stack: TextStack, ids: Tensor) -> Needed:
    """Determine which tokens of prompts with ids (N, L), which differ in words alone, their text features depend on.

    Raises:
        ValueError: no learned vector reaches the feature.
    """
    visible, pooled = stack.visible(ids[0]), stack.pooled(ids[0])
    learned, differs = torch.zeros_like(visible[0]), torch.zeros_like(visible[0])
    learned[: ids.shape[1]] = ids[0] == LEARNED
    differs[: ids.shape[1]] = (ids != ids[0]).any(dim=0)
    needed = torch.zeros_like(learned)
    needed[pooled] = True
    while not torch.equal(more := needed | visible[needed].any(dim=0), needed):
        needed = more
    if not learned[needed].any():
        raise ValueError("its text feature does not depend on the learned vectors")
    rows = needed.nonzero()[:, 0]
    visible, first = visible[rows][:, rows], int((learned | differs)[rows].int().argmax())
    start = next(start for start in range(first, -1, -1) if not visible[:start, start:].any())
    return Needed(
        beginning=rows[:start],
        rest=rows[start:],
        learned=learned[rows][start:],
        seen=visible[start:],
        seen_beginning=visible[:start, :start],
        pooled=int((rows == pooled).int().argmax()) - start,
    )


def pooling_of(clip: CLIP) -> tuple[str, int] | None:
    """Return what the text transformer of a CLIP pools and its `eos_id`; None for a tower of Hugging Face."""
    if isinstance(clip, CLIP):
        return clip.text_pool_type, clip.text_eos_id
    return (clip.text.pool_type, clip.text.eos_id) if isinstance(clip.text, TextTransformer) else None


def text_stack(clip: CLIP) -> TextStack | None:
    """Return the text transformer of a CLIP; None if its structure cannot be followed."""
    pooling = pooling_of(clip)
    return None if pooling is None else _stack(clip if isinstance(clip, CLIP) else clip.text, *pooling)


def stack_of(text: TextTransformer) -> TextStack | None:
    """Return a text transformer that is not part of a `CLIP`; None if its structure cannot be followed."""
    return _stack(text, text.pool_type, text.eos_id)


def _stack(text: Any, pool: str, eos_id: int) -> TextStack | None:
    blocks = text.transformer.resblocks
    if any(type(block) is not ResidualAttentionBlock for block in blocks) or pool == "none":
        return None
    masks = isinstance(text, TextTransformer) and (text.use_pad_mask or text.cls_emb is not None)
    return TextStack(
        token_embedding=text.token_embedding,
        positions=text.positional_embedding,
        blocks=tuple(blocks),
        norm=text.ln_final,
        projection=text.text_projection,
        causal_mask=text.attn_mask,
        pool=pool,
        eos_id=eos_id,
        class_token=text.cls_emb if masks else None,
        pad_id=text.pad_id if masks else None,
        shifts_mask=masks and not text.correct_cls_mask,
    )
