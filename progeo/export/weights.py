"""Save and load encoders: `model.safetensors`, `model.json` and, if any, a copy of the CLIP file for text features."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from safetensors.torch import save_file
from torch import Tensor

from progeo.export.encoder_folders import CLASSIFIER, METADATA, WEIGHTS, encoder_folder, holds_encoder, local_folder
from progeo.export.encoders import load_named_encoder
from progeo.file_sets import FileSet, read_set, write_set
from progeo.files import read_json
from progeo.json_files import as_kind
from progeo.models.backbones import find_family
from progeo.models.clip_files import TEXT_CLIP, tokenizer_files_of
from progeo.models.encoder import Encoder, EncoderSpec, restore_encoder, spec_from_json, spec_to_json
from progeo.models.state_dicts import weights_digest
from progeo.models.weight_files.tensor_files import read_safetensors
from progeo.printable import first_line, printable

if TYPE_CHECKING:
    from progeo.models.classifier import Classifier

_FORMAT = 3
READERS = MappingProxyType({WEIGHTS: read_safetensors, METADATA: read_json})
"""Files of an encoder that are downloaded, see `fetch_folder`."""
_RENAMED_FIELDS = MappingProxyType({"normalised": "normalized", "pooling": "aggregation"})
"""Fields of an encoder in format 2: their names there -> their current names."""


class _Started(TypedDict, total=False):
    weights: str | None


class _Settings(TypedDict, total=False):
    """Settings of the training, as far as they are read."""

    model: _Started
    cells: dict[str, Any]
    data: dict[str, Any]


class _Reduced(TypedDict):
    """A PCA."""

    whiten: bool
    images: int
    folder: str


class _Provenance(TypedDict, total=False):
    """How an encoder was made, as far as it is read."""

    encoder: str
    settings: _Settings
    reduced: _Reduced
    data_license: str


class _Metadata(TypedDict):
    """Content of `model.json`."""

    encoder: dict[str, Any]
    recalls: dict[str, float]
    provenance: _Provenance


def save_encoder(
    folder: Path,
    encoder: Encoder,
    *,
    provenance: Mapping[str, Any],
    recalls: Mapping[str, float],
    classifier: "Classifier | None" = None,
    card: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Save an encoder to `folder`, replacing any encoder there, with its CLIP file for text features, if any.

    A copy of the CLIP file is saved, and of the tokenizer of Hugging Face beside it, if its texts are read with one.

    Args:
        folder: created if missing.
        provenance: metadata on how the encoder was made; plain values.
        recalls: validation results, such as {"val R@1": 91.3}.
        classifier: vectors of classes for descriptors of the encoder, saved beside it with the digest of its weights;
            None removes a classifier there, which is that of the replaced encoder.
        card: further facts for whoever reads `model.json`, which this program does not read.
    """
    files: dict[str, Callable[[Path], object] | Path] = {}
    if classifier is not None:
        from progeo.export.classifier import write_classifier  # which imports what encoders alone do not need

        own = replace(classifier, encoder=weights_digest(encoder.state_dict()))
        files[CLASSIFIER] = partial(write_classifier, own)
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    files[WEIGHTS] = partial(save_file, state)
    spec = encoder.spec
    if spec.text_weights is not None and Path(spec.text_weights).is_absolute():
        clip = Path(spec.text_weights)
        copied = f"{TEXT_CLIP}{clip.suffix}" if clip.is_file() else None
        if copied is not None:
            tokenizer = tokenizer_files_of(clip) if has_hub_tokenizer(spec) else []
            files |= {copied: clip, **{file.name: file for file in tokenizer}}
        spec = replace(spec, text_weights=copied)
    metadata = {
        "format": _FORMAT,
        "encoder": spec_to_json(spec),
        "recalls": dict(recalls),
        "provenance": dict(provenance),
        **({"card": dict(card)} if card else {}),
    }
    write_set(folder / METADATA, metadata, files, without=[CLASSIFIER])
    return folder


def has_hub_tokenizer(spec: EncoderSpec) -> bool:
    """Return whether the texts of an encoder's CLIP are read with a tokenizer of Hugging Face."""
    return bool((spec.configuration or {}).get("text_cfg", {}).get("hf_tokenizer_name"))


def load_encoder(path_or_name: str | Path, *, trust: bool = False) -> Encoder:
    """Load an encoder, in eval mode on the CPU.

    It maps normalized images (B, 3, H, W) to descriptors (B, D) and has `descriptor_dim`, `image_size` (height, width),
    `mean`, `std` and `preprocess(PIL image or uint8 tensor (3, H, W)) -> (3, height, width)`.

    Args:
        path_or_name: a folder with `model.safetensors` and `model.json`; the URL of such a folder, or
            `hf-hub:OWNER/NAME` (see `fetch_folder`); the folder of a run, or of its stage 2, for the encoder that it
            keeps; or the name of a baseline. `FAMILY:ARCHITECTURE:WEIGHTS`, such as `open_clip:RN50:openai` or
            `timm:vit_small_patch14_dinov2:random`, is the token of a backbone, or the mean of its feature map if it has
            no token, with the pixel statistics of the weights; `thumbnail` is raw 16 x 16 pixels. A downloaded encoder
            comes without its CLIP file for text features. `hub:REPOSITORY:ENTRY` loads a network to evaluate it, see
            `load_hub_encoder`, and `onnx:FILE` an exported file; plugins add other names to `ENCODERS`.
        trust: run the code of a `hub:` repository.

    Raises:
        FileNotFoundError: there is no encoder at this path or address.
        ValueError: files are corrupt or do not fit together.
    """
    if (named := load_named_encoder(str(path_or_name), trust=trust)) is not None:
        return named
    folder = local_folder(path_or_name, READERS)
    return read_set(folder / METADATA, encoder_of)


def encoder_of(files: FileSet) -> Encoder:
    """Build the encoder of one version of its files, see `load_encoder`."""
    folder, metadata = files.folder, metadata_of(files)
    try:
        spec = spec_from_json(metadata["encoder"])
    except ValueError as error:
        raise ValueError(f"{folder / METADATA} is not the metadata of an encoder: {printable(str(error))}") from None
    spec = replace(spec, text_weights=_find_text_clip(folder, spec.text_weights))
    state = _named_as_now(read_safetensors(files.path(WEIGHTS)))
    try:
        return restore_encoder(spec, state)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:  # torch raises these for impossible sizes
        reason = first_line(error, type(error).__name__)
        raise ValueError(f"{folder / WEIGHTS} does not fit its {METADATA}: {reason}.") from error


def provenance_of(name: str) -> dict[str, Any]:
    """Return the provenance of the encoder in a folder; empty for an encoder given by name."""
    folder = Path(name)
    return dict(read_encoder_metadata(encoder_folder(folder))["provenance"]) if holds_encoder(folder) else {}


def recalls_of(name: str) -> dict[str, float]:
    """Return the recalls of the encoder in a folder; empty for an encoder given by name."""
    folder = Path(name)
    return dict(read_encoder_metadata(encoder_folder(folder))["recalls"]) if holds_encoder(folder) else {}


def read_encoder_metadata(folder: Path) -> dict[str, Any]:
    """Read `model.json`: format, encoder, recalls and provenance.

    Raises:
        ValueError: it has another format or lacks a part.
    """
    return read_set(folder / METADATA, metadata_of)


def metadata_of(files: FileSet) -> dict[str, Any]:
    """Check the metadata of one version of the files of an encoder, see `read_encoder_metadata`."""
    metadata, file = files.description, files.folder / METADATA
    if not isinstance(metadata, dict) or metadata.get("format") not in (2, _FORMAT):
        raise ValueError(f"{file} is not the metadata of an encoder in format {_FORMAT}.")
    as_kind(metadata, _Metadata, file)
    return metadata if metadata["format"] == _FORMAT else _of_format_2(metadata)


def _of_format_2(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Convert metadata of format 2, see `_named_as_now` for the weights."""
    encoder = {_RENAMED_FIELDS.get(name, name): value for name, value in metadata["encoder"].items()}
    corners = encoder.pop("align_corners", False)
    encoder["interpolation"] = ("corners" if corners else "edges") if isinstance(corners, bool) else corners
    if encoder.get("aggregation") == "clip":
        encoder["aggregation"] = "token"
    encoder["family"] = "open_clip"
    with suppress(ValueError):  # an unknown architecture is refused with the fields
        encoder["family"], _ = find_family(str(encoder.get("architecture")))
    return {**metadata, "format": _FORMAT, "encoder": encoder}


def _named_as_now(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of format 2: `pooling.*` is now `aggregation.*`."""
    return {re.sub(r"^pooling\.", "aggregation.", name): tensor for name, tensor in state.items()}


def _find_text_clip(folder: Path, text_weights: str | None) -> str | None:
    """Convert `text_weights` of `model.json` to an argument of `load_clip`; None if the CLIP file is missing.

    Only a file in `folder` is accepted: a `model.json` from elsewhere could otherwise name any file of this machine,
    which would then be copied along with the encoder.
    """
    if text_weights is None or text_weights.startswith("hf-hub:"):
        return text_weights
    if Path(text_weights).name != text_weights:
        return None
    if Path(text_weights).stem != TEXT_CLIP:  # a tag
        return text_weights
    file = folder / text_weights
    return str(file.resolve()) if file.is_file() else None
