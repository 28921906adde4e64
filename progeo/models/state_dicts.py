"""State dicts: whether they fit a network."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from progeo.models.weight_files.unpickler import printable


def with_batch_counts(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights with a zero for each of these names that is a count of batch norm's batches and is not among them.

    Files older than PyTorch 0.4.1 do not count the batches, and nothing here reads the count.
    """
    return {name: torch.tensor(0) for name in names if name.endswith("num_batches_tracked")} | dict(state)


def check_file_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> None:
    """Refuse the weights of a file that somebody named as those of `architecture`, see `check_fits`."""
    try:
        check_fits(state, expected, architecture)
    except ValueError as error:
        raise ValueError(f"{error} If another program wrote them, `progeo import` makes an encoder of them.") from None


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> None:
    """Refuse weights for `architecture` whose names or shapes are not those expected, or that are whole numbers.

    Raises:
        ValueError: weights that do not fit, with the first that does not.
    """
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(expected[name].shape) if name in expected else "absent"
        if found != wanted:
            raise ValueError(
                f"The weights do not fit {architecture}: {printable(name)} should be {wanted}, is {found}."
            )
        if expected[name].is_floating_point() and not state[name].is_floating_point():
            raise ValueError(
                f"The weights do not fit {architecture}: {name} should hold fractions, holds {state[name].dtype}."
            )
