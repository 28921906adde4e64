"""Checks whether a state dict fits a network."""

import hashlib
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from progeo.printable import printable


def with_batch_counts(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Add a zero for every missing `num_batches_tracked` of these names to a state dict.

    Files older than PyTorch 0.4.1 do not have this count of batch norms, and nothing here reads it.
    """
    return {name: torch.tensor(0) for name in names if name.endswith("num_batches_tracked")} | dict(state)


def telling_name(names: Collection[str]) -> str:
    """Return the first name in a numbered layer: other networks, too, have the name of a first convolution."""
    return next((name for name in names if any(part.isdigit() for part in name.split("."))), next(iter(names)))


def check_file_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> None:
    """Refuse weights of a file given by the user that do not fit `architecture`, with a hint to import it.

    Raises:
        ValueError: see `check_fits`.
    """
    try:
        check_fits(state, expected, architecture)
    except ValueError as error:
        raise ValueError(f"{error} If another program wrote them, `progeo import` makes an encoder of them.") from None


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> None:
    """Refuse weights with missing or unexpected keys, other shapes, or integers in place of floating-point values.

    Raises:
        ValueError: the weights do not fit; the message names the first that does not.
    """
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(expected[name].shape) if name in expected else "absent"
        why = f"The weights do not fit {architecture}: {printable(name)} should"
        if found != wanted:
            raise ValueError(f"{why} be {wanted}, is {found}.")
        if expected[name].is_floating_point() and not state[name].is_floating_point():
            raise ValueError(f"{why} hold fractions, holds {state[name].dtype}.")


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256 digest of the names and values (not shapes) of a state dict, in its order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
