"""Save and load the classifier of an encoder: `classifier.safetensors`, whose metadata describe its classes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
from msgspec import Meta
from safetensors.torch import save_file
from torch import Tensor

from progeo.export.encoder_folders import CLASSIFIER, METADATA, holds_encoder, local_folder
from progeo.export.encoders import is_name
from progeo.export.weights import READERS, encoder_of
from progeo.file_sets import FileSet, read_set
from progeo.json_files import converted
from progeo.models.classifier import MEANS, Classifier
from progeo.models.encoder import Encoder
from progeo.models.options import HeadKind
from progeo.models.state_dicts import weights_digest
from progeo.models.weight_files.tensor_files import read_metadata, read_safetensors
from progeo.places.geographic import Frame

_KEY = "progeo"
_FORMAT = 1
_TENSORS = ("class_ids", "weight", "bias", "num_images")
_Whole = Annotated[int, Meta(gt=-(2**31), lt=2**31)]


@dataclass(frozen=True)
class _Described:
    """Fields of a `Classifier` in the metadata of its file."""

    kind: str
    classes_per_group: tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...]
    scale: Annotated[float, Meta(gt=-1e15, lt=1e15)]
    cells: dict[str, _Whole]
    fingerprint: str
    frame: Frame
    encoder: str = ""


def write_classifier(classifier: Classifier, path: Path) -> None:
    """Write a classifier to a file, which `save_encoder` saves beside its encoder."""
    values = {field.name: getattr(classifier, field.name) for field in fields(classifier)}
    arrays = {name: array for name in _TENSORS if (array := values.pop(name)) is not None}
    described = {"format": _FORMAT, **values, "cells": dict(classifier.cells), "frame": asdict(classifier.frame)}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    save_file(tensors, path, metadata={_KEY: json.dumps(described)})


def read_classifier(path: Path) -> Classifier:
    """Read the file of a classifier.

    Raises:
        ValueError: the file is corrupt, or not as `write_classifier` writes it.
    """
    tensors = read_safetensors(path)
    try:
        values = json.loads(read_metadata(path)[_KEY])
        if values.pop("format") != _FORMAT:
            raise ValueError("it has another format")
        classifier = _classifier(values, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{path} is not a classifier as progeo writes it: {reason}.") from None
    return classifier


def holds_classifier(path: Path) -> bool:
    """Return whether a folder, or the folder in which a run keeps its encoder, holds a classifier."""
    return (path / CLASSIFIER).is_file() or (holds_encoder(path) and (local_folder(path, {}) / CLASSIFIER).is_file())


def load_classifier(path_or_name: Path | str) -> Classifier:
    """Load the classifier of an encoder.

    Args:
        path_or_name: folder with a classifier, or a run or an address as for `load_encoder`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is corrupt, or not as `save_encoder` writes it.
    """
    folder = _classifier_folder(path_or_name)
    if not (folder / METADATA).is_file():
        return read_classifier(folder / CLASSIFIER)
    return read_set(folder / METADATA, classifier_of)


def classifier_of(files: FileSet) -> Classifier:
    """Read the classifier of one version of the files of an encoder, see `load_classifier`."""
    return read_classifier(files.path(CLASSIFIER))


def _classifier_folder(path_or_name: Path | str) -> Path:
    """Find the folder of a classifier, or download its file; errors as `load_classifier`."""
    folder = Path(path_or_name)
    if not (folder / CLASSIFIER).is_file() and not is_name(str(path_or_name)):
        folder = local_folder(path_or_name, {CLASSIFIER: read_classifier})
    if not (folder / CLASSIFIER).is_file():
        raise FileNotFoundError(
            f"There is no {CLASSIFIER} in {path_or_name}: training with `head.weight` above 0 writes one, and `progeo "
            f"classes` makes one of the mean descriptors of places for any encoder."
        )
    return folder


def load_encoder_and_classifier(path_or_name: Path | str) -> tuple[Encoder, Classifier]:
    """Load an encoder, in eval mode on the CPU, and its classifier.

    Args:
        path_or_name: see `load_encoder`.

    Raises:
        FileNotFoundError: there is no encoder or no classifier.
        ValueError: files are corrupt, or the classifier is that of another encoder.
    """
    _classifier_folder(path_or_name)
    folder = local_folder(path_or_name, {**READERS, CLASSIFIER: read_classifier})
    encoder, classifier = read_set(folder / METADATA, lambda files: (encoder_of(files), classifier_of(files)))
    check_fits_encoder(classifier, encoder, path_or_name)
    return encoder, classifier


def check_fits_encoder(classifier: Classifier, encoder: Encoder, path_or_name: Path | str) -> None:
    """Refuse a classifier whose vectors are not for the descriptors of an encoder.

    Args:
        path_or_name: where both come from, for the message.

    Raises:
        ValueError: another number of dimensions, or the digest of other weights.
    """
    if (dim := classifier.weight.shape[1]) != encoder.descriptor_dim:
        raise ValueError(
            f"The classifier in {path_or_name} has vectors of {dim} dimensions, the encoder descriptors of "
            f"{encoder.descriptor_dim}: they do not belong together."
        )
    if classifier.encoder and classifier.encoder != weights_digest(encoder.state_dict()):
        raise ValueError(
            f"The classifier in {path_or_name} is that of an encoder with other weights than {path_or_name} has: take "
            f"both from the same folder, or make a new one with `progeo classes`."
        )


def _classifier(values: dict[str, Any], tensors: Mapping[str, Tensor]) -> Classifier:
    """Build a classifier of the content of a file, and check that its parts fit together."""
    arrays: dict[str, Any] = {name: tensors[name].numpy() if name in tensors else None for name in _TENSORS}
    classifier = Classifier(**vars(converted(values, _Described)), **arrays)
    counts = classifier.classes_per_group
    num_classes = len(tensors["class_ids"])
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "class_ids": (torch.int64, (num_classes, 3)),
        "weight": (torch.float32, (num_classes, tensors["weight"].shape[-1])),
        "bias": (torch.float32, (num_classes,)),
        "num_images": (torch.int64, (num_classes,)),
    }
    for name, (dtype, shape) in expected.items():
        if name in tensors or name != "bias":
            found = tensors[name]
            if (found.dtype, tuple(found.shape)) != (dtype, shape):
                raise ValueError(f"{name} should be {dtype} {shape}, is {found.dtype} {tuple(found.shape)}")
    if not num_classes or sum(counts) != num_classes:
        raise ValueError(f"the groups have {sum(counts)} classes, there are {num_classes}")
    if classifier.kind not in (*get_args(HeadKind), MEANS):
        raise ValueError(f"the kind {classifier.kind!r} is not known")
    if min(classifier.cell_side_m, classifier.heading_bin_deg) < 1:
        raise ValueError("cells and heading bins must be positive")
    if not 0 <= classifier.frame.zone <= 60:
        raise ValueError(f"there is no UTM zone {classifier.frame.zone}")
    return classifier
