"""Predict database images for the queries of a benchmark, exactly or through an index, or predict classes."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from progeo.engine.log import LOGGER
from progeo.evaluation.benchmark import Benchmark
from progeo.evaluation.cell_index import Cells, build_cell_index, cell_neighbors
from progeo.evaluation.classification import ClassScores, class_probabilities, rank_classes
from progeo.evaluation.crops import nearest_of_crops, votes_of_crops
from progeo.evaluation.image_matching import Matching
from progeo.evaluation.kinds import check_refine, default_refine
from progeo.evaluation.metrics import first_of_each_panorama
from progeo.evaluation.options import RankingOptions
from progeo.evaluation.priors import Regions
from progeo.evaluation.recall import recall_at
from progeo.evaluation.rerank import build_reranker
from progeo.evaluation.search import (
    Neighbors,
    index_neighbors,
    index_path,
    nearest_neighbors,
    open_built,
    open_or_build_index,
    refined,
)
from progeo.features.store import ShardedRows
from progeo.models.classifier import Classifier
from progeo.progress import followed, phase
from progeo.verification.matchers import Pair

_VIEWS_PER_PANORAMA = 12
_NUM_PROBABLE = 20
"""Number of classes whose probability the report shows at least."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for Q queries."""

    rows: np.ndarray
    """Rows of images or classes for each query, best first, int64 (Q, K); -1 where there is none."""
    exact_ms: float
    """Duration of an exact search, and of re-ranking if it is wanted, in milliseconds per query."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Facts for the report about the search: the recall that an index loses, its size and speed."""
    classes: ClassScores | None = None
    """Probabilities of classes; None for images."""
    by_descriptors: bool = True
    """Whether the rows are the first by descriptor distance or score: no index, re-ranking or vote had a part."""
    pairs: Mapping[tuple[int, int], Pair] = field(default_factory=dict)
    """Predictions that were matched with their query, by query and rank, the first ranks only."""


@dataclass(frozen=True)
class SearchedIndex:
    """An index that is searched in addition to the exact search."""

    name: str
    search: Callable[[np.ndarray, int], tuple[Neighbors, np.ndarray | None]]
    """Takes descriptors float32 (Q, D) and a number of neighbors; returns them, and the rows read for each, (Q,)."""
    num_bytes: int
    """Size of its file."""
    facts: Mapping[str, str] = field(default_factory=dict)


def open_faiss_index(
    database: ShardedRows, kind: str, *, probes: int, refine: int | None, folder: Path | None
) -> SearchedIndex:
    """Open a compressed index, see `open_or_build_index`.

    Args:
        database: descriptors (N, D).
        refine: number of best rows of each search that are compared exactly; 0 takes the distances of the index, None
            compares by default, see `default_refine`.

    Raises:
        ValueError: the index cannot be built, or has no Euclidean distances and is not refined.
    """
    index = open_or_build_index(database, kind, probes=probes, folder=folder)
    size = index_path(database, kind, folder).stat().st_size
    num_refined = default_refine(index) if refine is None else refine
    check_refine(index, num_refined)

    def search(queries: np.ndarray, count: int) -> tuple[Neighbors, None]:
        found = index_neighbors(index, queries, max(count, num_refined))
        if num_refined:
            found = refined(found, queries, take=database.take)
        return Neighbors(found.rows[:, :count], found.distances[:, :count]), None

    facts = {"index refined": f"the best {num_refined:,} rows are compared exactly"} if num_refined else {}
    return SearchedIndex(kind, search, size, facts)


def open_cell_index(
    database: ShardedRows,
    labels: np.ndarray,
    cells: Cells,
    ranked_by: np.ndarray | None,
    *,
    probes: int,
    folder: Path | None,
) -> SearchedIndex:
    """Open an index whose lists are cells; build it first if the file does not exist.

    Args:
        database: descriptors (N, D).
        labels: class of each image, int64 (N,), see `cells_of_catalogue`.
        ranked_by: descriptors of the queries from the encoder of the cells, (Q, E); None without one.
        probes: number of cells to search.
        folder: folder of the index; None stores it beside the descriptors.
    """
    classifier = cells.classifier
    vectors = classifier.weight if cells.encoder is None else None
    digest = hashlib.sha256(labels.tobytes() + (b"" if vectors is None else vectors.tobytes()))
    path = index_path(database, f"cells {len(classifier)} {digest.hexdigest()}", folder)
    index = open_built(
        path, lambda: build_cell_index(database, labels, vectors, num_classes=len(classifier)), probes=probes
    )
    num_filled = len(np.unique(labels[labels >= 0]))
    facts = {"cells": f"{len(classifier):,} classes, {num_filled:,} of them with database images; {probes:,} searched"}

    def search(queries: np.ndarray, count: int) -> tuple[Neighbors, np.ndarray]:
        chosen_by = None if ranked_by is None else ranked_by.reshape(len(queries), -1)
        return cell_neighbors(
            index, queries, count, probes=probes, quantizer=cells.quantizer, quantizer_queries=chosen_by
        )

    return SearchedIndex("cells", search, path.stat().st_size, facts)


def predict_images(
    database: ShardedRows,
    queries: np.ndarray,
    benchmark: Benchmark,
    *,
    index: SearchedIndex | None = None,
    ranking: RankingOptions = RankingOptions(),
    matching: Matching | None = None,
    regions: Regions | None = None,
) -> Predictions:
    """Predict the database images nearest to each query.

    Args:
        database: descriptors (N, D).
        queries: descriptors (Q, D), or (Q, 5 D) for crops that are searched separately.
        benchmark: gives the number of predictions, the preprocessing of queries and the panoramas.
        index: an index whose predictions are returned, compared with those of the exact search; None for none.
        ranking: whether to return the predictions of re-ranking, compared likewise.
        matching: how the predictions are matched with the queries, for re-ranking by that.
        regions: the images that each query is searched among; None for all.
    """
    count, panoramas = max(benchmark.options.recall_ns), benchmark.panoramas
    depth = count if panoramas is None else count * _VIEWS_PER_PANORAMA
    depth = depth if matching is None else max(depth, matching.top)
    crops = queries.reshape(-1, database.width)

    def retrieved(neighbors: Neighbors) -> np.ndarray:
        """Return the rows of neighbors, (Q, depth), those of several crops merged."""
        preprocessing = benchmark.options.query_preprocessing
        merged = _merge_crops(neighbors.rows, np.square(neighbors.distances), len(queries), preprocessing, depth)
        return database.all_rows(merged)

    def shortened(rows: np.ndarray) -> np.ndarray:
        """Return predictions (Q, count) of the rows of neighbors."""
        return rows[:, :count] if panoramas is None else first_of_each_panorama(rows, panoramas, count)

    def predicted(neighbors: Neighbors) -> np.ndarray:
        return shortened(retrieved(neighbors))

    start = time.perf_counter()
    if regions is None:
        parts = followed(database.parts(), "exact search", total=len(database), size=len, unit="rows")
        neighbors = nearest_neighbors(parts, crops, depth)
    else:
        neighbors = regions.neighbors(database, crops.reshape(len(queries), -1, database.width), depth)
    exact_ms = _ms_per_query(start, len(queries))
    exact = predicted(neighbors)
    by_descriptors = benchmark.options.query_preprocessing != "maj_voting" and regions is None
    if matching is not None:
        matched = matching.rerank(retrieved(neighbors), benchmark.query_set)
        rows, reranked_ms = shortened(matched.rows), _ms_per_query(start, len(queries))
        facts = {**matched.facts, "re-ranking effect": _difference(rows, exact, benchmark)}
        return Predictions(rows, reranked_ms, facts, by_descriptors=False, pairs=matched.pairs_of(rows))
    if ranking.rerank is not None:
        neighbors, facts = _reranked(database, queries, depth, ranking)
        rows, reranked_ms = predicted(neighbors), _ms_per_query(start, len(queries))
        facts |= {"re-ranking effect": _difference(rows, exact, benchmark)}
        return Predictions(rows, reranked_ms, facts, by_descriptors=False)
    if index is None:
        return Predictions(exact, exact_ms, by_descriptors=by_descriptors)
    start = time.perf_counter()
    with phase(f"searching {index.name}"):
        neighbors, rows_read = index.search(crops, depth)
    index_ms = _ms_per_query(start, len(queries))
    rows = predicted(neighbors)
    facts = {
        "index": f"{index.name}: {_difference(rows, exact, benchmark)}",
        **index.facts,
        "index size": f"{index.num_bytes / 1e6:,.1f} MB, of {database.num_bytes / 1e6:,.1f} MB of descriptors",
        "index search": f"{index_ms:.2f} ms per query, exact search {exact_ms:.2f} ms",
    }
    if rows_read is not None:
        share = 100 * rows_read.mean() / len(database)
        facts["rows read"] = f"{rows_read.mean():,.1f} of {len(database):,} images per query, {share:.2f} %"
    return Predictions(rows, exact_ms, facts, by_descriptors=False)


def _reranked(
    database: ShardedRows, queries: np.ndarray, count: int, ranking: RankingOptions
) -> tuple[Neighbors, dict[str, str]]:
    """Re-rank a database (N, D) for queries (Q, D); also returns facts for the report."""
    k1, k2, weight = ranking.rerank_k1, ranking.rerank_k2, ranking.rerank_weight
    num_images = len(queries) + len(database)
    LOGGER.info("re-ranking: comparing all pairs of %s images", f"{num_images:,}")
    start = time.perf_counter()
    reranker = build_reranker(queries, database, k1=k1, k2=k2, weight=weight)
    neighbors = reranker.nearest(count)
    seconds, megabytes = time.perf_counter() - start, reranker.num_bytes / 1e6
    cost = f"{seconds:.1f} s, {megabytes:,.1f} MB of neighbors; all distances are {4 * num_images**2 / 1e6:,.1f} MB"
    LOGGER.info("re-ranking: %s", cost)
    return neighbors, {
        "re-ranking": f"{ranking.rerank}, k1 {k1}, k2 {k2}, weight {weight:g}",
        "re-ranking cost": cost,
    }


def predict_classes(
    classifier: Classifier, queries: np.ndarray, benchmark: Benchmark, ranking: RankingOptions
) -> Predictions:
    """Predict the classes with the highest scores for each query.

    Args:
        queries: descriptors (Q, D), or (Q, 5 D) for crops that are ranked separately.
        benchmark: gives the number of predictions and the preprocessing of queries.
    """
    vectors, count = classifier.weight, max(benchmark.options.recall_ns)
    depth = max(count, _NUM_PROBABLE)
    crops = queries.reshape(-1, vectors.shape[1])
    start = time.perf_counter()
    ranked = rank_classes(crops, vectors, bias=classifier.bias, normalize=not ranking.raw_scores, count=depth)
    milliseconds = _ms_per_query(start, len(queries))
    # Of unit length, a squared distance is 2 - 2 x cosine; the 2 does not change how crops are merged.
    preprocessing = benchmark.options.query_preprocessing
    rows = _merge_crops(ranked.rows, -2 * ranked.scores, len(queries), preprocessing, depth)
    temperature = ranking.temperature or 1.0
    scale = classifier.cosine_scale / temperature
    probabilities = class_probabilities(crops, vectors, rows, scale=scale)
    how = "not calibrated" if ranking.temperature is None else f"with temperature {temperature:.3g}"
    meaning = f"softmax of {round(classifier.cosine_scale, 2):,g} x cosine over {len(classifier):,} classes, {how}"
    scores = "dot products with the vectors as they are" if ranking.raw_scores else "cosines"
    facts = {"scores": scores, "search": f"{milliseconds:.2f} ms per query", "probability": meaning}
    classes = ClassScores(classifier, rows, probabilities, meaning, scale, ranking.raw_scores)
    by_descriptors = preprocessing != "maj_voting"
    return Predictions(rows[:, :count], milliseconds, facts, classes, by_descriptors)


def _ms_per_query(start: float, num_queries: int) -> float:
    return 1e3 * (time.perf_counter() - start) / num_queries


def _merge_crops(rows: np.ndarray, squared: np.ndarray, num_queries: int, preprocessing: str, count: int) -> np.ndarray:
    """Return predictions int64 (Q, K), merging those of several crops of a query, (Q n, K) with squared distances."""
    rows, squared = (each.reshape(num_queries, -1, each.shape[1]) for each in (rows, squared))
    if rows.shape[1] == 1:
        return rows[:, 0]
    merge = votes_of_crops if preprocessing == "maj_voting" else nearest_of_crops
    return merge(rows, squared, count)


def _difference(rows: np.ndarray, exact: np.ndarray, benchmark: Benchmark) -> str:
    """Format how much recall@1 an index loses, or without ground truth how many top predictions it keeps."""
    positives = benchmark.query_set.positives
    if positives is None:
        return f"{100 * (rows[:, 0] == exact[:, 0]).mean():.1f} % of top predictions are those of exact search"
    is_missed = benchmark.options.without_positive == "missed"
    counted = [query for query, correct in enumerate(positives) if is_missed or len(correct)]
    if not counted:  # writing the results raises the error
        return "R@1 +0.0 against exact search"
    found, expected = (recall_at(each[counted], [positives[row] for row in counted], (1,))[0] for each in (rows, exact))
    return f"R@1 {found - expected:+.1f} against exact search"
