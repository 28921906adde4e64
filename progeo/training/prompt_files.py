"""Files of learned prompts: text features of every group, with the metadata they were learned for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from safetensors import SafetensorError
from safetensors.torch import safe_open
from torch import Tensor

from progeo.file_sets import FileSet, read_set
from progeo.json_files import as_kind
from progeo.models.backbones.clip_configurations import (
    ClipConfiguration,
    known_architectures,
    named_configuration,
    own_spelling,
    parse_configuration,
)
from progeo.models.weight_files.tensor_files import read_metadata
from progeo.places.cells import DescribedPartition, Partition, check_same_partition

PROMPTS = "prompts.safetensors"
DESCRIPTION = "prompts.json"
_RESUME = "Remove it and resume stage 1 with `resume`."


class _Summary(TypedDict):
    """What a group learned from and how well."""

    classes: int
    classes_without_images: int
    images: int
    loss: float
    image_to_text_accuracy: float
    text_to_image_accuracy: float
    held_out_images: NotRequired[int]
    held_out_image_to_text_accuracy: NotRequired[float]
    held_out_text_to_image_accuracy: NotRequired[float]
    epochs: NotRequired[int]
    kept_epoch: NotRequired[int]


class _Description(TypedDict):
    """Content of `prompts.json`, as far as it is read."""

    partition: DescribedPartition
    architecture: str
    configuration: NotRequired[dict[str, Any]]
    weights: str
    seed: int
    vocabulary: str
    logit_scale: NotRequired[float]
    class_words: NotRequired[list[list[str]]]
    groups: list[dict[str, Any]]


def load_text_features(folder: Path, partition: Partition) -> list[Tensor]:
    """Load the text features (C, E) of each group that stage 1 wrote to `folder`.

    Raises:
        FileNotFoundError: stage 1 has not finished there.
        ValueError: the prompts were learned for other classes; the message names the difference.
    """
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"There are no prompts in {folder}: run stage 1 first, with a CLIP, name its folder with `text.prompts`, "
            f"or train without text with `text.weight` 0."
        )
    names = [f"group_{index}.text_features" for index in range(len(partition.groups))]

    def read(files: FileSet) -> list[Tensor]:
        check_same_partition(description_of(files)["partition"], partition, str(folder / PROMPTS))
        return read_prompts(files.path(PROMPTS), names)

    features = read_set(folder / DESCRIPTION, read)
    dim = features[0].shape[-1] if features[0].ndim else 0
    for group, found in zip(partition.groups, features, strict=True):
        if found.shape != (group.num_classes, dim) or not found.is_floating_point():
            raise ValueError(
                f"{folder / PROMPTS} should hold text features of {group.num_classes} classes, has {found.dtype} "
                f"{tuple(found.shape)}: it is corrupt. Run stage 1 again."
            )
    return features


@dataclass(frozen=True)
class ClipOfPrompts:
    """The CLIP whose text tower encodes prompts."""

    architecture: str
    weights: str
    """See `load_clip`."""
    configuration: ClipConfiguration
    vocabulary: str
    """Digest of its token embedding."""

    def __str__(self) -> str:
        return f"{self.architecture} ({self.weights})"


def load_clip_of_prompts(folder: Path) -> ClipOfPrompts:
    """Load what the prompts in `folder` record of the CLIP whose text tower encodes them.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    description = read_prompts_description(folder)
    architecture, weights = description["architecture"], description["weights"]
    try:
        if "configuration" in description:
            configuration = parse_configuration(description["configuration"], architecture)
        else:  # of an earlier version, which knew plain CLIPs only
            configuration = named_configuration(architecture)
    except ValueError as error:
        raise ValueError(f"{folder / DESCRIPTION} is corrupt: {error} Run stage 1 again.") from None
    return ClipOfPrompts(architecture, weights, configuration, description["vocabulary"])


def load_logit_scale(folder: Path) -> float:
    """Load the factor of the cosines of the CLIP whose text tower encodes the prompts in `folder`.

    Raises:
        ValueError: they were written by an earlier version, which did not record it.
    """
    scale = read_prompts_description(folder).get("logit_scale")
    if scale is None:
        raise ValueError(
            f"{folder / DESCRIPTION} is of an earlier version, which did not record the temperature of the CLIP: give "
            f"`text.temperature` as a number, 0.01 for OpenAI's CLIPs, or run stage 1 again."
        )
    return scale


def read_prompts_description(folder: Path) -> dict[str, Any]:
    """Read the metadata of the prompts in `folder`.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    return read_set(folder / DESCRIPTION, description_of)


def description_of(files: FileSet) -> dict[str, Any]:
    """Check the metadata of one version of the files of prompts, see `read_prompts_description`."""
    description, file = files.description, files.folder / DESCRIPTION
    as_kind(description, _Description, file, advice="Run stage 1 again.")
    name, is_former = own_spelling(description["architecture"]), "configuration" not in description
    if is_former and name in known_architectures() and named_configuration(name).text.hf_tokenizer_name:
        raise ValueError(
            f"{file} is of an earlier version, which read words with another tokenizer than that of {name}: run "
            f"stage 1 again."
        )
    return description


def read_group(path: Path, names: Sequence[str]) -> tuple[list[Tensor], dict[str, Any]]:
    """Read the named tensors and the summary in the file of a group that stage 1 finished.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    tensors = read_prompts(path, names)
    try:
        summary = json.loads(read_metadata(path)["summary"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is corrupt: it has no summary ({error!r}). {_RESUME}") from None
    as_kind(summary, _Summary, path, advice=_RESUME)
    return tensors, summary


def read_prompts(path: Path, names: Sequence[str]) -> list[Tensor]:
    """Read the named tensors of a file that stage 1 wrote.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name) for name in names]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is corrupt: {error}. {_RESUME}") from None
