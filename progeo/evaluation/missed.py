"""The best correct candidate of queries whose top prediction is wrong: the nearest correct image, and its rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from progeo.evaluation.classification import ClassScores, class_costs, class_probabilities
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import distances_of, squared_distances
from progeo.features.store import ShardedRows
from progeo.progress import followed

Costs = Callable[[], Iterable[np.ndarray]]
"""Yields costs (M, n) of M queries for consecutive blocks of candidates, such as squared distances, on every call the
same; a candidate of lower cost is ranked first."""
_IMAGES_AT_ONCE = 2**14


@dataclass(frozen=True)
class Missed:
    """The best correct database image or class of M queries whose top prediction is wrong."""

    queries: np.ndarray
    """Rows of the queries, int64 (M,)."""
    rows: np.ndarray
    """Rows of the database, int64 (M,)."""
    ranks: np.ndarray
    """Ranks from 1 by descriptor distance or score, in the whole database or, if each counts once, among panoramas."""
    values: np.ndarray
    """Descriptor distances, or the probabilities of classes, float32 (M,)."""


def missed_images(
    found: Retrieved, queries: np.ndarray, database: ShardedRows, descriptors: np.ndarray, *, by_descriptors: bool
) -> Missed:
    """Find the nearest correct image of those of some queries that have a positive, but a wrong top prediction.

    Args:
        queries: rows of queries.
        database: descriptors (N, D); images whose descriptor is missing are no candidates.
        descriptors: those of all queries, (Q, D), or (Q, C D) for C crops: the nearest crop counts.
        by_descriptors: whether predictions are ranked by descriptor distance.
    """
    given, missing = found.positives[found.criterion], database.missing
    readable = {query: np.setdiff1d(given[query], missing) for query in queries.tolist()}
    queries = _failed(found, queries, readable)
    positives = [readable[query] - np.searchsorted(missing, readable[query]) for query in queries.tolist()]
    panoramas = None if found.panoramas is None else np.delete(found.panoramas, missing)
    best = best_correct(image_costs(database, descriptors[queries]), positives, panoramas=panoramas)
    rows, ranks = database.all_rows(best.rows), best.ranks
    if by_descriptors:
        rows, ranks = _as_predicted(found, queries, rows, ranks)
    distances = distances_of(rows[:, None], descriptors[queries], database.complete)[:, 0]
    return Missed(queries, rows, ranks, distances)


def missed_classes(
    found: Retrieved, queries: np.ndarray, classes: ClassScores, descriptors: np.ndarray, *, by_descriptors: bool
) -> Missed:
    """Find the best class with a correct center, as `missed_images` does images.

    Args:
        classes: how classes were ranked.
        descriptors: those of all queries, (Q, D), or (Q, C D) for C crops: the best crop counts.
    """
    classifier, given = classes.classifier, found.positives[found.criterion]
    positives = {query: given[query] for query in queries.tolist()}
    queries = _failed(found, queries, positives)
    width = classifier.weight.shape[1]
    crops = descriptors[queries].reshape(len(queries), descriptors.shape[1] // width, width)
    costs = class_costs(crops, classifier.weight, bias=classifier.bias, normalize=not classes.raw_scores)
    best = best_correct(costs, [positives[query] for query in queries.tolist()])
    rows, ranks = best.rows, best.ranks
    if by_descriptors:
        rows, ranks = _as_predicted(found, queries, rows, ranks)
    values = class_probabilities(crops, classifier.weight, rows[:, None], scale=classes.scale)[:, 0]
    return Missed(queries, rows, ranks, values)


def _failed(found: Retrieved, queries: np.ndarray, positives: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return those of the queries that have a positive, but a wrong top prediction."""
    return np.array([row for row in queries.tolist() if len(positives[row]) and not found.correct[row, 0]], np.int64)


def _as_predicted(
    found: Retrieved, queries: np.ndarray, rows: np.ndarray, ranks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and ranks in accord with predictions, in which rounding can order equal distances otherwise."""
    correct = found.correct[queries]
    first, count = correct.argmax(axis=1), (found.predictions[queries] >= 0).sum(axis=1)
    predicted = found.predictions[queries, first]
    is_predicted = correct.any(axis=1)
    return np.where(is_predicted, predicted, rows), np.where(is_predicted, first + 1, np.maximum(ranks, count + 1))


@dataclass(frozen=True)
class BestCorrect:
    """The positive of lowest cost of each of M queries."""

    rows: np.ndarray
    """Its row among the candidates, int64 (M,); -1 for a query without positives."""
    costs: np.ndarray
    """Its cost, float32 (M,); infinite without positives."""
    ranks: np.ndarray
    """Its rank from 1 among all candidates, or of its panorama among panoramas, int64 (M,)."""


def best_correct(costs: Costs, positives: Sequence[np.ndarray], *, panoramas: np.ndarray | None = None) -> BestCorrect:
    """Find the positive of lowest cost of each query, and count the candidates that rank before it.

    Ties are ordered by row, as in a search. Only one block of costs is in memory.

    Args:
        costs: costs of all N candidates, called twice.
        positives: correct candidates of each query, M sorted arrays.
        panoramas: panorama of each candidate, (N,), if each counts once, by its best candidate; None counts all.
    """
    rows, least = _least(costs(), positives)
    codes = None if panoramas is None else np.unique(panoramas, return_inverse=True)[1]
    before = np.zeros(len(rows), np.int64)
    seen = np.zeros((len(rows), 0 if codes is None else int(codes.max()) + 1), bool)
    for start, part in _blocks(costs()):
        here = np.arange(start, start + part.shape[1])
        is_before = (part < least[:, None]) | ((part == least[:, None]) & (here < rows[:, None]))
        if codes is None:
            before += is_before.sum(axis=1)
        else:
            queries, columns = np.nonzero(is_before)
            seen[queries, codes[start + columns]] = True
    if codes is not None:
        seen[np.arange(len(rows)), codes[rows]] = False  # another view of the panorama of the positive
        before = seen.sum(axis=1)
    return BestCorrect(rows, least, before + 1)


def image_costs(database: ShardedRows, queries: np.ndarray) -> Costs:
    """Return the squared descriptor distances of queries to all images of a database.

    Args:
        queries: descriptors (M, D), or (M, C D) for C crops that are searched separately: the nearest crop counts.
        database: descriptors (N, D).
    """
    num_queries, num_crops = len(queries), queries.shape[1] // database.width
    crops = np.ascontiguousarray(queries.reshape(num_queries * num_crops, database.width), np.float32)

    def costs() -> Iterator[np.ndarray]:
        for part in followed(database.parts(), "ranking correct images", total=len(database), size=len):
            for start in range(0, len(part), _IMAGES_AT_ONCE):
                images = np.ascontiguousarray(part[start : start + _IMAGES_AT_ONCE], np.float32)
                squared = squared_distances(crops, images)
                yield squared.reshape(num_queries, num_crops, len(images)).min(axis=1)

    return costs


def _least(parts: Iterable[np.ndarray], positives: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the positive of lowest cost of each query, int64 (M,), and its cost, float32 (M,)."""
    rows, least = np.full(len(positives), -1), np.full(len(positives), np.inf, np.float32)
    for start, part in _blocks(parts):
        for query, correct in enumerate(positives):
            here = correct[slice(*np.searchsorted(correct, (start, start + part.shape[1])))]
            if not len(here):
                continue
            best = here[part[query, here - start].argmin()]
            if part[query, best - start] < least[query]:
                rows[query], least[query] = best, part[query, best - start]
    return rows, least


def _blocks(parts: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each block of costs (M, n) with the row of its first candidate."""
    start = 0
    for part in parts:
        yield start, part
        start += part.shape[1]
