"""Metrics of predictions: recall with confidence intervals, average precision and localization error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from progeo.evaluation.recall import correct_predictions

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Recall:
    """Recall@N of a group of queries by one criterion."""

    criterion: str
    """Criterion for a correct database image: `within 25 m`, or `as given`."""
    queries: str
    """Group of queries: `all`, or one of `Retrieved.groupings`, such as those of a condition."""
    count: int
    """Number of queries in the group."""
    n: int
    percent: float
    low: float
    """Bounds in percent of the 95 % interval of the recall, see `wilson_interval`."""
    high: float


@dataclass(frozen=True)
class Errors:
    """Distance between the first prediction and the query's position, over all queries."""

    median_m: float
    ninetieth_m: float
    """90th percentile of the distance, in meters."""


def recall_table(
    predictions: np.ndarray,
    positives: Mapping[str, Sequence[np.ndarray]],
    groups: Mapping[str, np.ndarray],
    ns: Sequence[int],
    *,
    without_positive_missed: bool = True,
) -> list[Recall]:
    """Compute recalls by every criterion, for every group of queries, at every N.

    Args:
        predictions: database rows of each query, best first, int64 (Q, K); -1 where there is none.
        positives: by the name of a criterion, the correct database rows of each query.
        groups: by name, rows of queries; an empty group gets no recall.
        ns: the Ns of recall@N.
        without_positive_missed: count queries without any positive as missed; otherwise exclude them.
    """
    table = []
    for criterion, positive_rows in positives.items():
        correct = correct_predictions(predictions, positive_rows)
        has_positive = np.array([len(rows) > 0 for rows in positive_rows], bool)
        for name, queries in groups.items():
            counted = queries if without_positive_missed else queries[has_positive[queries]]
            if not len(counted):
                continue
            for n in ns:
                hits = np.any(correct[counted, :n], axis=1)
                found = int(hits.sum())
                low, high = wilson_interval(found, len(hits))
                table.append(Recall(criterion, name, len(hits), n, 100 * found / len(hits), low, high))
    return table


def chance_recalls(num_positives: np.ndarray, num_images: np.ndarray | int, ns: Sequence[int]) -> dict[int, float]:
    """Compute the expected recall@N of random retrieval, by N, in percent.

    Of N images drawn without replacement, none is a positive with probability C(num_images - p, N) / C(num_images, N).

    Args:
        num_positives: number p of positives of each query that counts, (Q,), at least one query.
        num_images: number of database images, classes, or panoramas if each counts once, of all queries or of each,
            (Q,).
        ns: the Ns of recall@N; all are drawn if N is larger than `num_images`.
    """
    pairs, counts = np.unique(np.stack(np.broadcast_arrays(num_positives, num_images)), axis=1, return_counts=True)
    positives, images = pairs
    missed, by_n = np.ones(len(positives)), [0.0]  # logarithms of binomials would lose the digits of a small recall
    for drawn in range(min(max(ns), images.max())):
        missed *= 1 - positives / np.maximum(images - drawn, 1)
        by_n.append(100 * float(np.average(1 - missed, weights=counts)))
    return {n: by_n[min(n, len(by_n) - 1)] for n in ns}


def wilson_interval(found: int, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share by Wilson's score (J. Am. Stat. Assoc. 1927), in percent.

    Near 0 and 100 %, where an interval of bootstrap samples is too narrow, or a point if none or all are found, it
    still holds the true share in about 95 % of the cases.
    """
    z = ndtri((1 + CONFIDENCE) / 2)
    share, scale = found / count, 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / scale
    half = z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / scale
    # Where none or all are found, rounding must not move the bound of 0 or 100 %.
    return float(100 * max(0, min(share, middle - half))), float(100 * min(1, max(share, middle + half)))


def average_precisions(predictions: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the average precision of each query's K predictions, float64 (Q,) from 0 to 1; NaN without a positive.

    For each positive that was found, take the precision of the predictions down to its rank; average over min(number of
    positives, K), since at most K can be found.

    Args:
        predictions: database rows of each query, best first, (Q, K).
        positives: correct database rows of each query, Q arrays.
    """
    correct = correct_predictions(predictions, positives)
    precisions = correct.cumsum(axis=1) / np.arange(1, correct.shape[1] + 1)
    num_possible = np.array([min(len(rows), correct.shape[1]) for rows in positives], float)
    with np.errstate(invalid="ignore"):
        return (precisions * correct).sum(axis=1) / num_possible


def errors_of(distances_m: np.ndarray) -> Errors | None:
    """Summarize the errors of first predictions, given meters from each query to its predictions (Q, K).

    Queries with an unknown distance are excluded; returns None if no distance is known.
    """
    known = distances_m[np.isfinite(distances_m[:, 0]), 0]
    if not len(known):
        return None
    median_m, ninetieth_m = np.quantile(known, [0.5, 0.9]).tolist()
    return Errors(median_m, ninetieth_m)


def first_of_each_panorama(predictions: np.ndarray, panoramas: np.ndarray, count: int) -> np.ndarray:
    """Keep only the best prediction of each panorama, at most `count`: int64 (Q, count), padded with -1.

    This is the protocol of Tokyo 24/7, whose database has twelve views of each panorama (Torii et al., CVPR 2015).

    Args:
        predictions: database rows of each query, best first, (Q, K); -1 where there is none.
        panoramas: name of the panorama that each database image is a view of, (N,).
        count: number of predictions to keep.
    """
    kept = np.full((len(predictions), count), -1, np.int64)
    for query, found in enumerate(predictions):
        rows = found[found >= 0]
        _, first = np.unique(panoramas[rows], return_index=True)
        rows_kept = rows[np.sort(first)[:count]]
        kept[query, : len(rows_kept)] = rows_kept
    return kept
