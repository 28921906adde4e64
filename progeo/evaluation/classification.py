"""Localization by classification: the classes whose vectors score highest, and localization recall LR@N."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from progeo.models.classifier import Classifier
from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m

_SCORES_AT_ONCE = 2**25
"""Maximum number of scores in memory, of all classes for some queries."""


class RankedClasses(NamedTuple):
    """The classes with the highest scores for Q queries, best first."""

    rows: np.ndarray
    """Rows of classes, int64 (Q, K)."""
    scores: np.ndarray
    """Their scores, float32 (Q, K)."""


def rank_classes(
    descriptors: np.ndarray,
    vectors: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    normalize: bool = False,
    count: int,
) -> RankedClasses:
    """Rank classes by the dot products of their vectors with descriptors; ties are ordered by row.

    Args:
        descriptors: (Q, D).
        vectors: a row for each class, such as the weight of a classifier or class means, (C, D).
        bias: added to the dot products, (C,); None adds nothing.
        normalize: take cosines, which the lengths of vectors and descriptors do not change; the bias is then unused.
        count: number of classes to return, K; all C if there are fewer.
    """
    descriptors, vectors, bias = _comparable(descriptors, vectors, bias, normalize=normalize)
    count = min(count, len(vectors))
    rows, scores = np.empty((len(descriptors), count), np.int64), np.empty((len(descriptors), count), np.float32)
    for part in _parts(len(descriptors), len(vectors)):
        found = descriptors[part] @ vectors.T + bias
        rows[part] = _best(found, count)
        scores[part] = np.take_along_axis(found, rows[part], axis=1)
    return RankedClasses(rows, scores)


def class_costs(
    descriptors: np.ndarray, vectors: np.ndarray, *, bias: np.ndarray | None = None, normalize: bool = False
) -> Callable[[], Iterator[np.ndarray]]:
    """Return the negative scores of all classes for `best_correct`, in blocks of classes.

    Args:
        descriptors: those of n crops of M queries, (M, n, D); the best crop counts.
        vectors, bias, normalize: as of `rank_classes`.
    """
    num_queries, num_crops, width = descriptors.shape
    crops = descriptors.reshape(num_queries * num_crops, width)
    crops, vectors, bias = _comparable(crops, vectors, bias, normalize=normalize)

    def costs() -> Iterator[np.ndarray]:
        for part in _parts(len(vectors), len(crops)):
            scores = crops @ vectors[part].T + bias[part]
            yield -scores.reshape(num_queries, num_crops, scores.shape[1]).max(axis=1)

    return costs


def localization_recall(
    rows: np.ndarray, centers_m: np.ndarray, query_m: np.ndarray, *, ns: Sequence[int], radius_m: float = 25.0
) -> np.ndarray:
    """Compute localization recall LR@N: percent of queries with a center of their first N classes within a radius.

    Args:
        rows: predicted classes of each query, best first, int64 (Q, K); -1 where there is none.
        centers_m: east and north of the class centers in meters, (C, 2).
        query_m: east and north of the queries in meters, (Q, 2).
        ns: the Ns; an N above K counts all K predictions.
        radius_m: meters, inclusive.

    Returns:
        float64 (len(ns),), from 0 to 100.
    """
    rows = np.asarray(rows)
    offsets_m = np.asarray(centers_m, np.float64)[rows] - np.asarray(query_m, np.float64)[:, None]
    correct = (np.linalg.norm(offsets_m, axis=2) <= radius_m) & (rows >= 0)
    return np.array([100 * int(correct[:, :n].any(axis=1).sum()) / len(rows) for n in ns])


def class_means(parts: Iterable[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute the mean of the L2-normalized descriptors of each class, L2-normalized, float32 (C, D).

    Args:
        parts: consecutive parts of N descriptors, (n, D) each.
        labels: class of each descriptor, int64 (N,); -1 if it is in no class.
        num_classes: C; a class without descriptors gets zeros.
    """
    sums, start = np.zeros((num_classes, 0)), 0
    for part in parts:
        here, start = labels[start : start + len(part)], start + len(part)
        if not sums.size:
            sums = np.zeros((num_classes, part.shape[1]))
        order = np.argsort(here, kind="stable")
        order = order[here[order] >= 0]
        present, first = np.unique(here[order], return_index=True)
        if len(present):
            sums[present] += np.add.reduceat(_unit(part[order].astype(np.float64)), first, axis=0)
    return _unit(sums).astype(np.float32)


@dataclass(frozen=True)
class ClassScores:
    """The best M classes of Q queries, and how probable they are."""

    classifier: Classifier
    rows: np.ndarray
    """Classes, best first, int64 (Q, M); -1 where there is none."""
    probabilities: np.ndarray
    """Their probabilities, float32 (Q, M); 0 where there is none."""
    meaning: str
    """What the probabilities are, in words."""
    scale: float = 1.0
    """Factor of the cosines in the softmax."""
    raw_scores: bool = False
    """Whether classes are ranked by dot products instead of cosines."""


def class_probabilities(descriptors: np.ndarray, vectors: np.ndarray, rows: np.ndarray, *, scale: float) -> np.ndarray:
    """Compute the softmax over all classes of scale x cosine, at some classes of each query.

    Args:
        descriptors: (Q, D), or (Q, n, D) for several crops, whose probabilities are averaged.
        vectors: vectors of the classes, (C, D).
        rows: classes of each query, int64 (Q, M); -1 gets 0.

    Returns:
        float32 (Q, M).
    """
    if not len(rows):
        return np.zeros(rows.shape, np.float32)
    descriptors = np.asarray(descriptors, np.float32).reshape(len(rows), -1, vectors.shape[1])
    descriptors, vectors = _unit(descriptors), _unit(np.asarray(vectors, np.float32))
    found = np.zeros(rows.shape, np.float32)
    num_crops = descriptors.shape[1]
    for part in _parts(len(rows), len(vectors) * num_crops):
        scores = descriptors[part] @ vectors.T
        scores = np.exp((scores - scores.max(axis=2, keepdims=True)) * np.float32(scale))
        scores /= scores.sum(axis=2, keepdims=True)
        found[part] = np.take_along_axis(scores.mean(axis=1), np.maximum(rows[part], 0), axis=1)
    return np.where(rows < 0, np.float32(0), found)


def lie_in_classes(images: Catalogue, classifier: Classifier) -> np.ndarray:
    """Return which images lie in the cell of a class, whatever their heading, bool (N,); False without a position."""
    from scipy.spatial import cKDTree  # commands that search no positions start without it

    centers_m, images_m = positions_m(classifier.catalogue, images)
    known = np.isfinite(images_m).all(axis=1)
    found = np.zeros(len(images), bool)
    found[known] = cKDTree(centers_m).query(images_m[known], p=np.inf)[0] <= classifier.cell_side_m / 2
    return found


def _comparable(
    descriptors: np.ndarray, vectors: np.ndarray, bias: np.ndarray | None, *, normalize: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return descriptors, vectors and bias (C,) whose dot products and sums are the scores of classes, float32."""
    descriptors, vectors = (np.asarray(each, np.float32) for each in (descriptors, vectors))
    if normalize:
        descriptors, vectors = _unit(descriptors), _unit(vectors)
    no_bias = bias is None or normalize
    return descriptors, vectors, np.zeros(len(vectors), np.float32) if no_bias else np.asarray(bias, np.float32)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the highest of C scores (Q, C), best first, ties ordered by row: int64 (Q, count)."""
    lowest = np.partition(scores, -count, axis=1)[:, -count]
    best = np.empty((len(scores), count), np.int64)
    for query, (values, least) in enumerate(zip(scores, lowest, strict=True)):
        candidates = np.flatnonzero(values >= least)
        best[query] = candidates[np.argsort(-values[candidates], kind="stable")[:count]]
    return best


def _parts(count: int, num_scores: int) -> Iterator[slice]:
    """Yield slices of queries or classes with so many scores each that all scores of a slice fit in memory."""
    step = max(1, _SCORES_AT_ONCE // max(1, num_scores))
    for start in range(0, count, step):
        yield slice(start, start + step)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalize vectors along the last axis."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
