"""Compare encoders that were evaluated on the same data sets: recalls with intervals, and paired tests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np

from progeo.evaluation.evaluate import Evaluation
from progeo.evaluation.metrics import wilson_interval
from progeo.evaluation.significance import RESAMPLES, SIGNIFICANCE, PairedTest, paired_tests, pairwise_tests

ALL = "all"
"""Name of all conditions together."""
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

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """Rows in the query folder of the counted queries of each condition, ascending, by name."""
        counted = self.evaluation.retrieved.conditions[self.counted]
        return {name: self.query_rows[counted == name] for name in self.evaluation.retrieved.by_condition}

    @property
    def ns(self) -> list[int]:
        """The Ns of recall@N."""
        return [*self.evaluation.recalls]

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
    """Results of one encoder on the queries of one data set, or on those of one condition, a row of the table."""

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
    """Bounds in percent of the 95 % interval of the recall, see `wilson_interval`, by N."""
    num_queries: int
    """Number of queries that are counted."""
    measure: str = "R"
    """Name of recall: R of R@N, or LR of LR@N, localization recall."""
    criterion: str = ""
    """What is correct, such as `within 25 m`."""
    condition: str = ALL
    """Condition of the queries, or all."""
    tests: dict[int, PairedTest] = field(default_factory=dict)
    """Comparison with the encoder of the highest recall at each N (of equal ones, at the next N, or the first), on the
    queries that all encoders count; without the Ns at which this encoder is that one."""
    is_best: bool = True
    """Whether this encoder is the best at the smallest N."""

    @property
    def total_ms(self) -> float | None:
        """Duration of extraction and search in milliseconds per query; None if that of the extraction is unknown."""
        return None if self.images_per_second is None else 1e3 / self.images_per_second + self.search_ms

    @property
    def first_n(self) -> int:
        """The smallest N, which decides who is the best."""
        return min(self.recalls)

    @property
    def against_best(self) -> PairedTest | None:
        """Comparison at the smallest N; None for the best, or if there is no query that all encoders count."""
        return self.tests.get(self.first_n)

    @property
    def is_level(self) -> bool:
        """Whether the difference to the best encoder is not significant."""
        return self.against_best is not None and not self.against_best.is_significant

    @property
    def group(self) -> tuple[str, str]:
        """Data set and condition, whose encoders are compared."""
        return self.data, self.condition


@dataclass(frozen=True)
class ComparedPair:
    """Two encoders on the queries that all encoders count, of a data set or of a condition."""

    data: str
    condition: str
    """Condition of the queries, or all."""
    measure: str
    """Such as R@1."""
    encoder: str
    other: str
    test: PairedTest
    """With Holm's correction for all pairs of encoders by the same measure on the same queries."""


def compare_evaluated(evaluated: Sequence[Evaluated]) -> list[Compared]:
    """Compare encoders that were evaluated on the same data sets, one data set after the other in their order."""
    return [row for here in _by_data(evaluated) for row in _compared_on(ALL, here, [each.query_rows for each in here])]


def compare_by_condition(evaluated: Sequence[Evaluated]) -> list[Compared]:
    """Compare encoders on the queries of each condition, of each data set that has several conditions."""
    return [
        row
        for here in _by_data(evaluated)
        for name, rows in _conditions(here).items()
        for row in _compared_on(name, here, rows)
    ]


def compare_pairs(evaluated: Sequence[Evaluated]) -> list[ComparedPair]:
    """Compare every two encoders, on all queries of each data set, then on those of each condition, at every N."""
    found = []
    for here in _by_data(evaluated):
        for name, rows in {ALL: [each.query_rows for each in here], **_conditions(here)}.items():
            shared = reduce(np.intersect1d, rows)
            for n in here[0].ns if len(shared) else ():
                tests = pairwise_tests([each.hits_of(shared, n) for each in here])
                measure = f"{here[0].evaluation.retrieved.measure}@{n}"
                found += [
                    ComparedPair(here[0].data, name, measure, here[one].encoder, here[other].encoder, test)
                    for (one, other), test in tests.items()
                ]
    return found


def _by_data(evaluated: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Put the encoders on the same data set together, in their order."""
    return [
        [each for each in evaluated if each.data == name] for name in dict.fromkeys(each.data for each in evaluated)
    ]


def _conditions(here: Sequence[Evaluated]) -> dict[str, list[np.ndarray]]:
    """Return the queries of each condition that every encoder counts queries of, as rows for each encoder, by name."""
    found = [each.conditions for each in here]
    return {name: [each[name] for each in found] for name in found[0] if all(len(each.get(name, ())) for each in found)}


def _compared_on(condition: str, here: Sequence[Evaluated], rows: Sequence[np.ndarray]) -> Iterator[Compared]:
    """Compare encoders on some of the queries of a data set, each with the one of the highest recall at each N.

    Args:
        condition: name of these queries.
        rows: for each encoder, those that it counts, as rows in the query folder.
    """
    hits = [{n: each.hits_of(some, n) for n in each.ns} for each, some in zip(here, rows, strict=True)]
    recalls = [{n: 100 * int(found.sum()) / len(found) for n, found in by_n.items()} for by_n in hits]
    tests = _tests(here, recalls, reduce(np.intersect1d, rows))
    first_n = min(here[0].ns)
    best = _best(recalls, first_n)
    for number, each in enumerate(here):
        evaluation = each.evaluation
        yield Compared(
            each.data,
            each.encoder,
            evaluation.descriptor_dim,
            each.images_per_second,
            evaluation.search_ms,
            recalls[number],
            {n: wilson_interval(int(found.sum()), len(found)) for n, found in hits[number].items()},
            len(rows[number]),
            evaluation.retrieved.measure,
            evaluation.retrieved.criterion,
            condition,
            {n: test for n, row in tests.items() if (test := row[number]) is not None},
            number == best,
        )


def _tests(
    here: Sequence[Evaluated], recalls: Sequence[Mapping[int, float]], shared: np.ndarray
) -> dict[int, list[PairedTest | None]]:
    """Test each encoder against the best at each N, by N, on the queries that all count; empty if there is none."""
    if not len(shared):
        return {}
    return {n: paired_tests([each.hits_of(shared, n) for each in here], _best(recalls, n)) for n in here[0].ns}


def _best(recalls: Sequence[Mapping[int, float]], n: int) -> int:
    """Return the number of the encoder with the highest recall at N; of equal ones, at the next N, or the first."""
    ranking = [[recall for each, recall in sorted(by_n.items()) if each >= n] for by_n in recalls]
    return ranking.index(max(ranking))


def best_recalls(table: Sequence[Compared]) -> dict[tuple[tuple[str, str], int], float]:
    """Return the highest recall by data set with condition, and by N."""
    groups = dict.fromkeys(row.group for row in table)
    return {
        (group, n): max(row.recalls[n] for row in table if row.group == group)
        for group in groups
        for n in table[0].recalls
    }


def meaning_of_marks(measure: str, *, has_conditions: bool = False) -> str:
    """Explain what bold recalls, the mark and intervals mean.

    Args:
        measure: name of the recall that is tested, such as R@1.
        has_conditions: whether encoders are also compared by condition.
    """
    family = " of a data set and condition" if has_conditions else ""
    return (
        f"Bold: the best. {LEVEL}: the difference to the best in {measure} may be chance (exact McNemar test on the "
        f"same queries, p of {SIGNIFICANCE} or more with Holm's correction for all encoders compared with the "
        f"best{family}). "
        f"Intervals of 95 %: of recalls by Wilson's score, of differences by {RESAMPLES:,} bootstrap samples of the "
        f"queries."
    )
