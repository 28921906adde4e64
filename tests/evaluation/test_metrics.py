import numpy as np
import pytest

from progeo.evaluation.metrics import (
    average_precisions,
    chance_recalls,
    errors_of,
    first_of_each_panorama,
    recall_table,
    wilson_interval,
)

# Four queries: correct at rank 1; correct at rank 3; never correct; without any positive.
PREDICTIONS = np.array([[4, 1, 0], [2, 3, 5], [0, 1, 2], [3, 4, 5]])
POSITIVES = [np.array([4]), np.array([5, 9]), np.array([7]), np.array([], np.int64)]


@pytest.mark.parametrize(("missed", "counts", "percents"), [(True, (4, 2), (25, 50)), (False, (3, 1), (100 / 3, 100))])
def test_recalls_by_every_criterion_of_every_group(missed, counts, percents):
    groups = {"all": np.arange(4), "night": np.array([0, 3]), "snow": np.array([], np.int64)}
    found = recall_table(
        PREDICTIONS, {"within 25 m": POSITIVES, "far": [[0]] * 4}, groups, (1, 3), without_positive_missed=missed
    )
    assert [(each.criterion, each.queries, each.n) for each in found] == [
        (criterion, queries, n) for criterion in ("within 25 m", "far") for queries in ("all", "night") for n in (1, 3)
    ]
    assert tuple(each.count for each in found[:4:2]) == counts
    assert tuple(each.percent for each in found[:4:2]) == pytest.approx(percents)
    assert [each.percent for each in found[4:6]] == [25, 50]  # row 0 is first of one and among three of two
    assert all(0 <= each.low <= each.percent <= each.high <= 100 for each in found)


@pytest.mark.parametrize(("found", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (140, 200), (63, 100), (2_999, 3_000)])
def test_an_interval_holds_the_shares_from_which_the_measured_one_is_at_most_196_deviations(found, count):
    low, high = (bound / 100 for bound in wilson_interval(found, count))
    for bound in (low, high):
        deviation = (bound * (1 - bound) / count) ** 0.5
        assert abs(found / count - bound) == pytest.approx(1.959963984540054 * deviation, abs=1e-9)
    assert 0 <= low <= found / count <= high <= 1 and high - low > 0
    assert (low == 0) == (found == 0) and (high == 1) == (found == count)


def test_average_precision_of_hand_made_rows():
    predictions = np.array([[4, 1, 0], [2, 9, 5], [0, 1, 2], [3, 4, 5], [1, 2, 3]])
    positives = [[4], [5, 9], [7], [], [1, 2, 3, 4, 5]]
    found = average_precisions(predictions, [np.array(rows, np.int64) for rows in positives])
    # correct at 1; correct at 2 and 3: (1/2 + 2/3) / 2; nothing; nothing to find; all three that fit of five
    np.testing.assert_allclose(found, [1, (1 / 2 + 2 / 3) / 2, 0, np.nan, 1])


def test_errors_are_those_of_first_predictions_whose_place_is_known():
    distances_m = np.stack([np.append(np.arange(11.0) * 10, np.nan), np.full(12, 1e6)], axis=1)
    found = errors_of(distances_m)
    assert (found.median_m, found.ninetieth_m) == (50, 90)
    assert errors_of(np.full((3, 2), np.nan)) is None


def test_panoramas_are_suppressed_as_published_among_the_first_twelve_times_as_many():
    rng = np.random.default_rng(0)
    panoramas = np.repeat([f"p{number}" for number in range(9)], 12)[rng.permutation(108)]
    ranking = np.stack([rng.permutation(108) for _ in range(40)])
    ranking[::2, :57] = np.flatnonzero(panoramas == "p3")[np.arange(57) % 12]  # so that some lists stay short
    found = first_of_each_panorama(ranking[:, : 5 * 12], panoramas, 5)
    for query, rows in enumerate(ranking.tolist()):
        kept = {}
        for row in rows[: 5 * 12]:
            kept.setdefault(panoramas[row], row)
        expected = list(kept.values())[:5]
        assert found[query].tolist() == expected + [-1] * (5 - len(expected))


def test_of_a_panorama_only_its_best_part_stays():
    places = np.array(["a", "a", "b", "b", "c"])
    predictions = np.array([[1, 0, 3, 2, 4], [4, 3, 2, 1, 0], [0, 1, 0, 1, 0], [0, -1, -1, -1, -1]])
    assert first_of_each_panorama(predictions, places, 2).tolist() == [[1, 3], [4, 3], [0, -1], [0, -1]]


def test_chance_is_the_share_of_draws_that_hold_a_positive():
    # Of 4 images, 2 are drawn in 6 ways: with 1 positive 3 hold it, with 2 only one holds none, with 3 all hold one.
    expected = [0, 100 / 2, 100 * 5 / 6, 100]
    for num_positives, percent in enumerate(expected):
        assert chance_recalls(np.array([num_positives]), 4, (2,)) == {2: pytest.approx(percent)}
    assert chance_recalls(np.arange(4), 4, (2,)) == {2: pytest.approx(sum(expected) / 4)}
    of_each = chance_recalls(np.array([1, 2, 0]), np.array([2, 4, 0]), (1, 2, 3))
    assert of_each == pytest.approx({1: (50 + 50) / 3, 2: (100 + 500 / 6) / 3, 3: (100 + 100) / 3})
    assert chance_recalls(np.array([0, 1]), 4, (1, 4, 50)) == pytest.approx({1: 12.5, 4: 50, 50: 50})


def test_chance_in_a_large_database_is_exact():
    found = chance_recalls(np.array([1, 40]), 2_805_840, (1, 20))
    assert found[1] == pytest.approx(100 * 20.5 / 2_805_840, rel=1e-5)
    no_hit = np.prod([1 - 40 / (2_805_840 - drawn) for drawn in range(20)])
    assert found[20] == pytest.approx(50 * (20 / 2_805_840 + 1 - no_hit), rel=1e-5)
