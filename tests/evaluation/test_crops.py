import numpy as np
import pytest

from progeo.evaluation.crops import nearest_of_crops, votes_of_crops


def plain(rows, squared, count, *, vote):
    """Query by query, crop by crop, as the field's benchmark describes it."""
    kept = []
    for found, distances in zip(rows.tolist(), squared.tolist(), strict=True):
        pairs = [
            [distance, crop, rank, row]
            for crop, line in enumerate(found)
            for rank, (row, distance) in enumerate(zip(line, distances[crop], strict=True))
        ]
        if vote:
            for n in (1, 5, 10):
                among = [row for line in found for row in line[:n]]
                for pair in pairs:
                    if pair[2] < n and among.count(pair[3]) > 1:
                        pair[0] -= 0.01 * among.count(pair[3]) / n
        in_order = dict.fromkeys(row for _, _, _, row in sorted(pairs) if row >= 0)
        kept.append((list(in_order) + [-1] * count)[:count])
    return kept


@pytest.mark.parametrize(("merge", "vote"), [(nearest_of_crops, False), (votes_of_crops, True)])
def test_crops_are_merged_as_a_plain_loop_merges_them(merge, vote):
    rng = np.random.default_rng(0)
    rows = np.stack([[rng.permutation(30)[:12] for _ in range(5)] for _ in range(20)])
    squared = np.sort(rng.random((20, 5, 12)) * 0.05, axis=2)
    before = squared.copy()
    assert merge(rows, squared, 10).tolist() == plain(rows, squared, 10, vote=vote)
    assert (squared == before).all()


def test_votes_bring_forward_what_several_crops_found():
    rows = np.array([[[1, 9, 9], [2, 9, 9], [2, 9, 9], [3, 9, 9], [4, 9, 9]]])
    squared = np.array([[[0.10, 9, 9], [0.11, 9, 9], [0.12, 9, 9], [0.3, 9, 9], [0.4, 9, 9]]])
    assert nearest_of_crops(rows, squared, 3).tolist() == [[1, 2, 3]]
    assert votes_of_crops(rows, squared, 3).tolist() == [[2, 1, 3]]


def test_what_no_crop_found_is_no_prediction():
    rows, squared = np.array([[[7, -1], [7, 3]]]), np.array([[[0.1, np.inf], [0.2, 0.3]]])
    assert nearest_of_crops(rows, squared, 4).tolist() == [[7, 3, -1, -1]]
    assert votes_of_crops(rows, squared, 4).tolist() == [[7, 3, -1, -1]]
