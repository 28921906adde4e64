"""Import published prompts: in stage 1's own format if the groups are the same, else as plain tensors."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from progeo.atomic import replacing, written_together
from progeo.convert.prompt_learners import PublishedPrompts
from progeo.convert.published_classes import (
    PublishedClasses,
    order_of_groups,
    parse_cells,
    read_published_classes,
    sorted_partition,
)
from progeo.engine.log import LOGGER
from progeo.file_sets import write_set
from progeo.files import write_json
from progeo.models.backbones.clip_configurations import configuration_of, resolved_architecture
from progeo.models.prompts import load_prompt_tower, prompt_parts
from progeo.models.state_dicts import weights_digest
from progeo.models.text_towers.tokenizers import LEARNED
from progeo.models.text_towers.tower import TextTower
from progeo.printable import counted
from progeo.training.prompt_files import DESCRIPTION, PROMPTS

_TEMPLATE = "A photo of a {} street."
_PLAIN = "prompt_learners"


def write_published_prompts(
    prompts: PublishedPrompts,
    target: Path,
    *,
    file: Path,
    class_order: Path | None = None,
    clip: str | None = None,
    clip_weights: str = "openai",
) -> None:
    """Write published prompts to `target`.

    Args:
        prompts: the prompts.
        target: output folder.
        file: file that they were read from.
        class_order: cache file of the published code with the classes of every group; None writes plain tensors.
        clip: architecture of the CLIP they were learned with; None writes plain tensors.
        clip_weights: weights of that CLIP.

    Raises:
        ValueError: the classes or the CLIP do not match the prompts.
    """
    stage1, reason, classes = None, "name the file with their classes with `class_order`", None
    if class_order is not None:
        classes = read_published_classes(class_order)
        _check_counts(prompts, classes, file=file, class_order=class_order)
        reason = "name the CLIP whose text tower encodes them with `clip`"
        if clip is not None:
            cells = parse_cells(class_order.name)
            order, reason = _order_of_groups(classes, cells, len(prompts.contexts))
            if order is not None:
                stage1 = _stage_1_files(prompts, classes, order, cells, clip=clip, clip_weights=clip_weights, file=file)
    with written_together(target.resolve()) as folder:
        if stage1 is None:
            _write_plain(prompts, classes, folder)
        else:
            tensors, description = stage1
            write_set(folder / DESCRIPTION, description, {PROMPTS: partial(save_file, tensors)})
    LOGGER.info("prompts of %s written to %s", counted(len(prompts.contexts), "group"), target)
    if stage1 is None:
        LOGGER.info("for reading only: stage 2 needs %s, and for it %s", PROMPTS, reason)
    else:
        LOGGER.info("stage 2 trains with them: --text.prompts %s", target)


def _check_counts(prompts: PublishedPrompts, classes: PublishedClasses, *, file: Path, class_order: Path) -> None:
    if len(classes.class_ids) < len(prompts.contexts):
        raise ValueError(
            f"{file} holds prompts of {len(prompts.contexts)} groups, {class_order} has {len(classes.class_ids)}."
        )
    for index, (context, ids) in enumerate(zip(prompts.contexts, classes.class_ids, strict=False)):
        if len(context) != len(ids):
            raise ValueError(
                f"{file} holds prompts of {len(context)} classes in group {index}, {class_order} "
                f"has {len(ids)}: they are of different trainings."
            )


def _order_of_groups(
    classes: PublishedClasses, cells: Mapping[str, int], num_groups: int
) -> tuple[list[int] | None, str]:
    """Map the published groups to our order; or return None and why they are not our first groups."""
    try:
        order = order_of_groups(classes, cells)
    except ValueError as error:
        return None, str(error)
    first = order[:num_groups]
    if set(first) != set(range(num_groups)):
        return None, (
            f"the published code trained on the {num_groups} groups that it met first of {len(order)}, stage 2 here "
            f"takes the first {num_groups} in the order of their ids, which are others"
        )
    return first, ""


@torch.no_grad()
def _stage_1_files(
    prompts: PublishedPrompts,
    classes: PublishedClasses,
    order: list[int],
    cells: Mapping[str, int],
    *,
    clip: str,
    clip_weights: str,
    file: Path,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of prompts that stage 2 can train with."""
    tower = load_prompt_tower(clip, clip_weights)
    sequence = tower.tokenizer.sequence(prompt_parts(_TEMPLATE, prompts.contexts[0].shape[1]))
    _check_vocabulary(tower, sequence, prompts, file=file, name=f"{clip} with {clip_weights}")
    encoder = tower.prompts(sequence)
    tensors: dict[str, Tensor] = {}
    partition, labels = sorted_partition(classes, cells, order)
    for index, (published, rows) in enumerate(zip(order, labels, strict=True)):
        context = prompts.contexts[published][torch.from_numpy(rows)]
        tensors |= {
            f"group_{index}.context": context,
            f"group_{index}.text_features": encoder(context),
            f"group_{index}.class_ids": torch.from_numpy(partition.groups[index].class_ids),
        }
    description = {
        "partition": partition.describe(),
        "architecture": resolved_architecture(clip, configuration_of(tower.clip)),
        "configuration": configuration_of(tower.clip).to_json(),
        "weights": clip_weights,
        "seed": 0,
        "vocabulary": weights_digest({"token_embedding": tower.token_embedding.weight}),
        "logit_scale": tower.logit_scale,
        "logit_bias": tower.logit_bias,
        "template": _TEMPLATE,
        "context_length": prompts.contexts[0].shape[1],
        "groups": [
            {"classes": len(classes.class_ids[index]), "images": int(classes.num_images[index].sum())}
            for index in order
        ],
        "imported_from": str(file),
    }
    return tensors, description


def _check_vocabulary(
    tower: TextTower, sequence: Sequence[int], prompts: PublishedPrompts, *, file: Path, name: str
) -> None:
    """Check that a CLIP has the word vectors that surround the learned ones."""
    first, length = sequence.index(LEARNED), sequence.count(LEARNED)
    after = sequence[first + length :]
    while after[-1] == tower.tokenizer.pad_id:
        after = after[:-1]
    theirs = (prompts.prefix[0], prompts.suffix[0, : len(after)])
    for ids, found in zip((sequence[:first], after), theirs, strict=True):
        ours = tower.embedding(torch.tensor(ids))
        if ours.shape != found.shape or not torch.allclose(ours, found, atol=1e-3):
            raise ValueError(
                f"{file} was learned with other word vectors than those of {name}: name its CLIP with `clip` and "
                f"`clip_weights`."
            )


def _write_plain(prompts: PublishedPrompts, classes: PublishedClasses | None, folder: Path) -> None:
    tensors = {"token_prefix": prompts.prefix, "token_suffix": prompts.suffix}
    for index, context in enumerate(prompts.contexts):
        tensors[f"group_{index}.context"] = context
        if classes is not None:
            tensors[f"group_{index}.class_ids"] = torch.from_numpy(classes.class_ids[index])
    with replacing(folder / f"{_PLAIN}.safetensors") as temporary:
        save_file(tensors, temporary)
    meanings = {
        "group_<i>.context": "learned vectors (C, length, W) of the published code's group i, a row for each class",
        "group_<i>.class_ids": "east and north in meters and heading in degrees of each class, (C, 3), where known",
        "token_prefix": "word vectors before the learned ones, (1, n, W): start of text, 'a photo of a'",
        "token_suffix": "word vectors after them, (1, m, W): 'street .', end of text, padding",
    }
    write_json(folder / f"{_PLAIN}.json", {"groups": len(prompts.contexts), "tensors": meanings})
