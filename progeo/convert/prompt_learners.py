"""Import the prompts of published ProGEO's stage 1: a pickled list of modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progeo.convert.converted_encoder import single_precision
from progeo.models.weight_files.checkpoints import is_weight
from progeo.models.weight_files.torch_files import Stub

_LEARNERS = tuple(f"cosplace_model.cosplace_network_stage{stage}.PromptLearner" for stage in (1, 2))
_WORDS = ("token_prefix", "token_suffix")


@dataclass(frozen=True)
class PublishedPrompts:
    """Learned prompts of all groups."""

    contexts: tuple[Tensor, ...]
    """Learned context vectors of each group, (C, length, W)."""
    prefix: Tensor
    """Token embeddings before the learned vectors, including the start of text, (1, n, W)."""
    suffix: Tensor
    """Token embeddings after the learned vectors, up to the context length of the text tower, (1, m, W)."""


def holds_prompt_learners(content: Any) -> bool:
    """Return whether the content of a file is a list of published prompt learners."""
    if not isinstance(content, list) or not content:
        return False
    return all(isinstance(item, Stub) and type(item).kind in _LEARNERS for item in content)


def prompts_in(content: Sequence[Stub], path: Path) -> PublishedPrompts:
    """Extract the prompts from the content of a file.

    Args:
        content: the prompt learners, one per group, of the file at `path`.

    Raises:
        ValueError: a learner lacks a tensor, has a tensor of another shape, or differs from the first learner in its
            template or context length.
    """
    learners = [_tensors(learner) for learner in content]
    first = learners[0]
    for index, tensors in enumerate(learners):
        if missing := [name for name in ("cls_ctx", *_WORDS) if name not in tensors]:
            raise ValueError(f"{path} is not complete: the prompt learner of group {index} has no {missing[0]}.")
        context, prefix, suffix = tensors["cls_ctx"], tensors["token_prefix"], tensors["token_suffix"]
        if (
            not context.ndim == prefix.ndim == suffix.ndim == 3
            or not context.shape[2] == prefix.shape[2] == suffix.shape[2]
            or not len(prefix) == len(suffix) == 1
            or not context.is_floating_point()
        ):
            raise ValueError(
                f"{path}: the prompt learner of group {index} should have a cls_ctx (C, length, W) of fractions and "
                f"word vectors (1, n, W), has {tuple(context.shape)} of {context.dtype}, {tuple(prefix.shape)} and "
                f"{tuple(suffix.shape)}."
            )
        same_words = all(torch.equal(tensors[name], first[name]) for name in _WORDS)
        if not same_words or context.shape[1] != first["cls_ctx"].shape[1]:
            raise ValueError(
                f"{path}: the prompt learner of group {index} has another number of learned vectors, or other words "
                f"around them, than that of group 0: they are of different trainings."
            )
    return PublishedPrompts(tuple(tensors["cls_ctx"] for tensors in learners), *(first[name] for name in _WORDS))


def _tensors(learner: Stub) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name, in float32."""
    kinds = (vars(learner).get(kind) for kind in ("_parameters", "_buffers"))
    named = (item for values in kinds if isinstance(values, Mapping) for item in values.items())
    return {name: single_precision(value) for name, value in named if is_weight(name, value)}
