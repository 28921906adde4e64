"""Recall@N: the fraction of queries with a correct image among their first N predictions."""

from collections.abc import Sequence

import numpy as np


def recall_at(
    predictions: np.ndarray, positives: Sequence[np.ndarray], ns: Sequence[int] = (1, 5, 10, 20)
) -> np.ndarray:
    """Compute recall@N in percent.

    A query without any positive counts as missed, as in common benchmarks.

    Args:
        predictions: database rows of each query, best first, (Q, K).
        positives: correct database rows of each query, Q arrays.
        ns: the Ns; an N above K counts all K predictions.

    Returns:
        float64 (len(ns),), from 0 to 100.
    """
    if not len(predictions) and not len(positives):
        raise ValueError("Recall needs at least one query.")
    if min(ns) < 1:
        raise ValueError(f"`recall_ns` must be at least 1, got {min(ns)}.")
    correct = correct_predictions(np.asarray(predictions), positives)
    return np.array([100 * int(correct[:, :n].any(axis=1).sum()) / len(correct) for n in ns])


def correct_predictions(predictions: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """Return whether each prediction is a positive of its query, bool (Q, K)."""
    if len(predictions) != len(positives):
        raise ValueError(f"There are predictions for {len(predictions)} queries, but positives for {len(positives)}.")
    rows = np.concatenate([np.empty(0, np.int64), *positives]).astype(np.int64)
    span = 2 + max(int(predictions.max(initial=-1)), int(rows.max(initial=-1)))  # from -1, for no prediction
    keys = np.sort(np.repeat(np.arange(len(positives)), [len(each) for each in positives]) * span + rows)
    wanted = np.arange(len(predictions))[:, None] * span + predictions
    return np.append(keys, -2)[np.searchsorted(keys, wanted)] == wanted
