"""An encoder as `model.safetensors` + `model.json`, beside them the file of its texts where they came from a file."""

import filecmp
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import save_file
from torch import nn

from progeo.export.fetch import fetch_folder
from progeo.files import read_json, replacing, write_json
from progeo.models.backbones import Pooling
from progeo.models.encoder import Encoder, build_encoder, restore_encoder, spec_from_json, spec_to_json
from progeo.models.thumbnail import ThumbnailEncoder
from progeo.models.weight_files.tensor_files import read_safetensors
from progeo.models.weight_files.unpickler import printable

_FORMAT = 2
_WEIGHTS = "model.safetensors"
_DESCRIPTION = "model.json"
_READERS = MappingProxyType({_WEIGHTS: read_safetensors, _DESCRIPTION: read_json})
_PARTS = ("encoder", "recalls", "provenance")
_TEXTS = "clip"
"""Name of the file with an encoder's texts; its ending is that of the file it was copied from."""
_KEPT_BY_RUNS = ("best", "last")
"""Names of the folders in which a run of stage 2 keeps its encoder, by `training.keep`."""
_SETTINGS_OF_RUN = "config.yaml"
_COMPARED: Mapping[str, Pooling] = MappingProxyType({"open_clip": "clip", "torchvision": "mean"})


def save_encoder(
    folder: Path, encoder: Encoder, *, provenance: Mapping[str, Any], recalls: Mapping[str, float]
) -> Path:
    """Write an encoder to `folder`, replacing the one there, with the file of its texts where it has one.

    Args:
        folder: made when missing.
        encoder: what is saved.
        provenance: how it came to be; plain values.
        recalls: what it reached, such as {"val R@1": 91.3}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, temporary)
    spec = replace(encoder.spec, text_weights=_copied_texts(folder, encoder.spec.text_weights))
    description = {
        "format": _FORMAT,
        "encoder": spec_to_json(spec),
        "recalls": dict(recalls),
        "provenance": dict(provenance),
    }
    write_json(folder / _DESCRIPTION, description)
    return folder


def load_encoder(path_or_name: str | Path) -> nn.Module:
    """Load an encoder, in eval mode on the CPU.

    It maps normalized images (B, 3, H, W) to descriptors (B, D) and has `descriptor_dim`, `image_size` (height, width),
    `mean`, `std` and `preprocess(PIL image or uint8 tensor (3, H, W)) -> (3, height, width)`.

    Args:
        path_or_name: a folder with `model.safetensors` and `model.json`, the URL of one or `hf-hub:OWNER/NAME` (see
            `fetch_folder`), a run of stage 2 (the encoder that it keeps), or an encoder to compare
            with: `open_clip:ARCHITECTURE:WEIGHTS` gives CLIP's own image features, `torchvision:ARCHITECTURE:WEIGHTS`
            the mean of the last feature map (see `load_clip` and `load_convnet`), both of pixels normalized as the
            weights want it; `thumbnail` raw 16 x 16 pixels. What is fetched comes without the file of its texts.

    Raises:
        FileNotFoundError: nothing to load there.
        ValueError: files that are broken or do not fit together.
    """
    kind, _, name = str(path_or_name).partition(":")
    if kind == "thumbnail" and not name:
        return ThumbnailEncoder().eval()
    if kind in _COMPARED and name:
        architecture, _, weights = name.partition(":")
        return build_encoder(architecture, weights, pooling=_COMPARED[kind]).eval()
    if kind in ("hf-hub", "http", "https") and name:
        folder = fetch_folder(str(path_or_name), _READERS)
    else:
        folder = encoder_folder(Path(path_or_name))
    description = read_description(folder)
    try:
        spec = spec_from_json(description["encoder"])
    except ValueError as error:
        raise ValueError(f"{folder / _DESCRIPTION} describes no encoder: {printable(str(error))}") from None
    spec = replace(spec, text_weights=_found_texts(folder, spec.text_weights))
    return restore_encoder(spec, read_safetensors(folder / _WEIGHTS))


def holds_encoder(path: Path) -> bool:
    """Whether a folder, or the `best/` or `last/` of a run, describes an encoder."""
    return any((folder / _DESCRIPTION).is_file() for folder in (path, *_kept_by_run(path)))


def encoder_folder(path: Path) -> Path:
    """The folder itself, or the `best/` or `last/` of a run, whichever holds an encoder.

    Raises:
        FileNotFoundError: none of them does, such as in a run that has not finished its first epoch.
        ValueError: both of a run do.
    """
    if _is_complete(path):
        return path
    found = [folder for folder in _kept_by_run(path) if _is_complete(folder)]
    if len(found) > 1:
        raise ValueError(f"{path} holds the encoders of two trainings: name {' or '.join(map(str, found))}.")
    if found:
        return found[0]
    if (path / _SETTINGS_OF_RUN).is_file():
        raise FileNotFoundError(
            f"There is no encoder in the run {path} yet: stage 2 writes its best/ or last/ when the first epoch is "
            f"finished. Let it get there, with --resume true where it was stopped."
        )
    raise FileNotFoundError(
        f"There is no encoder in {path}: neither it nor its best/ or last/ holds {_DESCRIPTION} and {_WEIGHTS}."
    )


def read_description(folder: Path) -> dict[str, Any]:
    """What `model.json` says: format, encoder, recalls, provenance."""
    description = read_json(folder / _DESCRIPTION)
    if (
        not isinstance(description, dict)
        or description.get("format") != _FORMAT
        or not all(isinstance(description.get(part), dict) for part in _PARTS)
    ):
        raise ValueError(
            f"{folder / _DESCRIPTION} is not a description of an encoder in format {_FORMAT}, with {', '.join(_PARTS)}."
        )
    return description


def _kept_by_run(path: Path) -> list[Path]:
    return [path / name for name in _KEPT_BY_RUNS]


def _is_complete(folder: Path) -> bool:
    return (folder / _DESCRIPTION).is_file() and (folder / _WEIGHTS).is_file()


def _copied_texts(folder: Path, text_weights: str | None) -> str | None:
    """How `model.json` names an encoder's texts: a file, which is copied to `folder`, by its name alone."""
    if text_weights is None or not Path(text_weights).is_absolute():
        return text_weights
    if not Path(text_weights).is_file():
        return None
    copied = folder / f"{_TEXTS}{Path(text_weights).suffix}"
    if not (copied.is_file() and filecmp.cmp(text_weights, copied, shallow=False)):
        with replacing(copied) as temporary:
            shutil.copyfile(text_weights, temporary)
    return copied.name


def _found_texts(folder: Path, text_weights: str | None) -> str | None:
    """An encoder's texts as `load_clip` takes them; None where their file did not come along.

    Whoever wrote `model.json` cannot name any other file: it would be copied wherever the encoder goes.
    """
    if text_weights is None or text_weights.startswith("hf-hub:"):
        return text_weights
    if Path(text_weights).name != text_weights:
        return None
    if Path(text_weights).stem != _TEXTS:  # a tag
        return text_weights
    file = folder / text_weights
    return str(file.resolve()) if file.is_file() else None
