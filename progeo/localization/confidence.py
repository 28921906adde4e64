"""Confidence of a localization, calibrated on photos of known position."""

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
"""Lengths of the tuple fields of a `Calibration`."""
_POSITIVE = ("radius_m", "spreads", "num_photos")
_TOO_LARGE = 1e15


@dataclass(frozen=True)
class Calibration:
    """Logistic model of the probability that the first match is correct, given its two confidence features."""

    radius_m: float
    """Maximum distance in meters of a correct match."""
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    """Mean and std of each confidence feature over the calibration photos."""
    weights: tuple[float, ...]
    """Weights of the standardized confidence features, and last the bias."""
    num_photos: int
    num_right: int
    error: float
    """Expected calibration error, 0 to 1: mean gap between confidence and accuracy over ten bins of confidence, with
    each photo judged by a model fitted to others (5-fold cross-validation)."""

    def confidences(self, evidence: np.ndarray) -> np.ndarray:
        """Return probabilities (Q,) that first matches lie within `radius_m`, from confidence features (Q, 2)."""
        return expit(_with_one((evidence - self.means) / self.spreads) @ np.array(self.weights))


def calibration_from_json(values: Mapping[str, Any]) -> Calibration:
    """Read a calibration from a dict of its fields; lists become tuples.

    Raises:
        ValueError: fields are missing or unknown, or a value is impossible.
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
    """Compute two confidence features per query, (Q, 2).

    They are the descriptor distance of the top match, and the gap to the nearest match from a different place, or to
    the last match if there is none.

    Args:
        distances: descriptor distances between a query and its matches, ascending, (Q, K).
        places_m: east and north of the matches, (Q, K, 2).
        radius_m: matches farther than this from the top match are from a different place.
    """
    elsewhere = ~(np.linalg.norm(places_m - places_m[:, :1], axis=2) <= radius_m)  # an unknown place is different
    elsewhere[:, -1] = True
    other = np.take_along_axis(distances, elsewhere.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.stack([distances[:, 0], other - distances[:, 0]], axis=1)


def calibrate(values: np.ndarray, right: np.ndarray, radius_m: float) -> Calibration:
    """Fit the probability that a first match is correct (Platt scaling: Platt, 1999).

    Args:
        values: confidence features of queries of known position, (Q, 2).
        right: whether the first match lies within `radius_m`, bool (Q,).
        radius_m: maximum distance of a correct match in meters.
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
    # Platt's targets, not 1 and 0: on separable photos those would make the confidence diverge to certainty.
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
