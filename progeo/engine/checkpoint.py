"""Checkpoints: nested states as safetensors and JSON, written atomically, never pickled.

Other files in the same folder belong to the user: only folders with exactly the names defined here are read or removed.
"""

import hashlib
import json
import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from progeo.atomic import remove_abandoned, replacing_folder
from progeo.disk import remove_folder, sync, synced_when_removed
from progeo.engine.log import LOGGER
from progeo.files import file_digest, read_json

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_NUMBER = r"(\d{6}|[1-9]\d{6,})"
_NAME = re.compile(rf"epoch_{_NUMBER}_step_{_NUMBER}")
"""Names of checkpoints: finished epochs and steps of the next, `epoch_000001_step_000010`."""


def save_checkpoint(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Write a nested state of dicts, lists, numbers, strings and tensors to `folder/name`.

    A killed process leaves an unfinished folder at most, which the next process that writes here removes.

    Args:
        folder: created if missing.
        name: such as `epoch_000001_step_000010`; an existing checkpoint of this name is replaced.
        state: the state to write.

    Raises:
        OSError: it could not be written; checkpoints with other names are unchanged.
    """
    tensors: dict[str, Tensor] = {}
    return _write(folder / name, _without_tensors(state, tensors), tensors)


class CheckpointWriter:
    """Writes the checkpoints of a folder in a thread, and removes old ones.

    As a context manager, it waits for the last one at the end. So does Python before it exits.

    Args:
        folder: created if missing.
        keep: number of checkpoints to keep.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._unfinished: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Wait for the checkpoint before, then copy a state on the CPU, which is written as by `save_checkpoint`.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        tensors: dict[str, Tensor] = {}
        plain = _without_tensors(state, tensors, copy=True)
        self._unfinished = self._thread.submit(self._write_and_prune, self.folder / name, plain, tensors)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: it could not be written, see `save_checkpoint`.
        """
        if (unfinished := self._unfinished) is not None:
            wait([unfinished])
            self._unfinished = None
            unfinished.result()

    def _write_and_prune(self, final: Path, plain: Any, tensors: dict[str, Tensor]) -> None:
        prune_checkpoints(_write(final, plain, tensors), keep=self.keep)


def _write(final: Path, plain: Any, tensors: dict[str, Tensor]) -> Path:
    folder, name = final.parent, final.name
    try:
        with replacing_folder(final) as unfinished:
            save_file(tensors, unfinished / _TENSORS)
            digests = {"tensors": file_digest(unfinished / _TENSORS), "state": _digest(plain)}
            (unfinished / _STATE).write_text(json.dumps({**plain, "digests": digests}), encoding="utf-8")
            _remove(final)
        _remove(folder / f".unfinished-{name}")  # of an earlier version that was killed
    except (OSError, ValueError) as error:
        newest = newest_checkpoint(folder)
        rest = f"{newest} is complete: make room and resume with `resume`." if newest else "There is none before it."
        raise OSError(f"{str(error).rstrip('.')}. {rest}") from None
    return final


def checkpoint_bytes(state: Any) -> int:
    """Return the size of the tensors of a nested state, which is about that of its checkpoint."""
    if isinstance(state, Tensor):
        return state.nbytes
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(checkpoint_bytes, items))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint that `save_checkpoint` wrote, with its tensors on the CPU.

    Raises:
        ValueError: it is corrupt; the message names it.
    """
    try:
        plain, tensors = read_json(path / _STATE), load_file(path / _TENSORS)
        _check_digests(path, plain)
        state = _with_tensors(plain, tensors)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"The checkpoint {path} is corrupt: {str(error).rstrip('.')}") from None
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise ValueError(f"The checkpoint {path} is corrupt: {_STATE} and {_TENSORS} do not fit together") from None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"The checkpoint {path} is corrupt: {_STATE} holds no state")
    return state


def load_newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Load the newest readable checkpoint, with a warning for every newer one that is corrupt.

    Returns:
        Its path and state, or None if there are no checkpoints.

    Raises:
        ValueError: all checkpoints are corrupt.
    """
    damages: list[str] = []
    for path in reversed(finished_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except ValueError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            LOGGER.warning("%s; resuming from %s, which was written before it", damage, path)
        return path, state
    if damages:
        raise ValueError(f"{damages[0]}. There is no other: remove it to begin anew, or name another `out`.")
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the path of the newest finished checkpoint, or None."""
    return next(reversed(finished_checkpoints(folder)), None)


def finished_checkpoints(folder: Path) -> list[Path]:
    """List the finished checkpoints, oldest first; symbolic links are skipped."""
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=numbers_of)


def numbers_of(checkpoint: Path) -> tuple[int, int]:
    """Return the number of finished epochs and of steps of the next, from the name of a checkpoint."""
    epochs, steps = re.findall(r"\d+", checkpoint.name)
    return int(epochs), int(steps)


def parts_of(checkpoint: Path) -> set[str]:
    """Return the names of the parts of a checkpoint's state; empty if it is corrupt."""
    try:
        return {name for name, _ in read_json(checkpoint / _STATE)["items"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def prune_checkpoints(newest: Path, *, keep: int) -> None:
    """Remove all but the last `keep` checkpoints up to `newest`.

    Checkpoints after `newest` stay: a run that resumed from an earlier one will overwrite them.
    """
    finished = finished_checkpoints(newest.parent)
    finished = finished[: finished.index(newest) + 1]
    if old := finished[: max(0, len(finished) - keep)]:
        for path in old:
            _remove(path)
        sync(newest.parent)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, and the folder itself if it is then empty."""
    remove_abandoned(folder)
    if (newest := newest_checkpoint(folder)) is not None:
        prune_checkpoints(newest, keep=0)
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        with synced_when_removed(folder):
            folder.rmdir()
        sync(folder.parent)


def _remove(path: Path) -> None:
    """Remove a folder; a file or symbolic link of that name is left alone."""
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)


def _without_tensors(value: Any, tensors: dict[str, Tensor], *, copy: bool = False) -> Any:
    """Move tensors into `tensors`, leaving their keys; dicts become lists of pairs, as JSON has no integer keys.

    Args:
        copy: copy tensors that are on the CPU already, too.
    """
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().to("cpu", copy=copy).contiguous()
        return {"tensor": key, "channels_last": value.ndim == 4 and not value.is_contiguous()}
    if isinstance(value, dict):
        return {"items": [[key, _without_tensors(item, tensors, copy=copy)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, tensors, copy=copy) for item in value]
    return value


def _check_digests(path: Path, plain: Any) -> None:
    """Check that the files are as they were written; those of an earlier version have no digests.

    Raises:
        ValueError: a file has other content.
    """
    digests = plain.pop("digests", None) if isinstance(plain, dict) else None
    if digests is None:
        return
    if not isinstance(digests, dict) or digests.get("state") != _digest(plain):
        raise ValueError(f"{_STATE} is not as it was written")
    if digests.get("tensors") != file_digest(path / _TENSORS):
        raise ValueError(f"{_TENSORS} is not as it was written")


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            tensor = tensors[value["tensor"]]
            # A fused optimizer ignores strides, so the tensor must have the memory format of its parameter again.
            return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
        return {key: _with_tensors(item, tensors) for key, item in value["items"]}
    return value
