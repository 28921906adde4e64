"""Import CLIP folders of Hugging Face, in the format of open_clip or of transformers."""

from pathlib import Path

from progeo.convert.clip_towers import unusual_settings
from progeo.convert.clips import Said, read_clip
from progeo.convert.configurations import read_configuration
from progeo.convert.hugging_face import with_open_clip_names
from progeo.convert.translation import Choices, Foreign, with_what_was_found
from progeo.models.clip_files import CLIP_MARK, OPEN_CLIP, OPEN_CLIP_WEIGHTS
from progeo.models.weight_files.checkpoints import FoundWeights, find_weights, read_content
from progeo.models.weight_files.printable import printable

_TRANSFORMERS = "config.json"
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_MARKS = (CLIP_MARK, "vision_model.embeddings.class_embedding")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_EPS = 1e-5
_MIN_STD = 0.001


def read_clip_folder(path: Path, choices: Choices) -> Foreign | None:
    """Import the CLIP in a folder, with the activation and pixel statistics of its configuration.

    Args:
        path: the folder, or a weights file in it, which is then read with the configuration that belongs to its name.
        choices: settings given by the user.

    Returns:
        The converted encoder, or None for a file without a configuration.

    Raises:
        FileNotFoundError: a configuration or the weights are missing.
        ValueError: the files are of another model, or do not fit together.
    """
    if not path.is_dir():
        if path.name in OPEN_CLIP_WEIGHTS and (path.parent / OPEN_CLIP).is_file():
            return _read_open_clip(path, choices)
        return _read_transformers(path, choices) if _is_transformers_file(path) else None
    is_open_clip, is_transformers = ((path / name).is_file() for name in (OPEN_CLIP, _TRANSFORMERS))
    if is_open_clip and (_holds_weights(path, OPEN_CLIP_WEIGHTS) or not is_transformers):
        return _read_open_clip(path, choices)
    if is_transformers:
        return _read_transformers(path, choices)
    raise FileNotFoundError(f"{path} is no folder of a CLIP: it holds neither {OPEN_CLIP} nor {_TRANSFORMERS}.")


def _read_open_clip(path: Path, choices: Choices) -> Foreign:
    folder = path if path.is_dir() else path.parent
    config = read_configuration(folder / OPEN_CLIP)
    model, pixels = config.part("model_cfg"), config.part("preprocess_cfg")
    vision, text = model.part("vision_cfg"), model.part("text_cfg")
    if unusual := unusual_settings(model.values):
        raise ValueError(f"{config.path} describes no plain CLIP: it says {printable(', '.join(unusual))}.")
    said = Said(  # missing numbers get open_clip's defaults
        "open_clip",
        quickgelu=bool(model.values.get("quick_gelu", False)),
        head_width=vision.number("head_width", 64),
        text_heads=text.number("heads", 8),
        mean=pixels.color("mean", 0),
        std=pixels.color("std", _MIN_STD),
    )
    found = _weights(path, OPEN_CLIP_WEIGHTS, choices.weights_in)
    return with_what_was_found(read_clip(found.state, choices, said), found)


def _read_transformers(path: Path, choices: Choices) -> Foreign:
    folder = path if path.is_dir() else path.parent
    config = read_configuration(folder / _TRANSFORMERS)
    kind = config.values.get("model_type")
    if kind != "clip":
        raise ValueError(f"{config.path} describes a {kind!r}, not a clip.")
    vision, text = config.part("vision_config"), config.part("text_config")
    activations = {part.word("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys():
        raise ValueError(
            f"{config.path} says hidden_act {printable(', '.join(sorted(activations)))}: it must be one of "
            f"{', '.join(_ACTIVATIONS)}, and the same for images and texts."
        )
    for part in (vision, text):
        if (eps := part.number("layer_norm_eps", _EPS)) != _EPS:
            raise ValueError(f"{config.path} describes no plain CLIP: its layer_norm_eps is {eps}, not {_EPS}.")
    pixels = read_configuration(folder / "processor_config.json").part("image_processor")
    if not pixels.values:
        pixels = read_configuration(folder / "preprocessor_config.json")
    said = Said(  # missing numbers get the defaults of transformers
        "Hugging Face",
        quickgelu=_ACTIVATIONS[activations.pop()],
        head_width=vision.number("hidden_size", 768) // vision.number("num_attention_heads", 12),
        text_heads=text.number("num_attention_heads", 8),
        mean=pixels.color("image_mean", 0),
        std=pixels.color("image_std", _MIN_STD),
    )
    found = _weights(path, _TRANSFORMERS_WEIGHTS, choices.weights_in)
    return with_what_was_found(read_clip(with_open_clip_names(found.state), choices, said), found)


def _is_transformers_file(path: Path) -> bool:
    config = path.parent / _TRANSFORMERS
    return path.name in _TRANSFORMERS_WEIGHTS and read_configuration(config).values.get("model_type") == "clip"


def _holds_weights(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / f"{name}{ending}").is_file() for name in names for ending in ("", _INDEX))


def _weights(path: Path, names: tuple[str, ...], part: str | None) -> FoundWeights:
    """Read the weights in a file, or in the first of these names in a folder, possibly sharded with an index file."""
    for file in [path] if path.is_file() else [path / name for name in names]:
        if file.is_file():
            return find_weights(read_content(file), file, _MARKS, part)
        index = file.with_name(f"{file.name}{_INDEX}")
        if index.is_file():
            files = read_configuration(index).part("weight_map").values.values()
            if not files:
                raise ValueError(f"{index} names no files of weights.")
            pieces = sorted({Path(str(name)).name for name in files})
            states = [find_weights(read_content(path / name), path / name, ()).state for name in pieces]
            return find_weights({name: value for state in states for name, value in state.items()}, index, _MARKS, part)
    raise FileNotFoundError(f"{path} holds no weights: neither {' nor '.join(names)}.")
