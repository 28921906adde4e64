"""Text towers of CLIPs: features of texts as open_clip computes them, and of prompts with only the tokens needed."""

import functools
import logging
from collections.abc import Sequence

import torch
from open_clip import CLIP
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import configuration_of
from progeo.models.text_towers.encoders import FollowedEncoder, FullEncoder, PromptEncoder
from progeo.models.text_towers.structure import pooling_of, text_stack
from progeo.models.text_towers.tokenizers import LEARNED, SENTENCE, Tokenizer, load_tokenizer
from progeo.printable import first_line

LOGGER = logging.getLogger("progeo")
_ROUNDING = 1e-3
"""Maximum error relative to the largest feature value: rounding causes below 1e-6, another mask or token about 0.5."""


class TextTower:
    """The text tower of a CLIP with its tokenizer.

    The CLIP is used as it is: move it to a device before prompts are encoded.

    Args:
        clip: CLIP, CustomTextCLIP or CoCa of open_clip in eval mode.
        tokenizer: its tokenizer.
        output_dim: E.
        needed_only: whether prompts are encoded with only the tokens needed, instead of by the CLIP itself.
    """

    def __init__(self, clip: CLIP, tokenizer: Tokenizer, *, output_dim: int, needed_only: bool = True) -> None:
        self.clip, self.tokenizer, self.output_dim = clip, tokenizer, output_dim
        self.needed_only = needed_only
        self.token_embedding = _token_embedding(clip)
        self.context_length, self.width = tokenizer.context_length, self.token_embedding.weight.shape[1]

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that decide which tokens a feature depends on: learned vectors, padding, the frame and the pooled."""
        frame, (_, eos_id) = self.tokenizer.frame, pooling_of(self.clip) or ("", LEARNED)
        return frozenset({LEARNED, self.tokenizer.pad_id, *frame.before, *frame.after, *frame.last, eos_id})

    @property
    def logit_scale(self) -> float:
        """Factor of cosine similarities in the CLIP's own loss."""
        return float(self.clip.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """Term added to the scaled similarities in the CLIP's own loss; None without one."""
        bias = self.clip.logit_bias
        return None if bias is None else float(bias.detach())

    @torch.no_grad()
    def embedding(self, ids: Tensor) -> Tensor:
        """Return the token embeddings (..., W) of ids (...), as the tower reads them."""
        return self.token_embedding(ids.to(self.token_embedding.weight.device))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Compute the features (B, E) of texts, not normalized, as the CLIP's own `encode_text` does."""
        return encode_ids(self.clip, self.tokenizer.ids(texts))

    def prompts(self, *sequences: Sequence[int]) -> PromptEncoder:
        """Build the encoder of prompts.

        Args:
            sequences: L ids of each prompt, see `Tokenizer.sequence`, with the same `special_ids` at the same
                positions.

        Raises:
            ValueError: the ids are not those of the tower's vocabulary, or no learned vector reaches the feature.
        """
        ids = torch.tensor(sequences, device=self.token_embedding.weight.device)
        check_ids(ids, self.token_embedding)
        stack = text_stack(self.clip) if self.needed_only else None
        if stack is not None:
            return FollowedEncoder(stack, ids)
        pad_id = _masked_id(self.clip)
        if self.needed_only and pad_id is not None:
            ids = ids[:, : int((ids != pad_id).any(dim=0).nonzero().max()) + 1]
        ordinary = self.tokenizer.encode("a")[0]
        return FullEncoder(
            lambda filled: encode_ids(self.clip, filled),
            self.token_embedding,
            ids,
            ordinary=ordinary,
            context_length=self.context_length,
        )


def build_text_tower(clip: CLIP) -> TextTower:
    """Build the text tower of a CLIP that `load_clip` returned.

    Raises:
        ValueError: its texts cannot be read right, see `load_tokenizer`, or its features are no numbers.
    """
    return tower_with(clip, load_tokenizer(configuration_of(clip)))


@torch.no_grad()
def tower_with(clip: CLIP, tokenizer: Tokenizer) -> TextTower:
    """Build the text tower of a CLIP with its tokenizer, and check it on a test sentence.

    Raises:
        ValueError: its own `encode_text` fails, its features are no numbers, or they do not follow the prompts.
    """
    ids = tokenizer.ids([SENTENCE])
    try:
        check_ids(ids, _token_embedding(clip))
        check_pooling(clip, ids[0], tokenizer)
        own = encode_ids(clip, ids)
    except ValueError:
        raise
    except Exception as error:  # a configuration that open_clip builds, but cannot run
        raise ValueError(f"its own text features cannot be computed: {first_line(error)}") from None
    if own.ndim != 2:
        raise ValueError("it has no feature of a text, but one for each token")
    if not own.isfinite().all():
        raise ValueError("its text features are not finite")
    for needed_only in (True, False):
        tower = TextTower(clip, tokenizer, output_dim=own.shape[1], needed_only=needed_only)
        if _reproduces(tower, ids[0], own):
            return tower
        LOGGER.info("the text tower is not computed as expected: all %d tokens are computed", tower.context_length)
    raise ValueError("its text features do not follow from its token embeddings")


def encode_ids(clip: CLIP, ids: Tensor) -> Tensor:
    """Compute the CLIP's own features (B, E) of token ids (B, L), not normalized."""
    features = clip.encode_text(ids.to(clip.logit_scale.device), normalize=False)
    return features[0] if isinstance(features, tuple) else features  # with `output_tokens`


def check_ids(ids: Tensor, embedding: nn.Embedding) -> None:
    """Refuse ids that are not of the vocabulary."""
    if (largest := int(ids.max())) >= embedding.num_embeddings:
        raise ValueError(
            f"its tokenizer gives the id {largest}, and its vocabulary has {embedding.num_embeddings} tokens"
        )


def check_pooling(clip: CLIP, ids: Tensor, tokenizer: Tokenizer) -> None:
    """Refuse a tower that would pool another token than the end of text, given the ids (L,) of a text."""
    pool, eos_id = pooling_of(clip) or ("", 0)
    if pool == "argmax" and int(ids.max()) != tokenizer.size - 1:
        raise ValueError(
            f"it pools the token of the largest id, and its tokenizer's end of text is {int(ids.max())} of "
            f"{tokenizer.size} ids"
        )
    if pool == "eos" and eos_id not in ids:
        raise ValueError(f"it pools the token {eos_id}, which its tokenizer does not put at the end of texts")


def _reproduces(tower: TextTower, ids: Tensor, own: Tensor) -> bool:
    """Whether a prompt with the embeddings of words in place of learned vectors has the sentence's features (1, E)."""
    start = int((ids != tower.tokenizer.pad_id).int().argmax())
    words = slice(start + 1, start + 3)
    sequence = ids.tolist()
    sequence[words] = [LEARNED] * 2
    encoder = tower.prompts(sequence)
    try:
        features = encoder(tower.embedding(ids[None, words]))
    except Exception:  # anything can fail in a tower with another structure
        return False
    return bool((features - own).abs().max() <= _ROUNDING * own.abs().max())


def _masked_id(clip: CLIP) -> int | None:
    """Return the id that a text tower of Hugging Face masks; None for other towers."""
    if isinstance(clip, CLIP) or not isinstance(clip.text, HFTextEncoder):
        return None
    return clip.text.config.pad_token_id


def _token_embedding(clip: CLIP) -> nn.Embedding:
    if isinstance(clip, CLIP):
        return clip.token_embedding
    if isinstance(clip.text, HFTextEncoder):
        return clip.text.transformer.get_input_embeddings()
    return clip.text.token_embedding
