"""Files of CLIP weights."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from progeo.models.weight_files.checkpoints import load_weights

OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Names of numbers that only OpenAI's files hold beside the weights."""
CLIP_MARK = "visual.conv1.weight"
"""A tensor that every plain CLIP has."""
LOGIT_SCALE = "logit_scale"
"""A tensor that every CLIP has."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXT_CLIP = "clip"
"""Stem of the CLIP file for text features beside an encoder; its suffix is that of the original."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""Files of which a folder with a tokenizer of Hugging Face has at least one."""
_VOCABULARIES = (
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "tokenizer.model", "sentencepiece.model", "sentencepiece.bpe.model"),
)
"""Further files of a tokenizer."""


def read_clip_file(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the weights of a CLIP.

    Returns:
        The weights, and whether they are of one of OpenAI's files, which are recognized by their numbers.

    Raises:
        ValueError: a file that cannot be read, or that holds no state dict.
    """
    state = load_weights(path, [CLIP_MARK, LOGIT_SCALE])
    weights = {name: tensor for name, tensor in plain_state(state).items() if name not in OPENAI_NUMBERS}
    return weights, is_of_openai(state)


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files of a tokenizer of Hugging Face in a folder; empty if there is none."""
    if not any((folder / name).is_file() for name in _TOKENIZER):
        return []
    return [folder / name for name in (*_TOKENIZER, *_VOCABULARIES) if (folder / name).is_file()]


def tokenizer_files_of(weights: Path) -> list[Path]:
    """List the files of the tokenizer beside weights of open_clip, or beside the text CLIP of an encoder."""
    has_folder = weights.name in OPEN_CLIP_WEIGHTS or weights.stem == TEXT_CLIP
    return tokenizer_files(weights.parent) if has_folder else []


def is_of_openai(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is from one of OpenAI's files, which hold `OPENAI_NUMBERS`."""
    return all(name in state for name in OPENAI_NUMBERS)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove causal attention masks, which some programs store among the weights, from a CLIP's state dict."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != "attn_mask"}
