"""How sure one may be that what was found for a photo is where it was taken, calibrated on photos of known position."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

_FOLDS = 5
_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """The probability that the first prediction is near enough: a logistic function of what a search gives."""

    radius_m: float
    """What near enough is."""
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    """Of each value of `evidence` over the photos it was made from."""
    weights: tuple[float, ...]
    """Of each of them, standardised, and last what is added."""
    num_photos: int
    num_right: int
    error: float
    """Expected calibration error, 0 to 1: how far confidence and share of right ones are apart, over ten bins of
    confidence, each photo judged by what was learned from others."""

    def confidences(self, evidence: np.ndarray) -> np.ndarray:
        """Probabilities (Q,) that first predictions lie within `radius_m`, from `evidence` (Q, 2)."""
        return expit(_with_one((evidence - self.means) / self.spreads) @ np.array(self.weights))


def evidence(distances: np.ndarray, places_m: np.ndarray, radius_m: float) -> np.ndarray:
    """What speaks for the first prediction of each query, (Q, 2).

    That is the distance of its descriptor, and how much farther the first one is that was taken somewhere else; where
    none was, how much farther the last one is.

    Args:
        distances: between descriptors of a query and of its predictions, ascending, (Q, K).
        places_m: east and north of the predictions, (Q, K, 2).
        radius_m: predictions farther than this from the first are somewhere else.
    """
    elsewhere = np.linalg.norm(places_m - places_m[:, :1], axis=2) > radius_m
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


def _with_one(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)
