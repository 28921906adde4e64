"""Files of CLIP weights: read the weights under open_clip's names, and the activation that they were trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from progeo.files import read_json
from progeo.models.weight_files.checkpoints import load_weights

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Names of numbers that only OpenAI's files hold beside the weights."""
CLIP_MARK = "visual.conv1.weight"
"""A tensor that every plain CLIP has."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ClipFile:
    """The weights of a CLIP and their activation."""

    state: Mapping[str, Tensor]
    quickgelu: bool | None
    """Whether the activation is QuickGELU, as in OpenAI's CLIP; None if it is not known."""


def read_clip_file(path: Path) -> ClipFile:
    """Read the weights of a CLIP under open_clip's names.

    The activation is QuickGELU for OpenAI's files, which are recognized by their numbers, else that of the
    configuration beside a file of open_clip, if there is one.

    Raises:
        ValueError: a file that cannot be read, or that holds no state dict.
    """
    state = load_weights(path, [CLIP_MARK])
    model = read_section_beside(path, "model_cfg")
    quickgelu = None if model is None else bool(model.get("quick_gelu", False))
    weights = {name: tensor for name, tensor in plain_state(state).items() if name not in OPENAI_NUMBERS}
    return ClipFile(weights, True if is_of_openai(state) else quickgelu)


def is_of_openai(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is from one of OpenAI's files, which hold `OPENAI_NUMBERS`."""
    return all(name in state for name in OPENAI_NUMBERS)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove causal attention masks, which some programs store among the weights, from a CLIP's state dict."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != "attn_mask"}


def read_section_beside(path: Path, section: str) -> Mapping[str, Any] | None:
    """Read a section, `model_cfg` or `preprocess_cfg`, of the configuration beside a weights file of open_clip.

    Returns:
        The section, or None if there is no configuration or it lacks the section.

    Raises:
        ValueError: the file is not a configuration of open_clip.
    """
    file = path.parent / OPEN_CLIP_CONFIG
    if path.name not in OPEN_CLIP_WEIGHTS or not file.is_file():
        return None
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ValueError(f"{file} is not a configuration of open_clip: it has no model_cfg.")
    found = config.get(section)
    if not isinstance(found, dict | None):
        raise ValueError(f"{file} is not a configuration of open_clip: its {section} is a {type(found).__name__}.")
    return found
