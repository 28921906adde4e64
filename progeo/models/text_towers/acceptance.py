"""Which text towers can encode prompts, and how many tokens that takes, from the configuration alone."""

from dataclasses import dataclass, replace

import open_clip
import torch

from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.text_towers.structure import needed_tokens, stack_of
from progeo.models.text_towers.tokenizers import check_tokenizer, load_tokenizer

_PROMPT = ("A photo of a ", 4, " street.")


@dataclass(frozen=True)
class TokensComputed:
    """How many tokens of a prompt are computed."""

    context_length: int
    """Number of tokens that the tower reads."""
    tokens: int | None
    """Tokens computed for each prompt; None for those up to the end of text, which only its tokenizer knows."""
    shared_tokens: int | None
    """Leading tokens that are computed once for all prompts; None if only its tokenizer knows."""

    def __str__(self) -> str:
        """Return the number of tokens, of those read, and how many more are computed once."""
        tokens = "up to the end of text" if self.tokens is None else str(self.tokens)
        return f"{tokens} of {self.context_length}{f', {self.shared_tokens} more once' if self.shared_tokens else ''}"


def tokens_computed(configuration: ClipConfiguration) -> TokensComputed:
    """Determine which tokens of "A photo of a [V][V][V][V] street." a text tower computes, without its weights.

    A tokenizer of Hugging Face is not loaded; see `tower_with` for the checks that need it, and the weights.

    Raises:
        ValueError: its texts cannot be read right.
    """
    check_tokenizer(configuration)
    text, length = configuration.text, configuration.text.context_length
    if text.hf_model_name:
        return TokensComputed(length, None, 0)
    small = replace(text, layers=1, width=8, heads=1, vocab_size=1)
    with torch.random.fork_rng(devices=[]):
        stack = stack_of(open_clip.model._build_text_tower(8, small))
    if stack is None:
        return TokensComputed(length, length, 0)
    if text.hf_tokenizer_name:
        sees_all = stack.causal_mask is None and stack.pad_id is None
        return TokensComputed(length, length, 0) if sees_all else TokensComputed(length, None, None)
    needed = needed_tokens(stack, torch.tensor([load_tokenizer(configuration).sequence(_PROMPT)]))
    return TokensComputed(length, len(needed.rest), len(needed.beginning))
