import numpy as np
import pytest

from progeo.evaluation.significance import holm_adjusted, paired_test, paired_tests


def hits(*counts):
    """Hits of one and another on queries of which these numbers only one, only the other, both and none get right."""
    kinds = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], counts, axis=0).astype(bool)
    return kinds[:, 0], kinds[:, 1]


@pytest.mark.parametrize(
    ("only_one", "only_other", "p"),
    [
        (1, 5, 2 * (1 + 6) / 2**6),
        (5, 1, 2 * (1 + 6) / 2**6),
        (0, 6, 2 / 2**6),
        (3, 3, 1),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (0, 0, 1),
    ],
)
def test_the_exact_test_counts_how_queries_that_one_gets_right_can_be_split(only_one, only_other, p):
    found = paired_test(*hits(only_one, only_other, 20, 14 - only_one - only_other))
    assert (found.num_queries, found.only_one, found.only_other) == (34, only_one, only_other)
    assert found.p == pytest.approx(p)
    assert found.difference == pytest.approx(100 * (only_one - only_other) / 34)


def test_the_interval_of_a_difference_is_that_of_queries_drawn_with_replacement():
    one, other = hits(30, 12, 100, 58)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, 200, 200) for _ in range(4000)]
    means = np.sort([100 * (one[rows].mean() - other[rows].mean()) for rows in drawn])
    found = paired_test(one, other)
    assert (found.low, found.high) == pytest.approx((means[100], means[3900]), abs=0.8)
    assert found.low < found.difference == 9 < found.high
    assert (paired_test(one, one).low, paired_test(one, one).high) == (0, 0)


def test_p_values_are_adjusted_by_the_number_of_those_that_are_not_smaller():
    # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not be below 0.06
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.6, 0.7]) == [1, 1]
    assert holm_adjusted([]) == []


def test_each_encoder_is_compared_with_the_one_named_with_the_correction():
    best, worst = hits(6, 0, 10, 4)
    middle = best.copy()
    middle[:2] = False  # 2 of the 6
    found = paired_tests([worst, best, middle], 1)
    assert found[1] is None
    assert (found[0].only_one, found[0].only_other, found[2].only_other) == (0, 6, 2)
    assert (found[0].p, found[2].p) == (2 / 2**6, 2 / 2**2)
    assert (found[0].p_adjusted, found[2].p_adjusted) == (2 * 2 / 2**6, 0.5)
    assert [found[0].is_significant, found[2].is_significant] == [False, False]
    assert paired_tests([worst, best], 1)[0].is_significant  # alone, 2 / 64 is below 0.05
