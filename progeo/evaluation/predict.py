"""Predict database images for the queries of a benchmark, exactly and through a compressed index."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progeo.evaluation.benchmark import Benchmark
from progeo.evaluation.crops import nearest_of_crops, votes_of_crops
from progeo.evaluation.metrics import first_of_each_panorama
from progeo.evaluation.recall import recall_at
from progeo.evaluation.search import Neighbors, index_neighbors, index_path, nearest_neighbors, open_index
from progeo.features.store import ShardedRows

_VIEWS_PER_PANORAMA = 12


@dataclass(frozen=True)
class Predictions:
    """Predictions for Q queries."""

    rows: np.ndarray
    """Database rows of each query, best first, int64 (Q, K); -1 where there is none."""
    exact_ms: float
    """Duration of an exact search in milliseconds per query."""
    index_facts: Mapping[str, str]
    """Facts for the report about a compressed index: recall lost, size and speed; empty for an exact search."""


def predict(
    database: ShardedRows,
    queries: np.ndarray,
    benchmark: Benchmark,
    *,
    faiss: str | None,
    probes: int,
    index_folder: Path | None,
) -> Predictions:
    """Predict the database images nearest to each query.

    Args:
        database: descriptors (N, D).
        queries: descriptors (Q, D), or (Q, 5 D) for crops that are searched separately.
        benchmark: gives the number of predictions, the preprocessing of queries and the panoramas.
        faiss: factory string of a compressed index, which is searched in addition to the exact search; None for none.
        probes: number of inverted lists of an IVF index that a search visits.
        index_folder: folder of the index; None stores it beside the database descriptors.
    """

    def search(neighbors_of: Callable[[np.ndarray, int], Neighbors]) -> tuple[np.ndarray, float]:
        """Return predictions (Q, K) and the milliseconds per query."""
        count, panoramas = max(benchmark.options.recall_ns), benchmark.panoramas
        depth = count if panoramas is None else count * _VIEWS_PER_PANORAMA
        start = time.perf_counter()
        neighbors = neighbors_of(queries.reshape(-1, database.width), depth)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(queries)
        merged = _merge_crops(neighbors, len(queries), benchmark.options.query_preprocessing, depth)
        rows = database.all_rows(merged)
        return rows if panoramas is None else first_of_each_panorama(rows, panoramas, count), milliseconds

    exact, exact_ms = search(lambda wanted, depth: nearest_neighbors(database.parts(), wanted, depth))
    if faiss is None:
        return Predictions(exact, exact_ms, {})
    index = open_index(database, faiss, probes=probes, folder=index_folder)
    rows, index_ms = search(lambda wanted, depth: index_neighbors(index, wanted, depth))
    megabytes = index_path(database, faiss, index_folder).stat().st_size / 1e6
    facts = {
        "index": f"{faiss}: {_difference(rows, exact, benchmark)}",
        "index size": f"{megabytes:,.1f} MB, of {database.num_bytes / 1e6:,.1f} MB of descriptors",
        "index search": f"{index_ms:.2f} ms per query, exact search {exact_ms:.2f} ms",
    }
    return Predictions(rows, exact_ms, facts)


def _merge_crops(neighbors: Neighbors, num_queries: int, preprocessing: str, count: int) -> np.ndarray:
    """Return predictions int64 (Q, K), merging those of several crops of a query."""
    rows = neighbors.rows.reshape(num_queries, -1, neighbors.rows.shape[1])
    if rows.shape[1] == 1:
        return rows[:, 0]
    merge = votes_of_crops if preprocessing == "maj_voting" else nearest_of_crops
    return merge(rows, np.square(neighbors.distances).reshape(rows.shape), count)


def _difference(rows: np.ndarray, exact: np.ndarray, benchmark: Benchmark) -> str:
    """Format how much recall@1 a compressed index loses, or without ground truth how many top predictions it keeps."""
    positives = benchmark.query_set.positives
    if positives is None:
        return f"{100 * (rows[:, 0] == exact[:, 0]).mean():.1f} % of top predictions are those of exact search"
    is_missed = benchmark.options.without_positive == "missed"
    counted = [query for query, correct in enumerate(positives) if is_missed or len(correct)]
    if not counted:  # writing the results raises the error
        return "R@1 +0.0 against exact search"
    found, expected = (recall_at(each[counted], [positives[row] for row in counted], (1,))[0] for each in (rows, exact))
    return f"R@1 {found - expected:+.1f} against exact search"
