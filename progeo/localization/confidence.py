"""How sure one may be that what was found for a photo is where it was taken, calibrated on photos of known position."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

_FOLDS = 5
_BINS = 10
_LENGTHS = MappingProxyType({"means": 2, "spreads": 2, "weights": 3})
"""Of the fields of a `Calibration` that are several numbers."""
_POSITIVE = ("radius_m", "spreads", "num_photos")
_TOO_LARGE = 1e15


@dataclass(frozen=True)
class Calibration:
    """The probability that the first prediction is near enough: a logistic function of what a search gives."""

    radius_m: float
    """What near enough is."""
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    """Of each value of `evidence` over the photos it was made from."""
    weights: tuple[float, ...]
    """Of each of them, standardized, and last what is added."""
    num_photos: int
    num_right: int
    error: float
    """Expected calibration error, 0 to 1: how far confidence and share of right ones are apart, over ten bins of
    confidence, each photo judged by what was learned from others."""

    def confidences(self, evidence: np.ndarray) -> np.ndarray:
        """Probabilities (Q,) that first predictions lie within `radius_m`, from `evidence` (Q, 2)."""
        return expit(_with_one((evidence - self.means) / self.spreads) @ np.array(self.weights))


def calibration_from_json(values: Mapping[str, Any]) -> Calibration:
    """Read a calibration that was written as the dict of its fields; tuples come back from lists.

    Raises:
        ValueError: other fields, or values that none of them can have.
    """
    names = {field.name for field in fields(Calibration)}
    if values.keys() != names:
        raise ValueError(
            f"A calibration says {', '.join(sorted(names))}; got {', '.join(sorted(values)) or 'nothing'}."
        )
    read: dict[str, Any] = {}
    for name, value in values.items():
        length = _LENGTHS.get(name)
        numbers = [value] if length is None else value
        is_list = isinstance(numbers, (list, tuple)) and len(numbers) == (length or 1)
        if not is_list or not all(_is_possible(number, name in _POSITIVE) for number in numbers):
            raise ValueError(f"The {name} of a calibration cannot be {value!r}.")
        read[name] = value if length is None else tuple(value)
    return Calibration(**read)


def evidence(distances: np.ndarray, places_m: np.ndarray, radius_m: float) -> np.ndarray:
    """What speaks for the first prediction of each query, (Q, 2).

    That is the distance of its descriptor, and how much farther the first one is that was taken somewhere else; where
    none was, how much farther the last one is.

    Args:
        distances: between descriptors of a query and of its predictions, ascending, (Q, K).
        places_m: east and north of the predictions, (Q, K, 2).
        radius_m: predictions farther than this from the first are somewhere else.
    """
    elsewhere = ~(np.linalg.norm(places_m - places_m[:, :1], axis=2) <= radius_m)  # so is a place that is not known
    elsewhere[:, -1] = True
    other = np.take_along_axis(distances, elsewhere.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.stack([distances[:, 0], other - distances[:, 0]], axis=1)


def calibrate(values: np.ndarray, right: np.ndarray, radius_m: float) -> Calibration:
    """Learn how probable it is that a first prediction is right (Platt scaling: Platt, 1999).

    Args:
        values: `evidence` of queries of known position, (Q, 2).
        right: whether their first prediction lies within `radius_m`, bool (Q,).
        radius_m: as it says.
    """
    folds = np.random.default_rng(0).permutation(len(right)) % _FOLDS
    judged = np.empty(len(right))
    for fold in range(_FOLDS):
        judged[folds == fold] = _fitted(values[folds != fold], right[folds != fold], radius_m).confidences(
            values[folds == fold]
        )
    bins = np.minimum((judged * _BINS).astype(int), _BINS - 1)
    apart = [abs(judged[bins == each].sum() - right[bins == each].sum()) for each in range(_BINS)]
    whole = _fitted(values, right, radius_m)
    return Calibration(**{**vars(whole), "error": float(sum(apart) / len(right))})


def _fitted(values: np.ndarray, right: np.ndarray, radius_m: float) -> Calibration:
    means, spreads = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-12)
    inputs = _with_one((values - means) / spreads)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    # Platt's targets: not 1 and 0, or photos that are easily told apart would make it infinitely sure.
    targets = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = inputs @ weights
        value = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum()
        return value, inputs.T @ (expit(logits) - targets)

    weights = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="BFGS").x
    return Calibration(
        radius_m, tuple(means.tolist()), tuple(spreads.tolist()), tuple(weights.tolist()), len(right), num_right, np.nan
    )


def _is_possible(value: Any, must_be_positive: bool) -> bool:
    return type(value) in (int, float) and abs(value) < _TOO_LARGE and (value > 0 or not must_be_positive)


def _with_one(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)
