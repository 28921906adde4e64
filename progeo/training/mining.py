"""Mine tuples: the nearest positive, hard negatives and difficult positives of queries, as OpenIBL does.

Ge et al., Self-supervising Fine-grained Region Similarities (ECCV 2020); all functions are pure, on matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from progeo.evaluation.search import squared_distances
from progeo.features.store import ShardedRows
from progeo.places.positives import positives_within
from progeo.progress import followed

_BLOCK_VALUES = 2**24
"""Values of the largest temporary matrix of floats: 64 MiB."""


@dataclass(frozen=True)
class Candidates:
    """Database rows that may be positives of queries, or may not be their negatives."""

    queries: np.ndarray
    """Rows of the q queries that have a positive, ascending, int64 (q,)."""
    positives: list[np.ndarray]
    """Positives of each of these queries, sorted int64 arrays."""
    excluded: list[np.ndarray]
    """Images of the same place as each of these queries, which are no negatives, sorted int64 arrays."""

    def take(self, indices: np.ndarray) -> "Candidates":
        """Return those of some of the q queries, given their positions among `queries`, int64 (n,)."""
        chosen = indices.tolist()
        return Candidates(
            self.queries[indices], [self.positives[each] for each in chosen], [self.excluded[each] for each in chosen]
        )


@dataclass(frozen=True)
class Mined:
    """Tuples of q queries: database rows."""

    positive: np.ndarray
    """Nearest positive of each query, int64 (q,)."""
    negatives: np.ndarray
    """Hardest negatives of each query, hardest first, int64 (q, M); -1 where there are fewer."""
    difficult: list[np.ndarray]
    """Difficult positives of each query, q int64 arrays; empty ones without re-ranking."""


def find_candidates(
    query_m: np.ndarray,
    database_m: np.ndarray,
    *,
    positive_radius_m: float,
    exclusion_radius_m: float,
    query_panoramas: np.ndarray | None = None,
    database_panoramas: np.ndarray | None = None,
    query_rows: np.ndarray | None = None,
) -> Candidates:
    """Find the positives of each query, and the images too near to it to be its negatives.

    Args:
        query_m: positions in meters, such as UTM east and north, (Q, 2).
        database_m: positions in meters, (N, 2).
        positive_radius_m: an image within this many meters, inclusive, is a positive.
        exclusion_radius_m: an image within this many meters, inclusive, is no negative.
        query_panoramas: panorama of each query, (Q,): images of the same panorama are no positives. None if unknown.
        database_panoramas: panorama of each image of the database, (N,). None if unknown.
        query_rows: database row of each query, int64 (Q,), -1 for one that is no database image: an image is no
            positive of itself. None if no query is.

    Raises:
        ValueError: a radius is not positive, or images could be positives and negatives.
    """
    if not 0 < positive_radius_m <= exclusion_radius_m:
        raise ValueError(
            f"`positive_radius_m` must be above 0 and at most `exclusion_radius_m`, got {positive_radius_m:g} and "
            f"{exclusion_radius_m:g}."
        )
    near = positives_within(database_m, query_m, positive_radius_m)
    rows = np.concatenate([np.empty(0, np.int64), *near])
    query = np.repeat(np.arange(len(near)), [len(each) for each in near])
    is_positive = np.ones(len(rows), bool)
    if query_panoramas is not None and database_panoramas is not None:
        is_positive &= np.asarray(database_panoramas)[rows] != np.asarray(query_panoramas)[query]
    if query_rows is not None:
        is_positive &= rows != query_rows[query]
    counts = np.bincount(query[is_positive], minlength=len(near))
    positives = np.split(rows[is_positive], np.cumsum(counts)[:-1])
    queries = np.flatnonzero(counts)
    excluded = positives_within(database_m, np.asarray(query_m)[queries], exclusion_radius_m) if len(queries) else []
    return Candidates(queries, [positives[each] for each in queries.tolist()], excluded)


def draw_pool(
    excluded: np.ndarray, num_database: int, *, pool: int, seed: int, generation: int, epoch: int, query: int
) -> np.ndarray:
    """Draw random candidates for negatives, determined by (seed, generation, epoch, query).

    Args:
        excluded: sorted database rows that are no candidates, int64.
        num_database: number of database images.
        pool: number of candidates to draw; all of them if there are fewer.

    Returns:
        Sorted database rows, int64.
    """
    num_candidates = num_database - len(excluded)
    if pool < num_candidates:
        rng = np.random.default_rng((seed, generation, epoch, query))
        drawn = np.sort(rng.choice(num_candidates, pool, replace=False, shuffle=False))
    else:
        drawn = np.arange(num_candidates)
    # Candidate number i is row i + k if k excluded rows come before it.
    return drawn + np.searchsorted(excluded - np.arange(len(excluded)), drawn, side="right")


def hardest_negatives(
    distances: np.ndarray,
    candidates: Sequence[np.ndarray] | np.ndarray,
    *,
    previous: Sequence[np.ndarray] | np.ndarray | None,
    count: int,
) -> np.ndarray:
    """Choose the nearest of the candidates and of the negatives of the last time; of equal ones the lower row.

    Args:
        distances: descriptor distances, (Q, N).
        candidates: database rows of each query, such as those of `draw_pool`, Q int64 arrays, where -1 is no row; or
            a mask, bool (Q, N).
        previous: negatives of each query that the last call returned, which stay candidates; None for none.

    Returns:
        Database rows, nearest first, int64 (Q, count); -1 where there are fewer.
    """
    rows = _union(candidates, previous)
    return _nearest(rows, _at(distances, rows), count)


def difficult_positives(
    distances: np.ndarray,
    reranked: np.ndarray,
    positives: Sequence[np.ndarray] | np.ndarray,
    *,
    pool: int,
    count: int,
) -> list[np.ndarray]:
    """Choose the positives that re-ranking moves ahead most, then those that keep their rank.

    Of the `pool` nearest positives, let `order` list their ranks by descriptor distance, sorted by re-ranked distance.
    Chosen are the entries with order[i] > i, sorted by i - order[i], then those with order[i] = i.

    Args:
        distances: descriptor distances, (Q, N).
        reranked: re-ranked distances, such as of `k_reciprocal`, (Q, N).
        positives: database rows of each query, Q int64 arrays, or a mask, bool (Q, N).
        count: number of positives to choose; fewer are returned if re-ranking moves fewer.

    Returns:
        Database rows of each query, Q int64 arrays.
    """
    rows = _padded(positives)
    near = _nearest(rows, _at(distances, rows), pool)
    return _moved_ahead(near, _at(reranked, near), count)


def mine(
    queries: np.ndarray,
    database: ShardedRows | np.ndarray,
    candidates: Candidates,
    pools: Sequence[np.ndarray],
    *,
    previous: Sequence[np.ndarray] | np.ndarray | None,
    num_negatives: int,
    reranked: Callable[[np.ndarray], np.ndarray] | None = None,
    positive_pool: int = 20,
    num_positives: int = 10,
) -> Mined:
    """Mine the tuples of q queries, computing only the distances to their positives and candidates for negatives.

    Args:
        queries: descriptors, (q, D).
        database: descriptors, (N, D), of which only some are in memory at a time.
        candidates: those of these q queries.
        pools: candidates for negatives of each query, see `draw_pool`.
        previous: negatives of each query that the last call returned; None for none.
        reranked: takes positions among the q queries, int64 (b,), and returns their re-ranked distances to the
            database, (b, N); None mines no difficult positives.
        positive_pool, num_positives: `pool` and `count` of `difficult_positives`.
    """
    positives, negatives = _padded(candidates.positives), _union(pools, previous)
    distances = _distances_to(queries, database, np.concatenate([positives, negatives], axis=1))
    to_positives, to_negatives = np.split(distances, [positives.shape[1]], axis=1)
    difficult = [np.empty(0, np.int64)] * len(queries)
    if reranked is not None:
        near = _nearest(positives, to_positives, positive_pool)
        size = max(1, _BLOCK_VALUES // len(database))
        blocks = np.split(np.arange(len(queries)), range(size, len(queries), size))
        shown = followed(blocks, "re-ranking positives", total=len(queries), size=len, unit="queries")
        values = np.concatenate([_at(reranked(block), near[block]) for block in shown])
        difficult = _moved_ahead(near, values, num_positives)
    return Mined(
        _nearest(positives, to_positives, 1)[:, 0], _nearest(negatives, to_negatives, num_negatives), difficult
    )


def _padded(rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the rows of each query, or those of a mask (Q, N), in one array padded with -1, int64 (Q, P)."""
    if isinstance(rows, np.ndarray) and rows.dtype == bool:
        rows = [np.flatnonzero(mask) for mask in rows]
    counts = np.array([len(each) for each in rows], np.int64)
    padded = np.full((len(counts), counts.max(initial=0)), -1, np.int64)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = np.concatenate([np.empty(0, np.int64), *rows])
    return padded


def _union(first: Sequence[np.ndarray] | np.ndarray, second: Sequence[np.ndarray] | np.ndarray | None) -> np.ndarray:
    """Return the distinct rows of each query, sorted, with -1 between them, int64 (Q, P)."""
    both = _padded(first) if second is None else np.concatenate([_padded(first), _padded(second)], axis=1)
    rows = np.sort(both, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
    return rows


def _at(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the values (Q, N) at rows (Q, P); those at -1 have no meaning."""
    return np.take_along_axis(np.asarray(values), rows, axis=1)


def _nearest(rows: np.ndarray, distances: np.ndarray, count: int) -> np.ndarray:
    """Return the nearest rows, int64 (Q, count), given rows in ascending order and their distances (Q, P)."""
    order = np.argsort(np.where(rows < 0, np.inf, distances), axis=1, kind="stable")[:, :count]
    nearest = np.take_along_axis(rows, order, axis=1)
    return np.pad(nearest, ((0, 0), (0, count - nearest.shape[1])), constant_values=-1)


def _moved_ahead(near: np.ndarray, reranked: np.ndarray, count: int) -> list[np.ndarray]:
    """Choose difficult positives, given rows sorted by descriptor distance and their re-ranked distances (Q, P)."""
    order = np.argsort(np.where(near < 0, np.inf, reranked), axis=1, kind="stable")
    gap = np.arange(near.shape[1]) - order
    is_chosen = (gap <= 0) & (np.take_along_axis(near, order, axis=1) >= 0)
    by_gap = np.argsort(np.where(is_chosen, gap, 1), axis=1, kind="stable")[:, :count]
    rows = np.take_along_axis(near, np.take_along_axis(order, by_gap, axis=1), axis=1)
    counts = is_chosen.sum(axis=1).tolist()
    return [each[:number] for each, number in zip(rows, counts, strict=True)]


def _distances_to(queries: np.ndarray, database: ShardedRows | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute Euclidean distances between q queries (q, D) and P database rows of each, float32 (q, P)."""
    queries = np.ascontiguousarray(queries, np.float32)
    center = queries.mean(axis=0)  # without it, float32 loses the distances of an untrained network, whose images are
    queries = queries - center  # all alike
    distances = np.full(rows.shape, np.inf, np.float32)
    pairs = np.flatnonzero(rows >= 0)
    pairs = pairs[np.argsort(rows.ravel()[pairs], kind="stable")]
    of_query = pairs // max(1, rows.shape[1])
    columns, starts, column = np.unique(rows.ravel()[pairs], return_index=True, return_inverse=True)
    starts = np.append(starts, len(pairs))
    size = max(1, _BLOCK_VALUES // (queries.shape[1] + len(queries)))
    firsts = range(0, len(columns), size)
    for first in followed(firsts, "mining tuples", total=len(firsts), unit="blocks"):
        block = columns[first : first + size]
        images = database[block] if isinstance(database, np.ndarray) else database.take(block)
        here = slice(starts[first], starts[first + len(block)])
        squared = squared_distances(queries, images.astype(np.float32) - center)
        distances.flat[pairs[here]] = squared[of_query[here], column[here] - first]
    return np.sqrt(distances)
