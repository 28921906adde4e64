"""Compare encoders that were evaluated on the same data sets: recalls with intervals, and paired tests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from progeo.evaluation.evaluate import Evaluation
from progeo.evaluation.metrics import RESAMPLES, bootstrap_interval
from progeo.evaluation.significance import SIGNIFICANCE, PairedTest, paired_tests

LEVEL = "≈"
"""Mark of a recall whose difference to the best is not significant."""


@dataclass(frozen=True)
class Evaluated:
    """An encoder that was evaluated on a data set."""

    data: str
    """Name of the data set."""
    encoder: str
    evaluation: Evaluation
    images_per_second: float | None
    """Extraction speed of the network on decoded images; None for descriptors of another program."""
    without_positive_missed: bool = True
    """Count queries without any positive as missed; otherwise exclude them."""

    @cached_property
    def counted(self) -> np.ndarray:
        """Which queries that can be read are counted, bool (Q,)."""
        retrieved = self.evaluation.retrieved
        positives = retrieved.positives[retrieved.criterion]
        return np.array([self.without_positive_missed or len(rows) > 0 for rows in positives], bool)

    @property
    def query_rows(self) -> np.ndarray:
        """Rows in the query folder of the queries that are counted, ascending."""
        return self.evaluation.query_rows[self.counted]

    def hits(self, n: int) -> np.ndarray:
        """Return whether each counted query has a correct one among its first n predictions, bool."""
        correct: np.ndarray = self.evaluation.retrieved.correct[self.counted, :n]
        return np.any(correct, axis=1)

    def hits_of(self, query_rows: np.ndarray, n: int) -> np.ndarray:
        """Return the hits of some of the counted queries, given by their rows in the query folder, bool."""
        return self.hits(n)[np.searchsorted(self.query_rows, query_rows)]

    def rows_of(self, query_rows: np.ndarray) -> np.ndarray:
        """Return the rows of the predictions for queries given by their rows in the query folder."""
        return np.searchsorted(self.evaluation.query_rows, query_rows)


def shared_queries(evaluated: Sequence[Evaluated]) -> np.ndarray:
    """Return the queries that all encoders count, as rows in the query folder, int64, ascending.

    Encoders differ if one of them cannot read an image, or has no class near a query.
    """
    return reduce(np.intersect1d, [each.query_rows for each in evaluated])


@dataclass(frozen=True)
class Compared:
    """Results of one encoder on one data set, a row of the table."""

    data: str
    """Name of the data set."""
    encoder: str
    descriptor_dim: int
    images_per_second: float | None
    """Extraction speed of the network on decoded images; None for descriptors of another program."""
    search_ms: float
    """Duration of an exact search, and of re-ranking if it is wanted, in milliseconds per query."""
    recalls: dict[int, float]
    """Recall in percent, by N."""
    intervals: dict[int, tuple[float, float]]
    """Bounds in percent of the 95 % bootstrap interval of the recall, by N."""
    num_queries: int
    """Number of queries that are counted."""
    measure: str = "R"
    """Name of recall: R of R@N, or LR of LR@N, localization recall."""
    is_best: bool = True
    """Whether this encoder has the highest recall at the smallest N; of equal ones, at the next N, or the first."""
    against_best: PairedTest | None = None
    """Comparison with the best encoder; None for that one itself, or if there is no query that all encoders count."""

    @property
    def total_ms(self) -> float | None:
        """Duration of extraction and search in milliseconds per query; None if that of the extraction is unknown."""
        return None if self.images_per_second is None else 1e3 / self.images_per_second + self.search_ms

    @property
    def first_n(self) -> int:
        """The smallest N, at which encoders are tested."""
        return min(self.recalls)

    @property
    def is_level(self) -> bool:
        """Whether the difference to the best encoder is not significant."""
        return self.against_best is not None and not self.against_best.is_significant


def compare_evaluated(evaluated: Sequence[Evaluated]) -> list[Compared]:
    """Compare encoders that were evaluated on the same data sets, one data set after the other in their order."""
    return [row for name in dict.fromkeys(each.data for each in evaluated) for row in _compared_on(name, evaluated)]


def _compared_on(name: str, evaluated: Sequence[Evaluated]) -> Iterator[Compared]:
    """Compare encoders on one data set, each with the one of the highest recall."""
    here = [each for each in evaluated if each.data == name]
    ranking = [[recall for _, recall in sorted(each.evaluation.recalls.items())] for each in here]
    shared, first_n = shared_queries(here), min(here[0].evaluation.recalls)
    best = ranking.index(max(ranking))
    tests: list[PairedTest | None] = [None] * len(here)
    if len(shared):
        tests = paired_tests([each.hits_of(shared, first_n) for each in here], best)
    for number, (each, test) in enumerate(zip(here, tests, strict=True)):
        evaluation = each.evaluation
        yield Compared(
            name,
            each.encoder,
            evaluation.descriptor_dim,
            each.images_per_second,
            evaluation.search_ms,
            dict(evaluation.recalls),
            {n: _in_percent(bootstrap_interval(each.hits(n))) for n in evaluation.recalls},
            len(each.query_rows),
            evaluation.retrieved.measure,
            number == best,
            test,
        )


def _in_percent(bounds: tuple[float, float]) -> tuple[float, float]:
    return 100 * bounds[0], 100 * bounds[1]


def best_recalls(table: Sequence[Compared]) -> dict[tuple[str, int], float]:
    """Return the highest recall by data set and N."""
    names = dict.fromkeys(row.data for row in table)
    return {
        (name, n): max(row.recalls[n] for row in table if row.data == name) for name in names for n in table[0].recalls
    }


def meaning_of_marks(measure: str) -> str:
    """Explain what bold recalls, the mark and intervals mean.

    Args:
        measure: name of the recall that is tested, such as R@1.
    """
    return (
        f"Bold: the best. {LEVEL}: the difference to the best in {measure} may be chance (exact McNemar test on the "
        f"same queries, p of {SIGNIFICANCE} or more with Holm's correction for all encoders compared with the best). "
        f"Intervals hold 95 % of {RESAMPLES:,} bootstrap samples of the queries."
    )
