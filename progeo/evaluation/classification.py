"""Localization by classification: the classes whose vectors score highest, and localization recall LR@N."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

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
    descriptors, vectors = (np.asarray(each, np.float32) for each in (descriptors, vectors))
    if normalize:
        descriptors, vectors, bias = _unit(descriptors), _unit(vectors), None
    count = min(count, len(vectors))
    rows, scores = np.empty((len(descriptors), count), np.int64), np.empty((len(descriptors), count), np.float32)
    step = max(1, _SCORES_AT_ONCE // max(1, len(vectors)))
    for start in range(0, len(descriptors), step):
        part = slice(start, start + step)
        found = descriptors[part] @ vectors.T
        if bias is not None:
            found += np.asarray(bias, np.float32)
        rows[part] = np.argsort(-found, axis=1, kind="stable")[:, :count]
        scores[part] = np.take_along_axis(found, rows[part], axis=1)
    return RankedClasses(rows, scores)


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


def lie_in_classes(images: Catalogue, classifier: Classifier) -> np.ndarray:
    """Return which images lie in the cell of a class, whatever their heading, bool (N,); False without a position."""
    centers_m, images_m = positions_m(classifier.catalogue, images)
    known = np.isfinite(images_m).all(axis=1)
    found = np.zeros(len(images), bool)
    found[known] = cKDTree(centers_m).query(images_m[known], p=np.inf)[0] <= classifier.cell_side_m / 2
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalize vectors (n, D)."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
