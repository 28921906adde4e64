"""Checkpoints: nested states as safetensors and JSON, written whole or not at all, never unpickled."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from progeo.files import read_json, replacing, write_json

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_UNFINISHED = ".unfinished-"


def save_checkpoint(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Write a nested state of dicts, lists, numbers, texts and tensors to `folder/name`.

    An interrupted write leaves an unfinished folder that `newest_checkpoint` does not see.

    Raises:
        OSError: it could not be written; others that are there stay as they are.
    """
    final = folder / name
    unfinished = folder / f"{_UNFINISHED}{name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, tensors)
    try:
        with replacing(unfinished / _TENSORS) as temporary:
            save_file(tensors, temporary)
        write_json(unfinished / _STATE, plain)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        newest = newest_checkpoint(folder)
        rest = f"{newest} is whole: make room and go on with --resume true." if newest else "There is none before it."
        raise OSError(f"{error}. {rest}") from None
    if final.exists():
        shutil.rmtree(final)
    unfinished.rename(final)
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, its tensors on the CPU."""
    plain = read_json(path / _STATE)
    return _with_tensors(plain, load_file(path / _TENSORS))


def newest_checkpoint(folder: Path) -> Path | None:
    """The finished checkpoint whose name sorts last, or None."""
    return max((path for path in folder.glob("*") if not path.name.startswith(_UNFINISHED)), default=None)


def prune_checkpoints(folder: Path, *, keep: int) -> None:
    """Remove all but the `keep` newest finished checkpoints."""
    finished = sorted(path for path in folder.glob("*") if not path.name.startswith(_UNFINISHED))
    for path in finished[: max(0, len(finished) - keep)]:
        shutil.rmtree(path)


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Move tensors into `tensors` and leave their keys; dicts become lists of pairs, as JSON has no integer keys."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous()
        return {"tensor": key, "channels_last": value.ndim == 4 and not value.is_contiguous()}
    if isinstance(value, dict):
        return {"items": [[key, _without_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, tensors) for item in value]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            tensor = tensors[value["tensor"]]
            # A fused optimizer goes through memory, whatever the strides: they must be those of the parameter again.
            return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
        return {key: _with_tensors(item, tensors) for key, item in value["items"]}
    return value
