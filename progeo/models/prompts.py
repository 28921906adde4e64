"""Learned text prompts: a few free vectors per class inside a fixed sentence (CoOp; CLIP-ReID, section 3.3).

Plain sentences are encoded beside them, into the same space.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor, nn

from progeo.models.text_tower import encode_beginning, encode_continuations

# Pieces of this size fill a GPU, and their freed memory serves the next piece, where larger ones leave holes.
_TEXTS_AT_ONCE = 256


class PromptLearner(nn.Module):
    """One learned context per class, read by a frozen CLIP text tower.

    The tower is used, not owned: it is no submodule, its weights are neither saved nor moved with the learner, so put
    it on the device first.

    Args:
        clip: the model whose text tower reads the prompts.
        num_classes: C.
        template: the sentence; `{}` is where the learned vectors stand.
        context_length: how many vectors a class learns.
        generator: of the initial vectors, drawn from a normal distribution of standard deviation 0.02.
    """

    def __init__(
        self,
        clip: CLIP,
        num_classes: int,
        template: str = "A photo of a {} street.",
        context_length: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        prefix, suffix = _token_ids(template, context_length, clip.context_length)
        embedding = clip.token_embedding.weight
        self.register_buffer("beginning", encode_beginning(clip, embedding[prefix]), persistent=False)
        self.register_buffer("suffix", embedding[suffix].detach().clone(), persistent=False)
        context = torch.randn(num_classes, context_length, embedding.shape[1], generator=generator) * 0.02
        self.context = nn.Parameter(context.to(embedding))
        self._tower = (clip,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, labels: Tensor) -> Tensor:
        """Text features (B, E), not normalised, of the classes of int64 labels (B,)."""
        classes, inverse = labels.unique(return_inverse=True)
        context = self.context[classes]
        continuations = torch.cat([context, self.suffix.expand(len(context), -1, -1)], dim=1)
        features = [
            encode_continuations(self._tower[0], self.beginning, part) for part in continuations.split(_TEXTS_AT_ONCE)
        ]
        # Not by indexing: its gradient adds up the images of a class in an order that changes from run to run.
        return F.embedding(inverse, torch.cat(features))


def encode_text(clip: CLIP, sentences: Sequence[str]) -> Tensor:
    """Text features (B, E), not normalised, of plain sentences: as `clip.encode_text` gives them, without the padding.

    Words beyond the tower's context length are left out. The sentences share the space of the learned prompts and of a
    ViT's descriptors, so that places can be searched by them.
    """
    device = clip.token_embedding.weight.device
    ids = SimpleTokenizer()(list(sentences), clip.context_length).to(device)
    beginning = encode_beginning(clip, clip.token_embedding(ids[0, :1]))  # the start of text
    lengths = ids.argmax(dim=1) + 1  # the end of text has the largest number of all tokens
    features = clip.text_projection.new_empty(len(ids), clip.text_projection.shape[1])
    for length in lengths.unique().tolist():
        alike = lengths == length
        encoded = encode_continuations(clip, beginning, clip.token_embedding(ids[alike, 1:length]))
        features[alike] = encoded.to(features.dtype)
    return features


def _token_ids(template: str, context_length: int, max_length: int) -> tuple[list[int], list[int]]:
    """The tokens before the learned vectors, from the start of text, and after them, to the end of text."""
    if template.count("{}") != 1:
        raise ValueError(f"prompts.template must contain {{}} once, for the learned vectors, got {template!r}.")
    if context_length < 1:
        raise ValueError(f"prompts.context_length must be at least 1, got {context_length}.")
    before, after = template.split("{}")
    tokenizer = SimpleTokenizer()
    prefix = [tokenizer.sot_token_id, *tokenizer.encode(before)]
    suffix = [*tokenizer.encode(after), tokenizer.eot_token_id]
    length = len(prefix) + context_length + len(suffix)
    if length > max_length:
        raise ValueError(f"prompts.template takes {length} tokens, but the text tower reads {max_length}: shorten it.")
    return prefix, suffix
