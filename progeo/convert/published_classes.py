"""Import classes and classifiers of CosPlace, ProGEO and Divide&Classify, whose programs keep them in two files.

A checkpoint holds a state dict for each group, and a file in `cache/` tells which row is which class.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from progeo.convert.converted_encoder import single_precision, tensor_named
from progeo.models.classifier import Classifier
from progeo.models.weight_files.checkpoints import read_content
from progeo.models.weight_files.torch_files import Stub
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Group, Partition, group_ids
from progeo.places.filename import parse_columns, says_position
from progeo.places.geographic import Frame, frame_of

CLASSIFIERS = "classifiers_state_dict"
"""Entry of a published checkpoint with the classifier of each group."""
MarginHead = Literal["arcface", "cosface"]
_CELLS = re.compile(r"_M([1-9]\d*)_N([1-9]\d*)(?:_alpha([1-9]\d*)_L([1-9]\d*))?_mipc(\d+)\.torch$")
_HEADS: Mapping[str, tuple[MarginHead, float]] = {"Divide&Classify": ("arcface", 100.0)}
"""Margin head that a program trains by default, and its scale."""
_OTHER_HEAD: tuple[MarginHead, float] = ("cosface", 30.0)
_HEAD_NAMES: Mapping[Any, MarginHead] = {"AAMC": "arcface", "LMCC": "cosface"}
"""Names of margin heads in the arguments of Divide&Classify."""


@dataclass(frozen=True)
class PublishedClasses:
    """Classes of each group, in the order in which the published code labels them."""

    class_ids: tuple[np.ndarray, ...]
    """Class ids of each group, int64 (C, 3), heading 0 for classes without; the label of a class is its row index."""
    num_images: tuple[np.ndarray, ...]
    """Number of images per class, for each group, int64 (C,)."""
    examples: tuple[str, ...]
    """The path of one image of each class."""


def read_published_classes(path: Path) -> PublishedClasses:
    """Read the classes that published code stores in `cache/`: a list per group, and the images of each class.

    The images are in a mapping, or as of Divide&Classify in one per group.

    Raises:
        ValueError: the file has another content, or names a class twice.
    """
    content = read_content(path)
    try:
        groups, images = content
        if sum(map(len, groups)) > path.stat().st_size:  # one list of classes, repeated
            raise ValueError("more classes than bytes")
        classes = [[tuple(map(int, class_id)) for class_id in group] for group in groups]
        of_groups = [images] * len(groups) if isinstance(images, Mapping) else images
        pairs = list(zip(classes, of_groups, strict=True))
        paths = [[images_of[class_id] for class_id in group] for group, images_of in pairs]
        ids = tuple(np.array([_with_heading(*each) for each in group], np.int64).reshape(-1, 3) for group in classes)
        counts = tuple(np.array([len(each) for each in group], np.int64) for group in paths)
        examples = tuple(str(each[0]) for group in paths for each in group)
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ValueError(
            f"{path} is no order of classes: it should hold a list of (east, north, heading) or (east, north) for each "
            f"group, and the images of each class."
        ) from None
    everywhere = [class_id for group in classes for class_id in group]
    if len(set(everywhere)) < len(everywhere):
        raise ValueError(f"{path} names a class twice; every class should be in one group, once.")
    return PublishedClasses(ids, counts, examples)


def parse_cells(name: str) -> dict[str, int]:
    """Parse the cell settings from the name of the published code's file of classes, such as `_M10_N5_alpha30_...`.

    Raises:
        ValueError: the name does not contain them.
    """
    if (found := _CELLS.search(name)) is None:
        raise ValueError(
            f"The cell settings are missing from the name {name}: it should end like _M10_N5_alpha30_L2_mipc10.torch, "
            f"or of classes without heading like _M20_N2_mipc10.torch."
        )
    side, groups_per_side, bin_, groups_per_heading, min_images = found.groups()
    return {
        "cell_side_m": int(side),
        "groups_per_side": int(groups_per_side),
        "heading_bin_deg": int(bin_ or 360),
        "groups_per_heading": int(groups_per_heading or 1),
        "min_images_per_class": int(min_images),
    }


def order_of_groups(classes: PublishedClasses, cells: Mapping[str, int]) -> list[int]:
    """Sort the published groups by our group ids.

    Args:
        cells: result of `parse_cells`.

    Raises:
        ValueError: the groups are not those of these cells; the message is a part of a sentence.
    """
    steps = np.array([cells["cell_side_m"], cells["cell_side_m"], cells["heading_bin_deg"]])
    spacing = {name: value for name, value in cells.items() if name != "min_images_per_class"}
    numbers = []
    for ids in classes.class_ids:
        if not len(ids):
            raise ValueError("a published group has no class")
        if (ids[:, 2] < 0).any() or (ids[:, 2] >= 360).any() or (ids % steps).any():
            raise ValueError("some of their classes are no cells and heading bins of the settings in the file's name")
        groups = np.unique(group_ids(ids, **spacing), axis=0)
        if len(groups) != 1:
            raise ValueError("a published group holds classes of several groups of the settings in the file's name")
        numbers.append(tuple(groups[0]))
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def sorted_partition(
    classes: PublishedClasses, cells: Mapping[str, int], order: Sequence[int]
) -> tuple[Partition, list[np.ndarray]]:
    """Build the partition of published groups, without images.

    Args:
        cells: result of `parse_cells`.
        order: indices of the published groups in our order, see `order_of_groups`.

    Returns:
        The partition; and for each of its groups the published labels of its classes, int64 (C,).
    """
    labels = [np.lexsort(classes.class_ids[index].T[::-1]) for index in order]
    ids = [classes.class_ids[index][rows] for index, rows in zip(order, labels, strict=True)]
    groups = tuple(Group(each, np.empty(0, np.int64), np.zeros(len(each) + 1, np.int64)) for each in ids)
    return Partition({**cells, "num_groups": len(order)}, groups), labels


def published_classifier(
    content: Any, file: Path, class_order: Path, *, program: str, head: MarginHead | None = None
) -> Classifier:
    """Build the classifier of a published checkpoint, with groups and classes in our order.

    Args:
        content: content of the checkpoint `file`.
        class_order: file of the published code with the classes of every group.
        program: program that wrote the checkpoint, see `FORMATS`.
        head: the margin head of the training; None takes that in the arguments in the checkpoint, or the program's
            default.

    Raises:
        ValueError: the checkpoint has no classifiers, or they do not fit the classes.
    """
    vectors, biases = _vectors(content, file)
    classes, cells = read_published_classes(class_order), parse_cells(class_order.name)
    _check_counts(vectors, classes, file=file, class_order=class_order)
    try:
        order = [index for index in order_of_groups(classes, cells) if index < len(vectors)]
    except ValueError as error:
        raise ValueError(f"The groups of {class_order} cannot be used: {error}.") from None
    partition, labels = sorted_partition(classes, cells, order)
    rows = list(zip(order, labels, strict=True))
    kind, scale = _head(content, program, head, file=file, is_linear=bool(biases))
    return Classifier(
        kind=kind,
        class_ids=np.concatenate([group.class_ids for group in partition.groups]),
        weight=torch.cat([vectors[index][torch.from_numpy(each)] for index, each in rows]).numpy(),
        bias=torch.cat([biases[index][torch.from_numpy(each)] for index, each in rows]).numpy() if biases else None,
        num_images=np.concatenate([classes.num_images[index][each] for index, each in rows]),
        classes_per_group=tuple(group.num_classes for group in partition.groups),
        scale=scale,
        cells=partition.settings,
        fingerprint=partition.fingerprint,
        frame=_frame(classes.examples, class_order),
    )


def _with_heading(east: int, north: int, heading: int = 0) -> tuple[int, int, int]:
    return east, north, heading


def _vectors(content: Any, file: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Return the vectors (C, D) of each group, and for linear heads the biases (C,)."""
    states = content.get(CLASSIFIERS) if isinstance(content, Mapping) else None
    if not isinstance(states, list) or not states or not all(isinstance(state, Mapping) for state in states):
        raise ValueError(f"{file} holds no {CLASSIFIERS}, which `class_order` is for: omit it.")
    names = ("weight",) if "weight" in states[0] else ("linear.weight", "linear.bias")
    weights, *biases = (
        [single_precision(tensor_named(state, name, 2 - dim)) for state in states] for dim, name in enumerate(names)
    )
    of_rows = ({len(weight), *(len(column[index]) for column in biases)} for index, weight in enumerate(weights))
    if any(len(counts) > 1 for counts in of_rows) or len({weight.shape[1] for weight in weights}) > 1:
        raise ValueError(f"The classifiers in {file} do not have {' and '.join(names)} of the same sizes.")
    return weights, biases[0] if biases else []


def _check_counts(vectors: Sequence[Tensor], classes: PublishedClasses, *, file: Path, class_order: Path) -> None:
    if len(vectors) > len(classes.class_ids):
        raise ValueError(
            f"{file} holds classifiers of {len(vectors)} groups, {class_order} has {len(classes.class_ids)}."
        )
    for index, (rows, ids) in enumerate(zip(vectors, classes.class_ids, strict=False)):
        if len(rows) != len(ids):
            raise ValueError(
                f"{file} holds a classifier of {len(rows)} classes in group {index}, {class_order} has {len(ids)}: "
                f"they are of different trainings."
            )


def _head(
    content: Mapping[str, Any], program: str, head: MarginHead | None, *, file: Path, is_linear: bool
) -> tuple[str, float]:
    """Return the kind of a head and the scale of its cosines."""
    if is_linear:
        if head is not None:
            raise ValueError(f"`head`: the classifiers of {file} are linear layers, omit it.")
        return "linear", 1.0
    given = vars(arguments) if isinstance(arguments := content.get("args"), Stub) else {}
    kind, default = _HEADS.get(program, _OTHER_HEAD)
    scale = given.get("lmcc_s", default)
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ValueError(f"The arguments in {file} should have a positive number as lmcc_s, the scale, got {scale!r}.")
    return head or _HEAD_NAMES.get(given.get("classifier_type"), kind), float(scale)


def _frame(examples: Sequence[str], class_order: Path) -> Frame:
    """Return the frame of the coordinates in the names of images; an unknown one if a name does not begin with @."""
    paths = pa.array([path.replace("\\", "/") for path in examples], pa.large_string())
    if not says_position(paths).all():
        return Frame(0, None)
    frame = frame_of(Catalogue(Path(), pa.table({"path": paths, **parse_columns(paths, ("east", "north", "zone"))})))
    if frame.several_zones:
        raise ValueError(f"{class_order} holds images of several UTM zones, whose cells it does not tell apart.")
    # Our northings of both sides of the equator are counted from it, published ones are not.
    return replace(frame, hemisphere=None) if frame.hemisphere == "both" else frame
