"""Paired tests: whether two encoders differ on the same queries by more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import binomtest

from progeo.evaluation.metrics import CONFIDENCE

RESAMPLES = 2000
SIGNIFICANCE = 0.05
"""A difference with a p-value below this is significant."""


@dataclass(frozen=True)
class PairedTest:
    """Two encoders on the same queries: one, and the other it is compared with."""

    num_queries: int
    only_one: int
    """Number of queries that the one gets right and the other does not."""
    only_other: int
    difference: float
    """Recall of the one minus that of the other, in percentage points."""
    low: float
    """Bounds in percentage points of the 95 % bootstrap interval of the difference, over queries drawn with
    replacement."""
    high: float
    p: float
    """p-value of the exact McNemar test, two-sided: the probability that the queries which only one encoder gets right
    are split at least as unevenly if each is as likely to be one's as the other's."""
    p_adjusted: float
    """The p-value with Holm's correction for all tests that were made together."""

    @property
    def is_significant(self) -> bool:
        """Whether the difference is more than chance, with the correction."""
        return self.p_adjusted < SIGNIFICANCE


def paired_test(hits: np.ndarray, others: np.ndarray, *, seed: int = 0) -> PairedTest:
    """Compare two encoders on the same queries by an exact McNemar test (McNemar, Psychometrika 1947).

    Args:
        hits: whether the one gets each query right, bool (Q,), at least one.
        others: the same of the other.
        seed: random seed of the bootstrap samples.
    """
    count = len(hits)
    only_one, only_other = int((hits & ~others).sum()), int((~hits & others).sum())
    p = float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0
    # The numbers of queries of each kind in a sample are multinomial, so queries need not be drawn one by one.
    shares = np.array([only_one, only_other, count - only_one - only_other]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, RESAMPLES)
    differences = 100 * (drawn[:, 0] - drawn[:, 1]) / count
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return PairedTest(count, only_one, only_other, 100 * (only_one - only_other) / count, low, high, p, p)


def paired_tests(hits: Sequence[np.ndarray], reference: int) -> list[PairedTest | None]:
    """Compare each encoder with the one at `reference`, with Holm's correction; None for that one itself.

    Args:
        hits: of each encoder, whether it gets each query right, bool (Q,), in the same order of queries.
    """
    tests = [None if row == reference else paired_test(each, hits[reference]) for row, each in enumerate(hits)]
    adjusted = iter(holm_adjusted([test.p for test in tests if test is not None]))
    return [None if test is None else replace(test, p_adjusted=next(adjusted)) for test in tests]


def pairwise_tests(hits: Sequence[np.ndarray]) -> dict[tuple[int, int], PairedTest]:
    """Compare each encoder with each one after it, by their numbers, with Holm's correction for all these pairs.

    Args:
        hits: of each encoder, whether it gets each query right, bool (Q,), in the same order of queries.
    """
    pairs = list(combinations(range(len(hits)), 2))
    tests = [paired_test(hits[one], hits[other]) for one, other in pairs]
    adjusted = holm_adjusted([test.p for test in tests])
    return {pair: replace(test, p_adjusted=p) for pair, test, p in zip(pairs, tests, adjusted, strict=True)}


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests by Holm's step-down method (Scand. J. Statist. 1979), in the order given.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may be below one before it, or above 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, row in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[row]))
        adjusted[row] = largest
    return adjusted
