"""Import the prompts of published ProGEO's stage 1: a pickled list of modules, and a file with their classes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progeo.convert.converted_encoder import single_precision
from progeo.models.weight_files.checkpoints import read_content
from progeo.models.weight_files.torch_files import Stub

_LEARNERS = tuple(f"cosplace_model.cosplace_network_stage{stage}.PromptLearner" for stage in (1, 2))
_WORDS = ("token_prefix", "token_suffix")
_CELLS = re.compile(r"_M([1-9]\d*)_N([1-9]\d*)_alpha([1-9]\d*)_L([1-9]\d*)_mipc(\d+)\.torch$")


@dataclass(frozen=True)
class PublishedPrompts:
    """Learned prompts of all groups."""

    contexts: tuple[Tensor, ...]
    """Learned context vectors of each group, (C, length, W)."""
    prefix: Tensor
    """Token embeddings before the learned vectors, including the start of text, (1, n, W)."""
    suffix: Tensor
    """Token embeddings after the learned vectors, up to the context length of the text tower, (1, m, W)."""


@dataclass(frozen=True)
class PublishedClasses:
    """Classes of each group, in the order in which the published code labels them."""

    class_ids: tuple[np.ndarray, ...]
    """Class ids of each group, int64 (C, 3); the label of a class is its row index."""
    num_images: tuple[np.ndarray, ...]
    """Number of images per class, for each group, int64 (C,)."""


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


def read_published_classes(path: Path) -> PublishedClasses:
    """Read the classes that the published code stores in `cache/`: a list per group, and the images of each class.

    Raises:
        ValueError: the file has another content, or names a class twice.
    """
    content = read_content(path)
    try:
        groups, images = content
        classes = [[(int(east), int(north), int(heading)) for east, north, heading in group] for group in groups]
        ids = tuple(np.array(group, np.int64).reshape(-1, 3) for group in classes)
        counts = tuple(np.array([len(images[class_id]) for class_id in group], np.int64) for group in classes)
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ValueError(
            f"{path} is no order of classes: it should hold a list of (east, north, heading) for each group, and the "
            f"images of each class."
        ) from None
    everywhere = [class_id for group in classes for class_id in group]
    if len(set(everywhere)) < len(everywhere):
        raise ValueError(f"{path} names a class twice; every class should be in one group, once.")
    return PublishedClasses(ids, counts)


def parse_cells(name: str) -> dict[str, int]:
    """Parse the cell settings from the name of the published code's file of classes, such as `_M10_N5_alpha30_...`.

    Raises:
        ValueError: the name does not contain them.
    """
    if (found := _CELLS.search(name)) is None:
        raise ValueError(
            f"The cell settings are missing from the name {name}: it should end like _M10_N5_alpha30_L2_mipc10.torch."
        )
    names = ("cell_side_m", "groups_per_side", "heading_bin_deg", "groups_per_heading", "min_images_per_class")
    return dict(zip(names, map(int, found.groups()), strict=True))


def _tensors(learner: Stub) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name, in float32."""
    kinds = (vars(learner).get(kind) for kind in ("_parameters", "_buffers"))
    named = (item for values in kinds if isinstance(values, Mapping) for item in values.items())
    return {name: single_precision(value) for name, value in named if isinstance(value, Tensor)}
