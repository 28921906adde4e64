"""Learned text prompts: a few context vectors per class inside a fixed sentence (CoOp; CLIP-ReID, section 3.3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor, nn

from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.family import ImageSize
from progeo.models.options import ClassTokenPosition
from progeo.models.text_towers.tokenizers import configuration_with_tokenizer, load_tokenizer
from progeo.models.text_towers.tower import TextTower, build_text_tower, tower_with

_WORD = -2
"""Stands for any ordinary token where prompts are compared, since ids are at least -1."""


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
        template: the sentence; `{}` marks the position of the learned vectors and of the words of a class.
        context_length: number of learned vectors k.
        words: words of each class, such as the name of its street, "" for none; empty gives no class any.
        position: where the words stand relative to the vectors, see `prompt_parts`.
        shared: whether all classes share one context, (1, k, W).
        initial_words: words whose embeddings the vectors start from, instead of noise.
        sparse: whether the gradient of the vectors is sparse, as with `nn.Embedding`: that of the classes of a batch.
        generator: random generator of the initial vectors, normal with std 0.02.

    Raises:
        ValueError: see `prompt_parts`, `Tokenizer.sequence` and `initial_vectors`.
    """

    texts: Tensor

    def __init__(
        self,
        clip: CLIP | TextTower,
        num_classes: int,
        template: str = "A photo of a {} street.",
        context_length: int = 4,
        *,
        words: Sequence[str] = (),
        position: ClassTokenPosition = "end",
        shared: bool = False,
        initial_words: str | None = None,
        sparse: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        tower = clip if isinstance(clip, TextTower) else build_text_tower(clip)
        words = words or [""] * num_classes
        kinds: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        place_of: dict[str, tuple[int, int]] = {}
        for text in dict.fromkeys(words):
            sequence = tower.tokenizer.sequence(prompt_parts(template, context_length, text, position))
            kind = tuple(token if token in tower.special_ids else _WORD for token in sequence)
            same = kinds.setdefault(kind, [])
            place_of[text] = list(kinds).index(kind), len(same)
            same.append(sequence)
        self.encoders = nn.ModuleList(tower.prompts(*same) for same in kinds.values())
        places = torch.tensor([place_of[text] for text in words])
        self.kinds = places[:, 0].contiguous()  # on the CPU, as how many classes of a batch have each is needed there
        texts = places[:, 1].to(tower.token_embedding.weight.device)
        self.register_buffer("texts", texts, persistent=False)
        self.shared, self.sparse = shared, sparse
        num_contexts = 1 if shared else num_classes
        if initial_words is None:
            context = torch.randn(num_contexts, context_length, tower.width, generator=generator) * 0.02
        else:
            context = initial_vectors(tower, initial_words, template, context_length).repeat(num_contexts, 1, 1)
        self.context = nn.Parameter(context.to(tower.token_embedding.weight))

    def forward(self, labels: Tensor) -> Tensor:
        """Compute the text features (B, E), not normalized, of the classes with int64 labels (B,).

        Labels on the CPU save waiting for the device.
        """
        classes, inverse = labels.cpu().unique(return_inverse=True)
        kinds, device = self.kinds[classes], self.context.device
        order, counts = kinds.argsort(stable=True), kinds.bincount(minlength=len(self.encoders)).tolist()
        # Taken together: a GPU does not coalesce a sum of sparse gradients, and its norm would wait for the device.
        contexts = self._contexts_of(classes.to(device, non_blocking=True))
        of_kinds = contexts.index_select(0, order.to(device, non_blocking=True)).split(counts)
        texts = self.texts[classes[order].to(device, non_blocking=True)].split(counts)
        features = [
            encoder(*part) for encoder, *part in zip(self.encoders, of_kinds, texts, strict=True) if len(part[0])
        ]
        inverse = order.argsort()[inverse]
        # Not by indexing, whose backward pass sums the images of a class in an order that changes from run to run.
        return F.embedding(inverse.to(device, non_blocking=True), torch.cat(features))

    def _contexts_of(self, classes: Tensor) -> Tensor:
        if self.shared:
            return self.context.expand(len(classes), -1, -1)
        return _SparseRows.apply(self.context, classes) if self.sparse else self.context[classes]


class _SparseRows(torch.autograd.Function):
    """Rows (B, k, W) of a table (C, k, W) at indices in ascending order, with a sparse gradient.

    `F.embedding` has one for matrices alone.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = table.shape
        return table[indices]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        # Were it not known that the indices differ, its norm would wait for the device.
        rows = torch.sparse_coo_tensor(indices[None], gradient, ctx.shape, is_coalesced=True, check_invariants=False)
        return rows, None


def prompt_parts(
    template: str, context_length: int, words: str = "", position: ClassTokenPosition = "end"
) -> list[str | int]:
    """Return the parts of a prompt, see `Tokenizer.sequence`.

    Args:
        template: the sentence; `{}` marks the position of the learned vectors and of the words.
        context_length: number of learned vectors.
        words: words of the class.
        position: where the words stand: after the vectors, after half of them (rounded down), or before them (CoOp,
            Zhou et al., IJCV 2022, section 3.2).

    Raises:
        ValueError: the template does not contain `{}` once.
    """
    if template.count("{}") != 1:
        raise ValueError(f"`template` must contain {{}} once, for the learned vectors, got {template!r}.")
    if context_length < 1:
        raise ValueError(f"`context_length` must be at least 1, got {context_length}.")
    before, after = template.split("{}")
    if not words:
        return [before, context_length, after]
    if position == "front":
        return [f"{before.rstrip()} {words}".lstrip(), context_length, after]
    half = context_length // 2 if position == "middle" else context_length
    return [before, half, f" {words}", *([context_length - half] if half < context_length else []), after]


def initial_vectors(tower: TextTower, words: str, template: str, context_length: int) -> Tensor:
    """Return the embeddings (k, W) of words that learned vectors start from.

    Raises:
        ValueError: they are not `context_length` tokens.
    """
    before, _, _ = prompt_parts(template, context_length)
    ids = tower.tokenizer.encode(f" {words}" if before else words, continues=bool(before))
    if len(ids) != context_length:
        raise ValueError(
            f"`initial_words` {words!r} are {len(ids)} tokens, and `context_length` is {context_length}: set "
            f"`context_length` {len(ids)}, or give other words."
        )
    return tower.embedding(torch.tensor(ids))
