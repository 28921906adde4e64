"""State dicts: whether they fit a network."""

from collections.abc import Mapping

from torch import Tensor


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str) -> None:
    """Refuse weights for `architecture` whose names or shapes are not those expected.

    Raises:
        ValueError: weights that do not fit, with the first that does not.
    """
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(expected[name].shape) if name in expected else "absent"
        if found != wanted:
            raise ValueError(f"The weights do not fit {architecture}: {name} should be {wanted}, is {found}.")
