"""Confidence of a localization, calibrated on photos of known position."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from scipy.special import expit, log_expit, logsumexp, softmax

from progeo.json_files import as_kind

_Number = Annotated[float, Meta(gt=-1e15, lt=1e15)]
_Positive = Annotated[float, Meta(gt=0, lt=1e15)]
_Count = Annotated[int, Meta(ge=0, lt=2**31)]
_NUM_FOLDS = 5
_NUM_BINS = 10
_RENAMED_FIELDS = MappingProxyType({"spreads": "stds", "num_right": "num_correct"})
"""Fields in files of earlier versions -> their current names."""
_MAX_LOG_TEMPERATURE = 7.0
_MIN_LOG = -700.0
NOISE_INLIERS = 11
"""Most inliers of a photo with 20 images of other places that are chance: measured with SIFT on photos of Cambridge and
images of San Francisco, where 81 of 84 photos had at most so many (median 10, maximum 13)."""


class AnyCalibration(ABC):
    """What turns confidence features into probabilities."""

    radius_m: _Positive
    num_photos: _Count
    num_correct: _Count
    error: _Number

    @abstractmethod
    def confidences(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities (Q,) that first matches lie within `radius_m`."""


class _Logistic(AnyCalibration):
    """Logistic model of the probability that the first match is correct, given F confidence features."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]

    def confidences(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities (Q,) that first matches lie within `radius_m`, from confidence features (Q, F)."""
        return expit(_with_bias((features - self.means) / self.stds) @ np.array(self.weights))


@dataclass(frozen=True)
class Calibration(_Logistic):
    """Logistic model of the probability that the first match is correct, given its two confidence features."""

    radius_m: _Positive
    """Maximum distance in meters of a correct match."""
    means: tuple[_Number, _Number]
    stds: tuple[_Positive, _Positive]
    """Mean and std of each confidence feature over the calibration photos."""
    weights: tuple[_Number, _Number, _Number]
    """Weights of the standardized confidence features, and last the bias."""
    num_photos: _Count
    num_correct: _Count
    error: _Number
    """Expected calibration error, 0 to 1: mean gap between confidence and accuracy over ten bins of confidence, where
    the confidence of each photo is from a model fitted to other photos (5-fold cross-validation)."""


@dataclass(frozen=True)
class VerifiedCalibration(_Logistic):
    """Logistic model of the probability that the first match is correct, given inliers as third confidence feature."""

    radius_m: _Positive
    """Maximum distance in meters of a correct match."""
    means: tuple[_Number, _Number, _Number]
    stds: tuple[_Positive, _Positive, _Positive]
    weights: tuple[_Number, _Number, _Number, _Number]
    num_photos: _Count
    num_correct: _Count
    error: _Number
    """Expected calibration error, as for `Calibration`, if all photos are verified."""


@dataclass(frozen=True)
class Verification:
    """How the matches of a place index are verified: matched with the photo, and ranked by inliers."""

    matcher: str
    """Name of the matcher, see `progeo.verification.matchers.build_matcher`."""
    top: Annotated[int, Meta(ge=1, le=20)]
    """Number of first matches that are matched with a photo, of the 20 that every search finds."""
    below: Annotated[float, Meta(ge=0, le=1)]
    """A photo with a confidence below this is verified; 0 verifies none, as that did not help, 1 all."""
    calibration: VerifiedCalibration
    """Turns confidence features with inliers into the confidence of a photo that was verified."""


@dataclass(frozen=True)
class ClassCalibration(AnyCalibration):
    """Temperature of the softmax over class scores: its mass near the best class is the probability of being there."""

    radius_m: _Positive
    """Maximum distance in meters of a correct class center, and of a class near the best one."""
    temperature: _Positive
    """Divides the scores."""
    num_photos: _Count
    num_correct: _Count
    error: _Number
    """Expected calibration error, as for `Calibration`."""

    def confidences(self, features: np.ndarray) -> np.ndarray:
        """Return probabilities (Q,) that best classes lie within `radius_m`, from confidence features (Q, 2, K)."""
        return np.exp(_log_masses(features, self.temperature)[0])


def calibration_from_json(values: Mapping[str, Any], source: str = "A calibration") -> AnyCalibration:
    """Parse a calibration from a dict of its fields, as this version or an earlier one wrote it.

    Args:
        source: what it is, for the error message.

    Raises:
        ValueError: fields are missing or unknown, or a value is impossible.
    """
    values = {_RENAMED_FIELDS.get(name, name): value for name, value in values.items()}
    kind = ClassCalibration if "temperature" in values else Calibration
    advice = "Set calibration to null, and run `progeo index calibrate`."
    return as_kind(values, kind, source, advice=advice)


def score_probabilities(scores: np.ndarray, calibration: ClassCalibration | None) -> np.ndarray:
    """Compute the softmax over class scores (Q, K), divided by the temperature of a calibration, if any.

    All classes of a query are alike if the score of the first is minus infinity, for a query without results.
    """
    scores = np.where(np.isneginf(scores[:, :1]), 0.0, scores)
    return softmax(scores / (1.0 if calibration is None else calibration.temperature), axis=1)


def class_confidence_features(scores: np.ndarray, positions_m: np.ndarray, radius_m: float) -> np.ndarray:
    """Stack the confidence features of class scores, (Q, 2, K): the scores, and 1 where a class is near the best one.

    Args:
        scores: of the best classes, descending, (Q, K); minus infinity where there is none.
        positions_m: east and north of their centers, (Q, K, 2).
        radius_m: classes within this distance of the first are near it.
    """
    is_near = np.linalg.norm(positions_m - positions_m[:, :1], axis=2) <= radius_m
    return np.stack([scores, is_near], axis=1, dtype=np.float64)


def confidence_features(distances: np.ndarray, positions_m: np.ndarray, radius_m: float) -> np.ndarray:
    """Compute two confidence features per query, (Q, 2).

    They are the descriptor distance of the top match, and the gap to the nearest match from a different place, or to
    the last match if there is none.

    Args:
        distances: descriptor distances between a query and its matches, ascending, (Q, K).
        positions_m: east and north of the matches, (Q, K, 2); a match with an unknown position (NaN) is from a
            different place.
        radius_m: matches farther than this from the top match are from a different place.
    """
    is_other = ~(np.linalg.norm(positions_m - positions_m[:, :1], axis=2) <= radius_m)  # True for NaN
    is_other[:, -1] = True
    other = np.take_along_axis(distances, is_other.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.stack([distances[:, 0], other - distances[:, 0]], axis=1)


def calibrate(features: np.ndarray, correct: np.ndarray, radius_m: float) -> AnyCalibration:
    """Fit the probability that a first match is correct.

    For images it is a logistic model (Platt scaling: Platt, 1999), for classes a temperature (Guo et al., ICML 2017).

    Args:
        features: confidence features of queries of known position, (Q, 2) for images, (Q, 3) if they were verified,
            (Q, 2, K) for classes.
        correct: whether the first match lies within `radius_m`, bool (Q,).
        radius_m: maximum distance of a correct match in meters.
    """
    error = calibration_error(held_out_confidences(features, correct, radius_m), correct)
    return _fit_of(features)(features, correct, radius_m, error)


def held_out_confidences(features: np.ndarray, correct: np.ndarray, radius_m: float) -> np.ndarray:
    """Compute the confidence (Q,) of each photo by a model fitted to other photos (5-fold cross-validation).

    Args:
        features, correct, radius_m: see `calibrate`.
    """
    held_out = np.empty(len(correct))
    for is_held_out in folds(len(correct)):
        model = _fit_of(features)(features[~is_held_out], correct[~is_held_out], radius_m, np.nan)
        held_out[is_held_out] = model.confidences(features[is_held_out])
    return held_out


def folds(count: int) -> list[np.ndarray]:
    """Return which of `count` photos belong to each of the five folds of cross-validation, bool (count,) each."""
    numbers = np.random.default_rng(0).permutation(count) % _NUM_FOLDS
    return [numbers == fold for fold in range(_NUM_FOLDS)]


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Compute the expected calibration error: the mean gap between confidence and accuracy over ten bins, 0 to 1."""
    bins = np.minimum((confidences * _NUM_BINS).astype(int), _NUM_BINS - 1)
    gaps = [abs(confidences[bins == each].sum() - correct[bins == each].sum()) for each in range(_NUM_BINS)]
    return float(sum(gaps) / len(correct))


def verified_features(
    features: np.ndarray, inliers: np.ndarray, positions_m: np.ndarray, radius_m: float
) -> np.ndarray:
    """Append a confidence feature from inliers to the two of each query, (Q, 3).

    It is the log of the inliers of the first match, plus one, over those of the best match from a different place, or
    of chance if these are more, plus one: streets alike have many inliers with each other, too.

    Args:
        features: see `confidence_features`, (Q, 2).
        inliers: of the matches, most first, 0 where one was not matched, (Q, K).
        positions_m: east and north of the matches, (Q, K, 2).
        radius_m: matches farther than this from the first match are from a different place.
    """
    is_other = ~(np.linalg.norm(positions_m - positions_m[:, :1], axis=2) <= radius_m)
    other = np.where(is_other, inliers, 0).max(axis=1)
    ratios = (1 + inliers[:, 0]) / (1 + np.maximum(other, NOISE_INLIERS))
    return np.concatenate([features, np.log(ratios)[:, None]], axis=1)


def confidences_beyond_chance(verified: np.ndarray, unverified: np.ndarray, first_inliers: np.ndarray) -> np.ndarray:
    """Lower confidences of verified photos to those without verification where inliers may be chance, (Q,).

    Args:
        verified: confidences by inliers, (Q,).
        unverified: confidences of the first matches before verification, (Q,).
        first_inliers: of the first match of each photo, (Q,).
    """
    return np.where(first_inliers <= NOISE_INLIERS, np.minimum(verified, unverified), verified)


def _fit_of(features: np.ndarray) -> Callable[[np.ndarray, np.ndarray, float, float], AnyCalibration]:
    return _fitted if features.ndim == 2 else _fitted_temperature


def _fitted(features: np.ndarray, correct: np.ndarray, radius_m: float, error: float) -> AnyCalibration:
    from scipy.optimize import minimize  # only calibration needs it

    means, stds = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-12)
    inputs = _with_bias((features - means) / stds)
    targets = _targets(correct)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = inputs @ weights
        value = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).sum()
        return value, inputs.T @ (expit(logits) - targets)

    weights = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="BFGS").x
    kind = Calibration if features.shape[1] == 2 else VerifiedCalibration
    return kind(
        radius_m=radius_m,
        means=tuple(means.tolist()),
        stds=tuple(stds.tolist()),
        weights=tuple(weights.tolist()),
        num_photos=len(correct),
        num_correct=int(correct.sum()),
        error=error,
    )


def _fitted_temperature(features: np.ndarray, correct: np.ndarray, radius_m: float, error: float) -> ClassCalibration:
    from scipy.optimize import minimize_scalar  # only calibration needs it

    targets = _targets(correct)

    def loss(log_temperature: float) -> float:
        near, far = _log_masses(features, np.exp(log_temperature))
        return -(targets * near + (1 - targets) * far).sum()

    bounds = (-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE)
    temperature = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    return ClassCalibration(radius_m, temperature, len(correct), int(correct.sum()), error)


def _log_masses(features: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the log of the softmax's mass near the best class, and of all other mass, (Q,) each."""
    scores, is_near = features[:, 0] / temperature, features[:, 1] > 0
    parts = (np.where(chosen, scores, -np.inf) for chosen in (is_near, ~is_near))
    near, far = (np.maximum(logsumexp(part, axis=1) - logsumexp(scores, axis=1), _MIN_LOG) for part in parts)
    return near, far


def _targets(correct: np.ndarray) -> np.ndarray:
    """Compute Platt's targets (Q,); 1 and 0 would make confidence diverge to certainty on separable photos."""
    num_correct, num_wrong = int(correct.sum()), int((~correct).sum())
    return np.where(correct, (num_correct + 1) / (num_correct + 2), 1 / (num_wrong + 2))


def _with_bias(features: np.ndarray) -> np.ndarray:
    """Append a column of ones to (Q, F)."""
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
