"""Candidates are sorted by inliers; what cannot be matched follows as it was."""

import numpy as np
import pytest
import torch

from progeo.verification.matchers import Matcher, Pair
from progeo.verification.rerank import Candidates, rerank


class Number:
    num_bytes = 2**20

    def __init__(self, value):
        self.value = value


class KnownMatcher(Matcher):
    """Finds as many inliers as a table says for the numbers that the pixels of two images hold."""

    name = "known"

    def __init__(self, table):
        self.table, self.matched = table, []

    def prepare(self, pixels):
        return Number(int(pixels))

    def match(self, query, candidate):
        self.matched.append((query.value, candidate.value))
        return Pair(self.table.get((query.value, candidate.value), 0), np.zeros((0, 4)))


def candidates(gone=(), prepared=None):
    def prepare(row):
        if prepared is not None:
            prepared.append(row)
        if row in gone:
            raise OSError(f"no image {row}")
        return Number(row)

    return Candidates(prepare)


def reranked(table, rows, *, gone=(), top=3, query=torch.tensor, **options):
    found = rerank(KnownMatcher(table), query, candidates(gone), np.array(rows), top=top, **options)
    return np.take_along_axis(np.array(rows), found.order, axis=1).tolist(), found


def test_candidates_are_sorted_by_inliers_and_ties_keep_their_order():
    rows, found = reranked({(0, 12): 9, (0, 11): 9, (0, 10): 2, (1, 10): 1}, [[10, 11, 12, 13], [12, 11, 10, 13]])
    assert rows == [[11, 12, 10, 13], [10, 12, 11, 13]]
    assert found.inliers.tolist() == [[9, 9, 2, -1], [1, 0, 0, -1]]
    assert found.num_pairs == 6


def test_candidates_whose_images_are_gone_follow_those_that_were_matched():
    rows, found = reranked({(0, 12): 4}, [[10, 11, 12, 13]], gone={10})
    assert rows == [[12, 11, 10, 13]]
    assert found.inliers.tolist() == [[4, 0, -1, -1]]
    assert found.verified.tolist() == [True]


def test_a_query_without_candidates_or_pixels_stays_as_it_is():
    def query(number):
        if number == 1:
            raise ValueError("unreadable")
        return torch.tensor(number)

    rows, found = reranked({(0, 11): 4, (1, 11): 5}, [[10, -1], [10, 11], [-1, -1]], query=query)
    assert rows == [[10, -1], [10, 11], [-1, -1]]
    assert found.verified.tolist() == [True, False, False]


def test_pairs_are_kept_for_the_first_ranks_by_new_rank():
    _, found = reranked({(0, 11): 7, (0, 12): 5}, [[10, 11, 12]], num_kept=2)
    assert {key: pair.inliers for key, pair in found.pairs.items()} == {(0, 0): 7, (0, 1): 5}


def test_each_candidate_is_prepared_once_for_many_queries():
    prepared = []
    rows = np.tile(np.arange(5), (100, 1))
    found = rerank(KnownMatcher({}), torch.tensor, candidates(prepared=prepared), rows, top=5)
    assert sorted(prepared) == [0, 1, 2, 3, 4]
    assert found.num_pairs == 500


@pytest.mark.parametrize("rows", [np.arange(1000).reshape(50, 20)])
def test_memory_of_candidates_is_bounded(rows):
    prepared = []
    images = candidates(prepared=prepared)
    rerank(KnownMatcher({}), torch.tensor, images, rows, top=20)
    assert len(prepared) == 1000
    assert len(images._kept) == 256  # of 1 MiB each
