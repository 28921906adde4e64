"""Learned text prompts: a few context vectors per class inside a fixed sentence (CoOp; CLIP-ReID, section 3.3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import named_configuration, own_spelling
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.family import ImageSize
from progeo.models.text_tower import encode_beginning, encode_continuations
from progeo.models.vocabulary import clip_tokenizer

# Chunks of this size keep a GPU busy, and the allocator reuses their memory; larger chunks fragment it.
_TEXTS_AT_ONCE = 256
_SENTENCE = "A photo of the Rue de l'Église, Zürich: no. 7!"
"""Test sentence with capitals, punctuation and accents, which other tokenizers encode differently."""
_ROUNDING = 1e-3
"""Maximum error relative to the largest feature value: rounding causes below 1e-6, another mask or token about 0.5."""
_ANY = ("width", "heads", "layers")
"""Settings of a text tower that may have any value for prompt learning."""


def load_prompt_clip(architecture: str, weights: str, image_size: ImageSize | None = None, **options: Any) -> CLIP:
    """Load a CLIP for prompt learning, after checking that its text tower is computed as `PromptLearner` computes it.

    Args:
        architecture, weights, image_size, options: see `load_clip`.

    Raises:
        ValueError: see `load_clip`; or `PromptLearner` would compute other features than its `encode_text`. The message
            lists the unusual settings of the text tower.
    """
    if _text_settings(architecture).get("hf_tokenizer_name"):  # before weights are fetched
        raise ValueError(_refusal(architecture))
    clip = load_clip(architecture, weights, image_size, **options)
    _check_features(clip, architecture)
    return clip


class PromptLearner(nn.Module):
    """Learned context vectors per class, encoded by a frozen CLIP text tower.

    The text tower is not a submodule: its weights are neither saved nor moved with the learner, so move the CLIP to the
    device first.

    Args:
        clip: the model whose text tower encodes the prompts.
        num_classes: C.
        template: the sentence; `{}` marks the position of the learned vectors.
        context_length: number of learned vectors per class.
        generator: random generator of the initial vectors, normal with std 0.02.
    """

    beginning: Tensor
    suffix: Tensor

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
        prefix, suffix = prompt_token_ids(template, context_length, clip.context_length)
        embedding = clip.token_embedding.weight
        self.register_buffer("beginning", encode_beginning(clip, embedding[prefix]), persistent=False)
        self.register_buffer("suffix", embedding[suffix].detach().clone(), persistent=False)
        context = torch.randn(num_classes, context_length, embedding.shape[1], generator=generator) * 0.02
        self.context = nn.Parameter(context.to(embedding))
        self._tower = (clip,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, labels: Tensor) -> Tensor:
        """Compute the text features (B, E), not normalized, of the classes with int64 labels (B,)."""
        classes, inverse = labels.unique(return_inverse=True)
        context = self.context[classes]
        continuations = torch.cat([context, self.suffix.expand(len(context), -1, -1)], dim=1)
        features = [
            encode_continuations(self._tower[0], self.beginning, part) for part in continuations.split(_TEXTS_AT_ONCE)
        ]
        # Not by indexing, whose backward pass sums the images of a class in an order that changes from run to run.
        return F.embedding(inverse, torch.cat(features))


def _check_features(clip: CLIP, architecture: str) -> None:
    """Refuse a model whose own text feature of a test sentence differs from that of `_text_feature`."""
    try:
        ids = open_clip.get_tokenizer(own_spelling(architecture))([_SENTENCE])
        with torch.no_grad():
            ours, theirs = _text_feature(clip, _SENTENCE), clip.encode_text(ids)
        agree = (ours - theirs).abs().max() <= _ROUNDING * theirs.abs().max()  # False for NaN
    except Exception:  # anything can fail in a tower with another structure
        agree = False
    if not agree:
        raise ValueError(_refusal(architecture))


def _text_feature(clip: CLIP, sentence: str) -> Tensor:
    """Compute the text feature (1, E) of a sentence as `PromptLearner` computes those of prompts."""
    ids = open_clip.tokenize([sentence], clip.context_length)[0]
    embeddings = clip.token_embedding(ids[: ids.argmax() + 1])  # end of text has the largest id of all tokens
    return encode_continuations(clip, encode_beginning(clip, embeddings[:1]), embeddings[None, 1:])


def _refusal(architecture: str) -> str:
    usual = {setting.name: setting.default for setting in dataclasses.fields(open_clip.CLIPTextCfg)}
    settings = {name: value for name, value in _text_settings(architecture).items() if name not in _ANY}
    unusual = ", ".join(f"{name} {value}" for name, value in settings.items() if value != usual.get(name))
    return (
        f"Prompts cannot be learned for {architecture}: its texts are not encoded as those of OpenAI's CLIP are"
        f"{f' ({unusual})' if unusual else ''}. Use one such as RN50 or ViT-B-16; without text "
        f"(`text.weight` 0) stage 2 trains {architecture} too."
    )


def _text_settings(architecture: str) -> Mapping[str, Any]:
    """Return the text tower's part of a plain architecture's configuration."""
    return named_configuration(architecture).values["text_cfg"]


def prompt_token_ids(template: str, context_length: int, max_length: int) -> tuple[list[int], list[int]]:
    """Return the token ids before the learned vectors (with start of text) and after them (with end of text).

    Args:
        template: the sentence; `{}` marks the position of the learned vectors.
        context_length: number of learned vectors.
        max_length: number of tokens that the text tower reads.

    Raises:
        ValueError: the template does not contain `{}` once, or is too long.
    """
    if template.count("{}") != 1:
        raise ValueError(f"`template` must contain {{}} once, for the learned vectors, got {template!r}.")
    if context_length < 1:
        raise ValueError(f"`context_length` must be at least 1, got {context_length}.")
    before, after = template.split("{}")
    tokenizer = clip_tokenizer()
    prefix = [tokenizer.sot_token_id, *tokenizer.encode(before)]
    suffix = [*tokenizer.encode(after), tokenizer.eot_token_id]
    length = len(prefix) + context_length + len(suffix)
    if length > max_length:
        raise ValueError(f"`template` takes {length} tokens, but the text tower reads {max_length}: shorten it.")
    return prefix, suffix
