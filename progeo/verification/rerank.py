"""Re-rank the candidates of queries by the number of points that match."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from threading import Lock
from typing import Any

import numpy as np
from torch import Tensor

from progeo.engine.log import LOGGER
from progeo.progress import Progress
from progeo.verification.matchers import Matcher, Pair

_MAX_BYTES = 2**28
"""Memory of prepared candidates that are kept for other queries: 256 MiB."""
_PAIRS_AT_ONCE = 160
NOT_MATCHED = -1


@dataclass(frozen=True, eq=False)
class Reranked:
    """Candidates of Q queries in a new order."""

    order: np.ndarray
    """Former ranks of the candidates, by their new rank, int64 (Q, K)."""
    inliers: np.ndarray
    """Number of inliers by new rank, int64 (Q, K); -1 where a candidate was not matched."""
    pairs: Mapping[tuple[int, int], Pair]
    """Matched pairs by query and new rank, of the first ranks."""

    @property
    def num_pairs(self) -> int:
        """Number of pairs that were matched."""
        return int((self.inliers != NOT_MATCHED).sum())

    @property
    def verified(self) -> np.ndarray:
        """Whether any candidate was matched, bool (Q,)."""
        return (self.inliers != NOT_MATCHED).any(axis=1)


class Candidates:
    """Images that are matched with queries, each prepared once as long as memory allows.

    Args:
        prepare: returns what matching a row needs; raises OSError or ValueError if its image is gone.
    """

    def __init__(self, prepare: Callable[[int], Any]) -> None:
        self._prepare = prepare
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()
        self._has_warned = False
        self.gone: dict[int, str] = {}
        """Why rows could not be prepared."""

    def prepared(self, rows: Iterable[int], pool: ThreadPoolExecutor) -> dict[int, Any]:
        """Prepare rows, None where an image is gone."""
        with self._lock:
            found = {row: self._kept[row] for row in rows if row in self._kept}
            for row in found:
                self._kept.move_to_end(row)
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for row, image in zip(missing, pool.map(self._prepared, missing), strict=True):
            found[row] = image
            self._keep(row, image)
        return found

    def warn_of_gone(self, advice: str) -> None:
        """Log, at the first call that finds some, how many images could not be matched, and what follows from it."""
        if self.gone and not self._has_warned:
            self._has_warned = True
            LOGGER.warning(
                "%s candidates cannot be matched; the first: %s %s",
                f"{len(self.gone):,}",
                next(iter(self.gone.values())),
                advice,
            )

    def _prepared(self, row: int) -> Any:
        try:
            return self._prepare(row)
        except (OSError, ValueError) as error:
            self.gone[row] = str(error)
            return None

    def _keep(self, row: int, image: Any) -> None:
        with self._lock:
            if image is None or row in self._kept:
                return
            self._kept[row] = image
            self._num_bytes += image.num_bytes
            while self._num_bytes > _MAX_BYTES:
                self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes


def rerank(
    matcher: Matcher,
    queries: Callable[[int], Tensor],
    candidates: Candidates,
    rows: np.ndarray,
    *,
    top: int,
    num_kept: int = 5,
    hidden: bool = True,
) -> Reranked:
    """Match each query with its first candidates and sort these by inliers, equal ones as they were.

    Candidates whose images cannot be read follow those that were matched, then come all beyond `top`, in their former
    order. A query that cannot be read is not re-ranked.

    Args:
        queries: returns the pixels of a query, uint8 (3, H, W), by its number.
        rows: rows of the candidates, best first, int64 (Q, K); -1 where there is none.
        top: number of candidates that are matched.
        num_kept: number of ranks whose pairs are returned.
        hidden: show no progress.
    """
    inliers = np.full(rows.shape, NOT_MATCHED, np.int64)
    order = np.broadcast_to(np.arange(rows.shape[1]), rows.shape).copy()
    pairs: dict[tuple[int, int], Pair] = {}

    def query(number: int) -> Any:
        try:
            return matcher.prepare(queries(number))
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(cpu_count()) as pool, Progress("matching", total=len(rows), hidden=hidden) as bar:
        at_once = max(1, _PAIRS_AT_ONCE // top)
        for start in range(0, len(rows), at_once):
            numbers = range(start, min(start + at_once, len(rows)))
            shown = dict(zip(numbers, pool.map(query, numbers), strict=True))
            numbers_shown = [number for number in numbers if shown[number] is not None]
            wanted = {number: [row for row in rows[number, :top].tolist() if row >= 0] for number in numbers_shown}
            images = candidates.prepared(sorted({row for each in wanted.values() for row in each}), pool)
            jobs = [
                (number, rank, shown[number], images[row])
                for number, each in wanted.items()
                for rank, row in enumerate(rows[number, :top].tolist())
                if row >= 0 and images[row] is not None
            ]
            found = dict(
                zip([job[:2] for job in jobs], pool.map(lambda job: matcher.match(*job[2:]), jobs), strict=True)
            )
            for (number, rank), pair in found.items():
                inliers[number, rank] = pair.inliers
            for number in numbers:
                order[number] = _by_inliers(inliers[number])
                inliers[number] = inliers[number, order[number]]
                firsts = enumerate(order[number, :num_kept].tolist())
                pairs |= {(number, rank): found[number, was] for rank, was in firsts if (number, was) in found}
            bar.update(len(numbers))
    return Reranked(order, inliers, pairs)


def _by_inliers(inliers: np.ndarray) -> np.ndarray:
    """Return ranks (K,) by inliers, most first, those without any match last; equal ones as they were."""
    return np.argsort(-inliers, kind="stable")
