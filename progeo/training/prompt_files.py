"""Files of learned prompts: text features of every group, with the metadata they were learned for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import safe_open
from torch import Tensor

from progeo.files import read_json
from progeo.places.cells import Partition, check_same_partition

PROMPTS = "prompts.safetensors"
DESCRIPTION = "prompts.json"
_PARTS = frozenset({"partition", "architecture", "weights", "seed", "vocabulary", "groups"})


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
    check_same_partition(read_prompts_description(folder)["partition"], partition, str(folder / PROMPTS))
    return read_prompts(folder / PROMPTS, [f"group_{index}.text_features" for index in range(len(partition.groups))])


def load_clip_of_prompts(folder: Path) -> tuple[str, str]:
    """Load architecture and weights of the CLIP whose text tower encodes the prompts in `folder`, see `load_clip`."""
    description = read_prompts_description(folder)
    return description["architecture"], description["weights"]


def read_prompts_description(folder: Path) -> dict[str, Any]:
    """Read the metadata of the prompts in `folder`.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or not description.keys() >= _PARTS:
        raise ValueError(f"{folder / DESCRIPTION} is not the metadata of prompts: it is corrupt. Run stage 1 again.")
    return description


def read_prompts(path: Path, names: Sequence[str]) -> list[Tensor]:
    """Read the named tensors of a file that stage 1 wrote.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name) for name in names]
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is corrupt: {error}. Remove it and resume stage 1 with `resume`.") from None
