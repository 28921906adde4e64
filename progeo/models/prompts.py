"""Learned text prompts: a few context vectors per class inside a fixed sentence (CoOp; CLIP-ReID, section 3.3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.family import ImageSize
from progeo.models.text_towers.tokenizers import configuration_with_tokenizer, load_tokenizer
from progeo.models.text_towers.tower import TextTower, build_text_tower, tower_with


def load_prompt_tower(
    architecture: str,
    weights: str,
    image_size: ImageSize | None = None,
    *,
    configuration: ClipConfiguration | None = None,
    **options: Any,
) -> TextTower:
    """Load a CLIP whose text tower can encode prompts; its weights are fetched only once its texts can be read.

    Args:
        architecture, weights, image_size, configuration, options: see `load_clip`.

    Raises:
        ValueError: see `load_clip`; or its texts cannot be read right, see `load_tokenizer` and `tower_with`.
    """
    resolved = configuration_with_tokenizer(configuration, architecture, weights)
    with _refusals(architecture):
        tokenizer = load_tokenizer(resolved)
    clip = load_clip(architecture, weights, image_size, configuration=resolved, **options)
    with _refusals(architecture):
        return tower_with(clip, tokenizer)


@contextmanager
def _refusals(architecture: str) -> Iterator[None]:
    """Name the CLIP in errors about its text tower."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"Prompts cannot be learned for {architecture}: {error}. Use one such as RN50 or ViT-B-16; without text "
            f"(`text.weight` 0) stage 2 trains {architecture} too."
        ) from None


class PromptLearner(nn.Module):
    """Learned context vectors per class, encoded by a frozen CLIP text tower.

    The text tower is not a submodule: its weights are neither saved nor moved with the learner, so move the CLIP to the
    device first.

    Args:
        clip: the model whose text tower encodes the prompts, or this tower.
        num_classes: C.
        template: the sentence; `{}` marks the position of the learned vectors.
        context_length: number of learned vectors per class.
        generator: random generator of the initial vectors, normal with std 0.02.
    """

    def __init__(
        self,
        clip: CLIP | TextTower,
        num_classes: int,
        template: str = "A photo of a {} street.",
        context_length: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        tower = clip if isinstance(clip, TextTower) else build_text_tower(clip)
        self.encoder = tower.prompts(tower.tokenizer.sequence(template_parts(template, context_length)))
        context = torch.randn(num_classes, context_length, tower.width, generator=generator) * 0.02
        self.context = nn.Parameter(context.to(tower.token_embedding.weight))

    def forward(self, labels: Tensor) -> Tensor:
        """Compute the text features (B, E), not normalized, of the classes with int64 labels (B,)."""
        classes, inverse = labels.unique(return_inverse=True)
        # Not by indexing, whose backward pass sums the images of a class in an order that changes from run to run.
        return F.embedding(inverse, self.encoder(self.context[classes]))


def template_parts(template: str, context_length: int) -> tuple[str, int, str]:
    """Return the parts of a prompt, see `Tokenizer.sequence`.

    Args:
        template: the sentence; `{}` marks the position of the learned vectors.
        context_length: number of learned vectors.

    Raises:
        ValueError: the template does not contain `{}` once.
    """
    if template.count("{}") != 1:
        raise ValueError(f"`template` must contain {{}} once, for the learned vectors, got {template!r}.")
    if context_length < 1:
        raise ValueError(f"`context_length` must be at least 1, got {context_length}.")
    before, after = template.split("{}")
    return before, context_length, after
