"""State dicts in files: safetensors, `torch.save`, TorchScript; alone or inside a checkpoint of a training."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from progeo.export.foreign.torch_files import read_torch_file, tensors_of
from progeo.export.foreign.unpickler import SCRIPTED_MODULE, Stub
from progeo.export.tensor_files import read_safetensors

_INSIDE = ("model_state_dict", "state_dict")
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What names begin with where a module was wrapped: by `DataParallel`, by `torch.compile`."""


def read_content(path: Path) -> Any:
    """All that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in a file, see `state_dict_in`."""
    return state_dict_in(read_content(path), path)


def state_dict_in(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in what a file holds, its names without wrappers, and what else a checkpoint holds.

    Raises:
        ValueError: there is none, or two tensors have the same name without wrappers.
    """
    others: tuple[str, ...] = ()
    if isinstance(content, Stub) and content.kind == SCRIPTED_MODULE:
        content = tensors_of(content)
    elif isinstance(content, Mapping):
        inside = next((name for name in _INSIDE if isinstance(content.get(name), Mapping)), None)
        if inside is not None:
            others = tuple(str(name) for name in content if name != inside)
            content = content[inside]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict.")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{path} holds more than a state dict: {name!r} is no named tensor.")
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        bare = _WRAPPERS.sub("", name)
        if bare in state:
            raise ValueError(f"{path} holds {bare} twice: as {name}, and with another beginning or none.")
        state[bare] = tensor
    return state, others
