"""Files with the weights of a CLIP: which activation they were trained with, and what in them is no weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from progeo.files import read_json
from progeo.models.weight_files.checkpoints import load_weights

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's files hold beside the weights, and no others do."""
CLIP_MARK = "visual.conv1.weight"
"""A tensor that every plain CLIP has."""
OPEN_CLIP = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ClipFile:
    """The weights of a CLIP and what is said of them."""

    state: Mapping[str, Tensor]
    quickgelu: bool | None
    """Whether the activation is that of OpenAI's; None where nothing says it."""


def read_clip_file(path: Path) -> ClipFile:
    """Read the weights of a CLIP under open_clip's names.

    Their activation is said by the numbers in OpenAI's files, and by the configuration beside a file of open_clip.

    Raises:
        ValueError: a file that cannot be read, or that holds no state dict.
    """
    state = load_weights(path, [CLIP_MARK])
    model = said_beside(path, "model_cfg")
    said = None if model is None else bool(model.get("quick_gelu", False))
    quickgelu = True if is_of_openai(state) else said
    return ClipFile(
        {name: value for name, value in plain_state(state).items() if name not in OPENAI_NUMBERS}, quickgelu
    )


def is_of_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds the numbers of OpenAI's files."""
    return all(name in state for name in OPENAI_NUMBERS)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's state dict without the causal mask, which is no weight, but which some programs store with them."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != "attn_mask"}


def said_beside(path: Path, part: str) -> Mapping[str, Any] | None:
    """A part of the configuration that lies beside a file of open_clip: `model_cfg` or `preprocess_cfg`.

    Returns:
        None where there is no configuration, or it does not have the part.

    Raises:
        ValueError: it is none.
    """
    config = path.parent / OPEN_CLIP
    if path.name not in OPEN_CLIP_WEIGHTS or not config.is_file():
        return None
    said = read_json(config)
    if not isinstance(said, dict) or not isinstance(said.get("model_cfg"), dict):
        raise ValueError(f"{config} is not a configuration of open_clip: it has no model_cfg.")
    found = said.get(part)
    if not isinstance(found, dict | None):
        raise ValueError(f"{config} is not a configuration of open_clip: its {part} is a {type(found).__name__}.")
    return found
