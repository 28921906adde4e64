"""What is said of the predictions for many queries: recalls of some of them, how sure those are, precision, meters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from progeo.evaluation.recall import right_predictions

_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Recall:
    """Recall@N of some queries by one rule."""

    rule: str
    """When a database image is right for a query: `within 25 m`, or `as given`."""
    queries: str
    """Which are counted: `all`, those of a condition, those at some distance from the database."""
    count: int
    """How many they are."""
    n: int
    percent: float
    low: float
    """In percent; 95 % of samples drawn from these queries, with replacement, have a recall from `low` to `high`."""
    high: float


@dataclass(frozen=True)
class Errors:
    """How far the first prediction is from where the query was taken, over all queries."""

    median_m: float
    ninetieth_m: float
    """Nine of ten queries are at most so far off."""


def recall_table(
    predictions: np.ndarray,
    positives: Mapping[str, Sequence[np.ndarray]],
    groups: Mapping[str, np.ndarray],
    ns: Sequence[int],
    *,
    without_positive_missed: bool = True,
    seed: int = 0,
) -> list[Recall]:
    """Recalls by every rule, of every group of queries, at every N.

    Args:
        predictions: database rows of each query, best first, int64 (Q, K); -1 where there is none.
        positives: by the name of a rule, the right database rows of each query.
        groups: by name, rows of queries; a group without any query gives no recall.
        ns: the Ns of recall@N.
        without_positive_missed: queries without any right database image count as missed; else they do not count.
        seed: of the samples that the intervals come from.
    """
    table = []
    for rule, right_rows in positives.items():
        right = right_predictions(predictions, right_rows)
        has_positive = np.array([len(rows) > 0 for rows in right_rows], bool)
        for name, queries in groups.items():
            counted = queries if without_positive_missed else queries[has_positive[queries]]
            if not len(counted):
                continue
            for n in ns:
                hits = np.any(right[counted, :n], axis=1)
                low, high = bootstrap_interval(hits, seed=seed)
                table.append(
                    Recall(rule, name, len(counted), n, 100 * int(hits.sum()) / len(hits), 100 * low, 100 * high)
                )
    return table


def bootstrap_interval(hits: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """Between which shares the middle 95 % of samples lie, each of as many queries drawn with replacement.

    Args:
        hits: whether each query was found, bool (Q,), at least one.
        seed: of the samples.
    """
    # How many hits a sample has is binomial: no sample need be drawn query by query.
    shares = np.random.default_rng(seed).binomial(len(hits), hits.mean(), _RESAMPLES) / len(hits)
    low, high = np.quantile(shares, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]).tolist()
    return low, high


def average_precisions(predictions: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """Average precision of each query's K predictions, float64 (Q,) from 0 to 1; NaN without a positive.

    The mean, over its positives, of the share of right ones among the predictions down to each. Of more positives than
    K only K can be found, and only so many are asked for.

    Args:
        predictions: database rows of each query, best first, (Q, K).
        positives: right database rows of each query, Q arrays.
    """
    right = right_predictions(predictions, positives)
    precisions = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    asked_for = np.array([min(len(rows), right.shape[1]) for rows in positives], float)
    with np.errstate(invalid="ignore"):
        return (precisions * right).sum(axis=1) / asked_for


def errors_of(distances_m: np.ndarray) -> Errors | None:
    """Errors of the first predictions, from meters between each query and its predictions (Q, K); None if unknown."""
    known = distances_m[np.isfinite(distances_m[:, 0]), 0]
    if not len(known):
        return None
    median_m, ninetieth_m = np.quantile(known, [0.5, 0.9]).tolist()
    return Errors(median_m, ninetieth_m)


def first_of_each_panorama(predictions: np.ndarray, panoramas: np.ndarray, count: int) -> np.ndarray:
    """Of each query's predictions the first of each panorama, at most `count`: int64 (Q, count), -1 where none is left.

    So it is done for Tokyo 24/7, whose database has twelve parts of each panorama (Torii et al., CVPR 2015).

    Args:
        predictions: database rows of each query, best first, (Q, K); -1 where there is none.
        panoramas: a name of the panorama that each database image is a part of, (N,).
        count: predictions to keep.
    """
    kept = np.full((len(predictions), count), -1, np.int64)
    for query, found in enumerate(predictions):
        rows = found[found >= 0]
        _, first = np.unique(panoramas[rows], return_index=True)
        rows_kept = rows[np.sort(first)[:count]]
        kept[query, : len(rows_kept)] = rows_kept
    return kept
