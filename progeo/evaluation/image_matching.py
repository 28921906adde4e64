"""Re-rank the predictions of a benchmark by matching them with their queries."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from progeo.data.decode import read_image
from progeo.datasets.query_sets import QuerySet
from progeo.image_files import Orientation
from progeo.verification.matchers import Matcher, Pair
from progeo.verification.rerank import Candidates, rerank

_NUM_KEPT = 5
"""Number of ranks whose matched points the report can show."""


@dataclass(frozen=True, eq=False)
class Matched:
    """Predictions that were matched with their queries."""

    rows: np.ndarray
    """Rows of database images for each query, re-ranked, int64 (Q, K); -1 where there is none."""
    pairs: Mapping[tuple[int, int], Pair]
    """Matched pairs by query and row."""
    facts: Mapping[str, str]
    """Facts for the report."""

    def pairs_of(self, rows: np.ndarray) -> dict[tuple[int, int], Pair]:
        """Return the matched pairs of the first predictions (Q, K), by query and rank."""
        return {
            (query, rank): self.pairs[query, row]
            for query, some in enumerate(rows[:, :_NUM_KEPT].tolist())
            for rank, row in enumerate(some)
            if (query, row) in self.pairs
        }


@dataclass(frozen=True, eq=False)
class Matching:
    """How predictions are matched with their queries."""

    matcher: Matcher
    top: int
    """Number of first predictions of each query that are matched."""
    orientation: Orientation = "exif"
    one_per_panorama: bool = False
    """Whether predictions are dropped later, so that any can move up."""

    def rerank(self, rows: np.ndarray, query_set: QuerySet) -> Matched:
        """Re-rank the predictions of all queries.

        Args:
            rows: rows of the database, best first, int64 (Q, K).
        """

        def prepared(row: int) -> object:
            return self.matcher.prepare(read_image(query_set.database.path(row), self.orientation))

        start, candidates = time.perf_counter(), Candidates(prepared)
        found = rerank(
            self.matcher,
            lambda query: read_image(query_set.queries.path(query), self.orientation),
            candidates,
            rows,
            top=self.top,
            num_kept=self.top if self.one_per_panorama else _NUM_KEPT,
            hidden=False,
        )
        candidates.warn_of_gone("They follow those that can: put the images back to match all.")
        milliseconds = 1e3 * (time.perf_counter() - start) / max(1, found.num_pairs)
        reranked = np.take_along_axis(rows, found.order, axis=1)
        facts = {
            "re-ranking": f"matching, {self.matcher.name}, first {self.top}",
            "re-ranking cost": f"{found.num_pairs:,} pairs matched, {milliseconds:.1f} ms per pair",
        }
        if candidates.gone:
            facts["not matched"] = f"{len(candidates.gone):,} database images that cannot be read"
        pairs = {(query, int(reranked[query, rank])): pair for (query, rank), pair in found.pairs.items()}
        return Matched(reranked, pairs, facts)
