"""Detect which program wrote a file of weights, from its parameter names, and convert it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from progeo.convert.clip_folders import read_clip_folder
from progeo.convert.clips import read_clip
from progeo.convert.convnets import read_cosplace, read_divide_and_classify
from progeo.convert.published_progeo import read_published_progeo
from progeo.convert.translation import Choices, Foreign, with_what_was_found
from progeo.models.clip_files import CLIP_MARK
from progeo.models.weight_files.checkpoints import find_weights

_KNOWN = "published ProGEO, CosPlace, EigenPlaces, Divide&Classify, and CLIPs of OpenAI, open_clip and Hugging Face"

_MARKS = (
    *(CLIP_MARK, "vision_model.embeddings.class_embedding"),
    *("backbone.class_embedding", "backbone.conv1.weight"),
    *("backbone.0.weight", "backbone.0.0.weight", "backbone.0.0.0.weight"),
)
"""Names of the first weights in each known format: CLIPs; published ProGEO; CosPlace and Divide&Classify."""


def read_foreign_folder(path: Path, choices: Choices) -> Foreign | None:
    """Import the encoder of a CLIP folder, given as the folder or a file in it; return None for any other file.

    Raises:
        FileNotFoundError: a configuration or the weights are missing.
        ValueError: the files do not fit together, or `choices` do not apply to them.
    """
    foreign = read_clip_folder(path, choices)
    return None if foreign is None else _checked(foreign, choices)


def read_foreign(content: Any, path: Path, choices: Choices) -> Foreign:
    """Detect the format of a file of weights from its parameter names, and convert it to an encoder.

    Args:
        content: content of the file, see `read_content`.
        path: path of the file, for errors.
        choices: settings given by the user.

    Raises:
        ValueError: an unknown format, missing or unexpected keys, or `choices` that do not apply to the format.
    """
    found = find_weights(content, path, _MARKS, choices.weights_in)
    foreign = _reader(found.state, path)(found.state, choices)
    return _checked(with_what_was_found(foreign, found), choices)


def _reader(state: Mapping[str, Tensor], path: Path) -> Callable[[Mapping[str, Tensor], Choices], Foreign]:
    beginnings = {name.partition(".")[0] for name in state}
    if "visual" in beginnings:
        return read_clip
    if beginnings <= {"backbone", "pooling", "projection"}:
        raise ValueError(
            f"{path} has the names of an encoder of progeo, which needs no import: give its folder, with the "
            f"model.json, to progeo.load_encoder and to the other commands."
        )
    if {"backbone.class_embedding", "backbone.conv3.weight"} & state.keys():
        return read_published_progeo
    if "backbone" in beginnings and "aggregation" in beginnings:
        return read_cosplace
    if "backbone" in beginnings and "classifier" in beginnings:
        return read_divide_and_classify
    if {"vision_model", "text_model"} & beginnings:
        raise ValueError(f"{path} is of a CLIP of Hugging Face: give the folder of it and its config.json.")
    raise ValueError(
        f"{path} is of no known kind: its names begin with {', '.join(sorted(beginnings)[:5])}. Known are {_KNOWN}."
    )


def _checked(foreign: Foreign, choices: Choices) -> Foreign:
    """Return the import, or refuse user settings that do not apply to its architecture."""
    spec = foreign.encoder.spec
    if choices.normalized is not None and choices.normalized != spec.normalized:
        raise ValueError(f"--normalized: the descriptors of {spec.architecture} always have length 1, leave it out.")
    if choices.quickgelu is not None and spec.architecture.startswith(("vgg", "resnet", "efficientnet")):
        raise ValueError(f"--quickgelu: {spec.architecture} is no CLIP, leave it out.")
    return foreign
