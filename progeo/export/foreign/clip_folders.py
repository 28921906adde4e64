"""Folders of a CLIP as Hugging Face keeps them: open_clip's own, and those of transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from progeo.export.foreign.clip_towers import unusual_settings
from progeo.export.foreign.clips import read_clip
from progeo.export.foreign.hugging_face import with_open_clip_names
from progeo.export.foreign.translation import Choices, Foreign
from progeo.export.foreign.weight_files import read_state_dict
from progeo.files import read_json

_OPEN_CLIP = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_TRANSFORMERS = "config.json"
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


def read_clip_folder(path: Path, choices: Choices) -> Foreign | None:
    """The CLIP in a folder, with the activation and the pixels that its configuration says.

    Args:
        path: the folder, or a file of weights in one. That file is read then, with the configuration that belongs to
            its name.
        choices: what the folder does not say.

    Returns:
        None for a file that no configuration belongs to.

    Raises:
        FileNotFoundError: a configuration or the weights are not there.
        ValueError: they are of another model, or do not fit together.
    """
    if not path.is_dir():
        if path.name in _OPEN_CLIP_WEIGHTS and (path.parent / _OPEN_CLIP).is_file():
            return _read_open_clip(path, choices)
        return _read_transformers(path, choices) if _is_transformers_file(path) else None
    if (path / _OPEN_CLIP).is_file():
        return _read_open_clip(path, choices)
    if (path / _TRANSFORMERS).is_file():
        return _read_transformers(path, choices)
    raise FileNotFoundError(f"{path} is no folder of a CLIP: it holds neither {_OPEN_CLIP} nor {_TRANSFORMERS}.")


def _read_open_clip(path: Path, choices: Choices) -> Foreign:
    folder = path if path.is_dir() else path.parent
    model, pixels = (_section(folder / _OPEN_CLIP, name) for name in ("model_cfg", "preprocess_cfg"))
    if unusual := unusual_settings(model):
        raise ValueError(f"{folder / _OPEN_CLIP} describes no plain CLIP: it says {', '.join(unusual)}.")
    vision = model.get("vision_cfg", {})
    return read_clip(
        _weights(path, _OPEN_CLIP_WEIGHTS),
        choices,
        kind="open_clip",
        quickgelu=bool(model.get("quick_gelu", False)),
        head_width=vision.get("head_width", 64) if isinstance(vision.get("layers"), int) else None,
        mean=pixels.get("mean"),
        std=pixels.get("std"),
    )


def _read_transformers(path: Path, choices: Choices) -> Foreign:
    folder = path if path.is_dir() else path.parent
    kind = _mapping(folder / _TRANSFORMERS).get("model_type")
    if kind != "clip":
        raise ValueError(f"{folder / _TRANSFORMERS} describes a {kind!r}, not a clip.")
    vision, text = (_section(folder / _TRANSFORMERS, name) for name in ("vision_config", "text_config"))
    activations = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys():
        raise ValueError(
            f"{folder / _TRANSFORMERS} says hidden_act {', '.join(sorted(activations))}: it must be one of "
            f"{', '.join(_ACTIVATIONS)}, and the same for images and texts."
        )
    pixels = _mapping(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    # Defaults are those of transformers, which leaves them out of the file.
    head_width = vision.get("hidden_size", 768) // vision.get("num_attention_heads", 12)
    return read_clip(
        with_open_clip_names(_weights(path, _TRANSFORMERS_WEIGHTS)),
        choices,
        kind="Hugging Face",
        quickgelu=_ACTIVATIONS[activations.pop()],
        head_width=head_width,
        mean=pixels.get("image_mean"),
        std=pixels.get("image_std"),
    )


def _is_transformers_file(path: Path) -> bool:
    config = path.parent / _TRANSFORMERS
    return path.name in _TRANSFORMERS_WEIGHTS and config.is_file() and _mapping(config).get("model_type") == "clip"


def _weights(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What the file itself holds, or the first of these names in a folder, be it in several files with an index."""
    for file in [path] if path.is_file() else [path / name for name in names]:
        if file.is_file():
            return read_state_dict(file)[0]
        index = file.with_name(f"{file.name}.index.json")
        if index.is_file():
            parts = sorted({Path(str(part)).name for part in _section(index, "weight_map").values()})
            return {name: tensor for part in parts for name, tensor in read_state_dict(path / part)[0].items()}
    raise FileNotFoundError(f"{path} holds no weights: neither {' nor '.join(names)}.")


def _mapping(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a configuration.")
    return value


def _section(path: Path, name: str) -> Mapping[str, Any]:
    """A part of a configuration; nothing where it is left out."""
    value = _mapping(path).get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a configuration: its {name} is a {type(value).__name__}.")
    return value
