"""Find state dicts in files: alone or inside a training checkpoint, nested and under any name."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import torch
from torch import Tensor

from progeo.models.weight_files.tensor_files import is_safetensors, read_safetensors
from progeo.models.weight_files.torch_files import Stub, is_module, read_torch_file, tensors_of
from progeo.printable import first_line, printable

LOGGER = logging.getLogger("progeo")
_PREFERRED = ("model_state_dict", "state_dict", "model")
"""Keys under which PyTorch's documentation, Lightning and most programs store the weights of the trained model."""
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that wrappers add to parameter names: `DataParallel`, `torch.compile`, FSDP."""
_COUNT = "n_averaged"
"""Name of the number of averaged models in `torch.optim.swa_utils.AveragedModel`, which is not a weight."""
_EXTRA = "_extra_state"
"""Suffix of the extra state that modules store among their weights, see `torch.nn.Module.get_extra_state`."""
_COUNTER = re.compile("epoch|step|iter|version|num_", re.IGNORECASE)
"""Names of counters and versions, which are not weights."""
_DEEPEST = 4
_MAX_REPEATED = 2**24
"""Maximum number of bytes of a tensor that is larger than its storage."""
_MAX_IN_LIST = 16
_LONGEST = 200

Address = tuple[str, ...]


@dataclass(frozen=True)
class FoundWeights:
    """A state dict that was found in a file."""

    state: dict[str, Tensor]
    """Tensors by name, without the names of wrappers and without a common prefix before the marks."""
    ignored: tuple[str, ...]
    """Names of other content of the file."""
    remarks: tuple[str, ...]
    """Assumptions made in the search, as sentences for the user."""


def read_content(path: Path) -> Any:
    """Read the complete content of a safetensors, `torch.save` or TorchScript file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return read_safetensors(path) if is_safetensors(path) else read_torch_file(path)


def load_weights(path: Path, marks: Collection[str]) -> dict[str, Tensor]:
    """Load the state dict in a file, see `find_weights`; log ignored content and assumptions."""
    found = find_weights(read_content(path), path, marks)
    for remark in found.remarks:
        LOGGER.info("%s: %s", path, remark)
    if found.ignored:
        LOGGER.info("%s: skipped, not part of the weights: %s", path, in_words(found.ignored))
    return found.state


def find_weights(content: Any, path: Path, marks: Collection[str], part: str | None = None) -> FoundWeights:
    """Find the state dict of a known format in the content of a file, nested in mappings, lists, objects or modules.

    Args:
        content: content of the file, see `read_content`.
        path: path of the file, for errors.
        marks: tensor names that identify a state dict of a wanted format, possibly after a common prefix such as
            `model.`. If no state dict has a mark, the largest one is used, without removing a prefix.
        part: dotted address, such as `state.ema`, of the wanted state dict if there are several; None takes the one
            whose key is usual for the weights of the trained model.

    Raises:
        ValueError: there is no state dict, or several and no usual key; a value in it is not a tensor; two names differ
            only by the names of wrappers.
    """
    mappings = dict(_mappings(content))
    if not mappings:
        raise ValueError(f"{path} holds no state dict.")
    candidates = {
        (*address, *prefix.split(".")[:-1]): (address, prefix)
        for address, mapping in mappings.items()
        for prefix in _prefixes(mapping, marks)
    }
    remarks: tuple[str, ...] = ()
    if candidates or part is not None:
        chosen, remarks = _chosen(list(candidates), path, part)
        address, prefix = candidates[chosen]
    else:
        address, prefix = max(mappings, key=lambda address: len(mappings[address])), ""
    state, ignored = _state(mappings[address], prefix, path)
    return FoundWeights(state, (*_beside(content, address), *ignored), remarks)


def reason_of(error: Exception, file: str) -> str:
    """Return the first line of an error, see `first_line`, with the name of the file at its start replaced by `it`.

    If a server could not be reached, it also says what to do without one.
    """
    reason = first_line(error, type(error).__name__)
    if _is_unreachable(error):
        return f"{reason}. Without a network, `weights` takes a file, or random"
    return f"it {reason.removeprefix(f'{file} ')}" if reason.startswith(f"{file} ") else reason


def _is_unreachable(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised for, is that of a server that could not be reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError  # what the hub raises then

    while error is not None:
        if isinstance(error, (URLError, LocalEntryNotFoundError)) and not isinstance(error, HTTPError):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_words(names: Iterable[str]) -> str:
    """Summarize names: several by their first part and how many share it, such as `decoder.* (12)`."""
    alike: dict[str, list[str]] = {}
    for name in names:
        beginning = ".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1])
        alike.setdefault(beginning, []).append(name)
    return ", ".join(each[0] if len(each) == 1 else f"{beginning}.* ({len(each)})" for beginning, each in alike.items())


def _mappings(content: Any) -> Iterable[tuple[Address, Mapping[Any, Any]]]:
    """Yield every mapping, object or module that holds named tensors, with its address."""
    waiting: list[tuple[Address, Any]] = [((), content)]
    seen = set()
    for address, value in waiting:  # the list grows in the loop
        if id(value) in seen or len(address) > _DEEPEST:
            continue
        seen.add(id(value))
        items = _items(value)
        if any(isinstance(name, str) and isinstance(part, Tensor) for name, part in items.items()):
            yield address, items
        inside = (Mapping, Stub, list, tuple)
        waiting += [
            ((*address, name), part)
            for name, part in items.items()
            if isinstance(name, str) and isinstance(part, inside)
        ]


def _items(value: Any) -> Mapping[Any, Any]:
    """Return the named content of a mapping, module, object or list (its first 16 values, named by index)."""
    if is_module(value):
        return tensors_of(value)
    if isinstance(value, Stub):
        return vars(value)
    if isinstance(value, list | tuple):
        return {str(index): part for index, part in enumerate(value[:_MAX_IN_LIST])}
    return value if isinstance(value, Mapping) else {}


def _prefixes(mapping: Mapping[Any, Any], marks: Collection[str]) -> list[str]:
    """Find the prefixes before the marks in the names of a mapping; only the empty one if a mark has no prefix."""
    names = [_WRAPPERS.sub("", name) for name, value in mapping.items() if is_weight(name, value)]
    if not set(names).isdisjoint(marks):
        return [""]
    ends = tuple(f".{mark}" for mark in marks)
    found = (name.removesuffix(end) for name in names for end in ends if name.endswith(end))
    return [f"{prefix}." for prefix in dict.fromkeys(found)]


def _chosen(candidates: list[Address], path: Path, part: str | None) -> tuple[Address, tuple[str, ...]]:
    """Choose one of several state dicts; return its address and remarks about the others."""
    names = [printable(".".join(address)) for address in candidates]
    if part is not None:
        if part not in names:
            raise ValueError(f"{path} holds no weights in {part}; it holds them in {_listed(names) or 'no part'}.")
        return candidates[names.index(part)], ()
    if len(candidates) == 1:
        return candidates[0], ()
    levels = [len(set(level)) for level in zip(*candidates, strict=False)]
    shared = next((depth for depth, count in enumerate(levels) if count > 1), len(levels))
    for name in _PREFERRED:
        for address, own in zip(candidates, names, strict=True):
            if address[shared : shared + 1] == (name,):
                others = [other for other in names if other != own]
                return address, (
                    f"The weights in {own} are used, those in {_listed(others)} are skipped: "
                    f"`progeo import --weights_in {others[0]}` uses these.",
                )
    raise ValueError(
        f"{path} holds the weights of several networks, in {_listed(names)}: choose one of them, for example with "
        f"`progeo import --weights_in {names[0]}`, or save one alone."
    )


def _state(mapping: Mapping[Any, Any], prefix: str, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Take the tensors of a mapping whose names start with `prefix`, removing it; return them and the ignored names."""
    state: dict[str, Tensor] = {}
    ignored = []
    for name, value in mapping.items():
        bare = _WRAPPERS.sub("", name) if isinstance(name, str) else ""
        ending = bare.removeprefix(prefix)
        if not bare.startswith(prefix) or ending == _COUNT or ending.endswith(_EXTRA) or _is_metadata(ending, value):
            ignored.append(_shown(name))
            continue
        if not is_weight(name, value) or not name.isprintable():
            raise ValueError(f"{path} holds more than a state dict: {_shown(name)!r} is no named tensor.")
        if ending in state:
            raise ValueError(f"{path} holds {ending} twice: as {name}, and with another beginning or none.")
        state[ending] = value
    return state, ignored


def _beside(content: Any, address: Address) -> Iterable[str]:
    """Yield the names of all other content on each level of the path to a state dict."""
    for name in address:
        items = _items(content)
        yield from (_shown(other) for other in items if other != name)
        content = items[name]


def is_weight(name: Any, value: Any) -> bool:
    """Return whether a value is a named, dense tensor with values.

    Sparse and meta tensors are no weights, nor are large ones that repeat few values, which would fill the memory when
    they are copied.
    """
    if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and value.is_cpu):
        return False
    return value.numel() * value.element_size() <= max(value.untyped_storage().nbytes(), _MAX_REPEATED)


def _is_metadata(name: str, value: Any) -> bool:
    """Return whether a value among weights is metadata; a number may be a weight, unless its name is a counter's."""
    is_number = isinstance(value, int | float) and not _COUNTER.search(name)
    return "." not in name and not isinstance(value, Tensor) and not is_number


def _shown(name: Any) -> str:
    """Convert a key of a mapping to printable text."""
    return printable(str(name))[:_LONGEST] if isinstance(name, str | int | float) else type(name).__name__


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
