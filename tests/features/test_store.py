import numpy as np
import pytest

from progeo.features.store import ShardedRows, can_be_compared


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(10, 3)).astype(np.float16)


@pytest.fixture
def rows(tmp_path, values):
    """Ten rows in files of four, the second file not written."""
    rows = ShardedRows(tmp_path, num_rows=10, width=3, shard_size=4)
    for shard in (0, 2):
        rows.write_shard(shard, values[list(rows.shard_rows(shard))])
    return rows


def test_what_is_missing_is_known_until_it_is_written(rows, values):
    assert rows.missing_shards() == [1]
    assert rows.shard_rows(1) == range(4, 8)
    rows.write_shard(1, values[4:8])
    assert rows.missing_shards() == []


@pytest.mark.parametrize("missing", [[], [0], [3, 4], [0, 5, 9], [4, 5, 6, 7], list(range(1, 10))])
def test_rows_without_some_are_those_that_stay_in_their_order(missing, rows, values):
    rows.write_shard(1, values[4:8])
    without = rows.without(np.array(missing, np.int64))
    stay = [row for row in range(10) if row not in missing]
    assert len(without) == len(stay)
    assert without.num_bytes == len(stay) * 3 * 2
    np.testing.assert_array_equal(np.concatenate(list(without.parts())), values[stay])
    np.testing.assert_array_equal(without.take(np.arange(len(stay))), values[stay])
    assert without.all_rows(np.array([[*range(len(stay)), -1]])).tolist() == [[*stay, -1]]
    assert without.without(np.array([2])).all_rows(np.array([0])) == [row for row in stay if row != 2][:1]
    assert len(without.complete) == len(rows) == 10


def test_rows_come_in_the_order_asked_for_across_files(rows, values):
    wanted = np.array([9, 0, 8, 3, 0])
    np.testing.assert_array_equal(rows.take(wanted), values[wanted])
    assert rows.take(np.array([], np.int64)).shape == (0, 3)


def damage_last_number(path, content):
    """Replace the last float16, in row 3."""
    path.write_bytes(path.read_bytes()[:-2] + content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "rows_00000.npy is corrupt"),
        (lambda path: path.write_bytes(b""), "rows_00000.npy is corrupt"),
        (lambda path: np.save(path, np.zeros((4, 2), np.float16)), r"float16 \(4, 2\), not float16 \(4, 3\)"),
        (lambda path: np.save(path, np.zeros((4, 3))), r"float64 \(4, 3\), not float16"),
        (lambda path: damage_last_number(path, b"\0\x7e"), "rows_00000.npy holds numbers that are not finite: remove"),
        (lambda path: damage_last_number(path, b"\0\xfc"), "rows_00000.npy holds numbers that are not finite: remove"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused_by_name(rows, content, words):
    content(rows.folder / "rows_00000.npy")
    with pytest.raises(ValueError, match=words):
        rows.take(np.array([1]))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 0], True),
        ([4e18, 0], True),
        ([1.3e19, 0], False),  # the distance of opposite ones has a square above 3.4e38
        ([8e18, 8e18], False),
        ([-1.3e19, 0], False),
        ([np.nan, 0], False),
        ([np.inf, 0], False),
    ],
)
def test_features_without_a_finite_distance_are_known(numbers, expected):
    features = np.array([numbers, [1, 2]], np.float32)
    assert can_be_compared(features).tolist() == [expected, True]
    if not expected and np.isfinite(numbers).all():
        with np.errstate(over="ignore"):
            assert np.isinf(np.square(2 * features[0]).sum())
    assert can_be_compared(np.array([[65504] * 100, [np.inf] * 100], np.float16)).tolist() == [True, False]
