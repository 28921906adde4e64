"""Which photos to verify: those whose confidence is below a threshold, if that gives more correct matches."""

from dataclasses import dataclass

import numpy as np

from progeo.localization.confidence import folds

_MAX_CHANCE = 0.25
"""Probability of a gain by chance above which nothing is verified. As matching that neither helps nor harms only costs
time, little evidence is enough."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Which photos are verified."""

    below: float
    """Photos with a confidence below this are verified, see `is_uncertain`: 0 for none, 1 for all."""
    is_verified: np.ndarray
    """Whether each of Q photos is, by a threshold that was chosen on other photos, bool (Q,)."""


def choose_photos(confidences: np.ndarray, correct: np.ndarray, verified_correct: np.ndarray) -> Choice:
    """Choose between no photos, those below a threshold, and all: whichever gives most correct first matches.

    Those below a threshold are counted by 5-fold cross-validation. Of equal choices, that which verifies less is taken.
    None is taken where the gain may well be chance: of the photos whose first match becomes correct or wrong, so few
    become correct that a coin would give as many in more than 25 % of cases (one-sided sign test).

    Args:
        confidences: of the photos without verification, by models that were fitted to other photos, (Q,).
        correct: whether first matches are correct without verification, bool (Q,).
        verified_correct: whether they are with it, bool (Q,).
    """
    from scipy.stats import binomtest  # takes most of a second, and localizing needs none of it

    is_below = np.empty(len(correct), bool)
    for is_held_out in folds(len(correct)):
        threshold = best_threshold(*(each[~is_held_out] for each in (confidences, correct, verified_correct)))
        is_below[is_held_out] = is_uncertain(confidences[is_held_out], threshold)
    choices = (
        Choice(0.0, np.zeros_like(is_below)),
        Choice(best_threshold(confidences, correct, verified_correct), is_below),
        Choice(1.0, np.ones_like(is_below)),
    )
    gains = [np.where(choice.is_verified, verified_correct, correct).astype(int) - correct for choice in choices]
    best = int(np.argmax([gain.sum() for gain in gains]))
    num_better, num_changed = int((gains[best] > 0).sum()), int(np.abs(gains[best]).sum())
    if not num_changed or binomtest(num_better, num_changed, alternative="greater").pvalue > _MAX_CHANCE:
        return choices[0]
    return choices[best]


def is_uncertain(confidences: np.ndarray, below: float) -> np.ndarray:
    """Return which photos are verified by a threshold of their confidence, bool (Q,).

    Args:
        confidences: NaN where there is none, (Q,).
        below: 0 for none, 1 for all that have a confidence, infinity for all.
    """
    if below == np.inf:
        return np.ones(len(confidences), bool)
    return confidences < (np.inf if below == 1 else below)


def best_threshold(confidences: np.ndarray, correct: np.ndarray, verified_correct: np.ndarray) -> float:
    """Find the confidence below which verifying photos gives the most correct first matches; 0 if none does.

    Of thresholds that give as many, the middle one is returned.

    Args:
        confidences: of the photos without verification, by models that were fitted to other photos, (Q,).
        correct: whether first matches are correct without verification, bool (Q,).
        verified_correct: whether they are with it, bool (Q,).
    """
    order = np.argsort(confidences, kind="stable")
    gains = verified_correct[order].astype(int) - correct[order]
    totals = np.concatenate([[0], np.cumsum(gains)])  # of verifying the 0, 1, ... Q least certain photos
    edges = np.concatenate([[-np.inf], confidences[order], [np.inf]])
    totals = np.where(edges[:-1] < edges[1:], totals, totals.min() - 1)  # equal confidences are not divided
    if totals.max() <= 0:
        return 0.0
    best = np.flatnonzero(totals == totals.max())
    count = int(best[len(best) // 2])
    if count == len(order):
        return 1.0
    return float(confidences[order[count - 1 : count + 1]].mean())
