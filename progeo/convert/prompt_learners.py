"""Prompts of published ProGEO's stage 1: a pickled list of modules, and beside it the classes that they are for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progeo.convert.translation import single_precision
from progeo.models.weight_files.checkpoints import read_content
from progeo.models.weight_files.unpickler import Stub

_LEARNERS = tuple(f"cosplace_model.cosplace_network_stage{stage}.PromptLearner" for stage in (1, 2))
_CELLS = re.compile(r"_M([1-9]\d*)_N([1-9]\d*)_alpha([1-9]\d*)_L([1-9]\d*)_mipc(\d+)\.torch$")


@dataclass(frozen=True)
class PublishedPrompts:
    """What was learned, a group at a time."""

    contexts: tuple[Tensor, ...]
    """The learned vectors of each group, (C, length, W)."""
    prefix: Tensor
    """The word vectors before them, from the start of text, (1, n, W)."""
    suffix: Tensor
    """The word vectors after them, to the end of the text tower's input, (1, m, W)."""


@dataclass(frozen=True)
class PublishedClasses:
    """Which classes the published code found in its images, and in which order."""

    class_ids: tuple[np.ndarray, ...]
    """Of each group, int64 (C, 3): the label of a class is its row."""
    num_images: tuple[np.ndarray, ...]
    """Of each class, int64 (C,)."""


def holds_prompt_learners(content: Any) -> bool:
    """Whether a file holds the published prompts."""
    return isinstance(content, list) and bool(content) and all(_is_learner(item) for item in content)


def prompts_in(content: Sequence[Stub], path: Path) -> PublishedPrompts:
    """The prompts in what a file holds.

    Raises:
        ValueError: a learner lacks a tensor, has one of another shape, or does not belong with the first.
    """
    learners = [_tensors(learner) for learner in content]
    first = learners[0]
    for index, tensors in enumerate(learners):
        missing = [name for name in ("cls_ctx", "token_prefix", "token_suffix") if name not in tensors]
        if missing:
            raise ValueError(f"{path} is not whole: the prompt learner of group {index} has no {missing[0]}.")
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
        words = ("token_prefix", "token_suffix")
        if context.shape[1] != first["cls_ctx"].shape[1] or not all(
            torch.equal(tensors[name], first[name]) for name in words
        ):
            raise ValueError(
                f"{path}: the prompt learner of group {index} has another number of learned vectors, or other words "
                f"around them, than that of group 0: they are of different trainings."
            )
    return PublishedPrompts(
        tuple(tensors["cls_ctx"] for tensors in learners), first["token_prefix"], first["token_suffix"]
    )


def read_published_classes(path: Path) -> PublishedClasses:
    """The order of classes that the published code keeps in `cache/`: a list for each group, and images by class.

    Raises:
        ValueError: the file holds something else.
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
    """The settings of the cells, which the published code writes into the name of the file of classes.

    Raises:
        ValueError: the name says nothing of them.
    """
    found = _CELLS.search(name)
    if found is None:
        raise ValueError(
            f"{name} does not say how its cells were made; it should end like _M10_N5_alpha30_L2_mipc10.torch."
        )
    names = ("cell_side_m", "groups_per_side", "heading_bin_deg", "groups_per_heading", "min_images_per_class")
    return dict(zip(names, map(int, found.groups()), strict=True))


def _is_learner(item: Any) -> bool:
    return isinstance(item, Stub) and type(item).kind in _LEARNERS


def _tensors(learner: Stub) -> dict[str, Tensor]:
    """Parameters and buffers of a module, in single precision."""
    found: dict[str, Tensor] = {}
    for room in ("_parameters", "_buffers"):
        values = vars(learner).get(room)
        if isinstance(values, Mapping):
            found |= {name: single_precision(value) for name, value in values.items() if isinstance(value, Tensor)}
    return found
