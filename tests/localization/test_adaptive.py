"""Which photos to verify: by hand, and never many fewer correct ones than the better of none and all."""

import numpy as np
import pytest

from progeo.localization.adaptive import best_threshold, choose_photos, is_uncertain


@pytest.mark.parametrize(
    ("confidences", "before", "after", "threshold"),
    [
        ([0.1, 0.3, 0.6, 0.9], "0011", "1111", 0.75),  # verifying 2, 3 or 4 photos gives as many: 3
        ([0.9, 0.1, 0.6, 0.3], "1010", "1111", 0.75),
        ([0.1, 0.3, 0.6, 0.9], "0011", "1100", 0.45),
        ([0.1, 0.3, 0.6, 0.9], "0000", "0001", 1.0),
        ([0.1, 0.3, 0.6, 0.9], "1111", "0111", 0.0),
        ([0.1, 0.3, 0.6, 0.9], "0101", "0101", 0.0),
        ([0.5, 0.5, 0.5, 0.9], "0011", "1100", 0.7),  # the three are verified all, or none
        ([0.5, 0.5, 0.5, 0.9], "0111", "1001", 0.0),
    ],
)
def test_the_threshold_is_the_middle_of_those_that_give_most_correct_matches(confidences, before, after, threshold):
    outcomes = (np.array([each == "1" for each in outcome]) for outcome in (before, after))
    assert best_threshold(np.array(confidences), *outcomes) == pytest.approx(threshold)


def drawn(seed, count, strength):
    """Confidences, and outcomes of an encoder that is as certain as it says, and of matching that is 80 % correct."""
    rng = np.random.default_rng(seed)
    confidences = rng.beta(strength, 1, count)
    return confidences, rng.random(count) < confidences, rng.random(count) < 0.8


@pytest.mark.parametrize(("strength", "share"), [(0.2, (0.7, 1.0)), (2.0, (0.4, 0.8)), (40.0, (0.0, 0.15))])
def test_the_weaker_the_encoder_the_more_photos_are_verified(strength, share):
    confidences, before, after = drawn(0, 2000, strength)
    choice = choose_photos(confidences, before, after)
    assert share[0] <= choice.is_verified.mean() <= share[1]
    others, before, after = drawn(1, 5000, strength)
    adaptive = np.where(others < choice.below, after, before).mean()
    assert adaptive > max(before.mean(), after.mean()) - 0.002


def test_nothing_is_verified_where_matching_does_not_help():
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.9
    choice = choose_photos(rng.random(400), before, before & (rng.random(400) < 0.9))
    assert choice.below == 0
    assert not choice.is_verified.any()


@pytest.mark.parametrize(("num_better", "num_worse", "below"), [(2, 0, 1.0), (1, 0, 0.0), (4, 1, 1.0), (3, 1, 0.0)])
def test_verification_is_on_only_for_a_gain_beyond_chance(num_better, num_worse, below):
    # Sign tests: 1/4, 1/2, 6/32 = 0.19 and 5/16 = 0.31.
    before, after = np.zeros((2, 40), bool)
    after[:num_better] = before[num_better : num_better + num_worse] = True
    choice = choose_photos(np.full(40, 0.5), before, after)
    assert (choice.below, choice.is_verified.sum()) == (below, 40 * below)


def test_photos_without_a_confidence_are_verified_by_no_threshold_and_certain_ones_by_that_of_all():
    confidences = np.array([0.4, 1.0, np.nan])
    assert [is_uncertain(confidences, below).tolist() for below in (0.0, 0.5, 1.0)] == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
    ]


@pytest.mark.parametrize("seed", [3, 4, 21])
def test_nothing_is_verified_where_a_threshold_gains_by_chance_only(seed):
    rng = np.random.default_rng(seed)
    confidences, before, after = rng.random(100), rng.random(100) < 0.8, rng.random(100) < 0.8
    assert best_threshold(confidences, before, after) > 0
    assert choose_photos(confidences, before, after).below == 0


def test_everything_is_verified_where_confidence_does_not_say_which_matching_helps():
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.5
    choice = choose_photos(rng.random(400), before, before | (rng.random(400) < 0.6))
    assert choice.below > 0.9
    assert choice.is_verified.mean() > 0.9
