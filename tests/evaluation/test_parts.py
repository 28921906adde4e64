import faiss
import numpy as np
import pytest

from progeo.evaluation.kinds import add_rows, train_kind
from progeo.evaluation.parts import Part, Parts
from progeo.evaluation.search import nearest_neighbors, refined
from progeo.features.store import ShardedRows

NUM_ROWS, WIDTH = 900, 16
EXACT_WHEN_REFINED = ("IVF8,Flat", "IVF8,RaBitQ", "RR,IVF8,RaBitQ", "IVF8,RaBitQfs", "PCA8,IVF8,SQ8", "SQ8", "LSH")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of small integers, many of which are equal or equally far."""
    values = np.random.default_rng(0).integers(-1, 2, size=(NUM_ROWS, WIDTH)).astype(np.float32)
    values[::7] = values[3]
    stored = ShardedRows(tmp_path_factory.mktemp("rows"), num_rows=NUM_ROWS, width=WIDTH, shard_size=NUM_ROWS)
    stored.write_shard(0, values.astype(np.float16))
    return stored


def parts_of(rows, cuts, *, kind="Flat", removed=(), dtype=np.float16):
    values = rows.take(np.arange(len(rows)))
    trained = None if kind == "Flat" else train_kind(rows, kind)
    parts, removed = [], np.array(removed, np.int64)
    for start, stop in zip((0, *cuts), (*cuts, len(rows)), strict=True):
        index = None
        if trained is not None:
            index = faiss.deserialize_index(faiss.serialize_index(trained))
            add_rows(index, values[start:stop].astype(np.float32))
        here = removed[(removed >= start) & (removed < stop)] - start
        parts.append(Part(values[start:stop].astype(dtype), index, here))
    return Parts(parts)


def exact(rows, queries, count, removed=()):
    """Search the rows that remain by a loop in float64, ties ordered by row."""
    values, remaining = rows.take(np.arange(len(rows))).astype(float), np.setdiff1d(np.arange(len(rows)), removed)
    squared = np.square(values[remaining] - queries[:, None]).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :count]
    return remaining[order], np.sqrt(np.take_along_axis(squared, order, axis=1))


def queries_of(rows, count):
    return np.random.default_rng(1).integers(-1, 2, size=(count, WIDTH)).astype(np.float32)


REMOVED = {
    "none": (),
    "some": range(5, 700, 3),
    "a part": range(300, 310),
    "the first and the last": (0, NUM_ROWS - 1),
    "all but few": range(30, NUM_ROWS),
}


@pytest.mark.parametrize("removed", REMOVED.values(), ids=REMOVED)
@pytest.mark.parametrize("cuts", [(), (300, 310), (1, 2, 899)], ids=str)
@pytest.mark.parametrize("num_queries", [1, 3, 40])
def test_exact_parts_find_what_an_exact_search_of_the_remaining_rows_finds(rows, cuts, removed, num_queries):
    queries = queries_of(rows, num_queries)
    for dtype in (np.float16, np.float32):
        found = parts_of(rows, cuts, removed=removed, dtype=dtype).neighbors(queries, 20)
        expected, distances = exact(rows, queries, 20, removed)
        np.testing.assert_array_equal(found.rows, expected)
        np.testing.assert_array_equal(found.distances, distances.astype(np.float32))


@pytest.mark.parametrize("kind", EXACT_WHEN_REFINED)
def test_compressed_parts_find_the_same_if_all_rows_are_compared(rows, kind):
    queries, removed = queries_of(rows, 20), np.arange(5, 700, 3)
    parts = parts_of(rows, (300, 310), kind=kind, removed=removed)
    found = parts.neighbors(queries, 20, probes=8, refine=NUM_ROWS)
    expected, distances = exact(rows, queries, 20, removed)
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_array_equal(found.distances, distances.astype(np.float32))


@pytest.mark.parametrize("kind", ["IVF8,Flat", "IVF8,RaBitQ", "SQ8", "PQ4x4fs"])
def test_rows_that_are_removed_make_room_for_others_however_many_are_nearer(rows, kind):
    queries = rows.take(np.array([3])).astype(np.float32)
    removed = exact(rows, queries, NUM_ROWS)[0][0, :500]
    found = parts_of(rows, (450,), kind=kind, removed=np.sort(removed)).neighbors(queries, 10, probes=8)
    assert (found.rows >= 0).all()
    assert not np.isin(found.rows, removed).any()


def test_parts_of_one_training_find_what_one_index_of_all_rows_finds(rows):
    queries = queries_of(rows, 20)
    one, several = (parts_of(rows, cuts, kind="IVF8,RaBitQ") for cuts in ((), (200, 201, 640)))
    for refine in (0, 60):
        found, expected = (each.neighbors(queries, 15, probes=3, refine=refine) for each in (several, one))
        np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-6)
        assert (found.rows == expected.rows).mean() > 0.9  # ties at the end of the candidates


def test_refining_sorts_candidates_by_exact_distances(rows):
    queries = queries_of(rows, 20)
    parts = parts_of(rows, (400,), kind="IVF8,RaBitQ")
    expected, distances = exact(rows, queries, NUM_ROWS)
    for refine, least in ((0, 0.0), (60, 0.5), (400, 0.95)):
        found = parts.neighbors(queries, 10, probes=8, refine=refine)
        assert (found.rows == expected[:, :10]).mean() >= least
        if refine:
            of_rows = np.take_along_axis(distances, np.argsort(expected, axis=1), axis=1)
            np.testing.assert_array_equal(
                found.distances, np.take_along_axis(of_rows, found.rows, axis=1).astype(np.float32)
            )


def test_only_the_given_lists_are_visited(rows):
    parts = parts_of(rows, (400,), kind="IVF8,Flat")
    index = train_kind(rows, "IVF8,Flat")
    add_rows(index, rows.take(np.arange(NUM_ROWS)).astype(np.float32))
    of_list = [
        faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number)) for number in (2, 5)
    ]
    found = parts.neighbors(queries_of(rows, 3), NUM_ROWS, lists=np.array([[2, 5]] * 3))
    for each in found.rows:
        assert each[each >= 0].size == sum(map(len, of_list))
        assert set(each[each >= 0].tolist()) == set(np.concatenate(of_list).tolist())


@pytest.mark.parametrize("kind", ["IVF8,Flat", "IVF8,SQ8,RFlat", "RR,IVF8,SQ8,RFlat"])
def test_the_number_of_lists_is_that_of_each_search(rows, kind):
    parts, queries = parts_of(rows, (400,), kind=kind), queries_of(rows, 20)
    few, all_, again = (parts.neighbors(queries, 10, probes=probes, refine=NUM_ROWS).rows for probes in (1, 8, 1))
    assert (few == again).all()
    assert (few != all_).any()
    np.testing.assert_array_equal(all_, exact(rows, queries, 10)[0])


def test_many_queries_that_visit_many_lists_are_searched_by_and_by(rows, monkeypatch):
    parts, queries = parts_of(rows, (300, 310), kind="IVF8,RaBitQ"), queries_of(rows, 50)
    lists = np.random.default_rng(0).integers(0, 8, (50, 3))
    for given in ({"probes": 3}, {"lists": lists}):
        expected = parts.neighbors(queries, 10, refine=60, **given)
        with monkeypatch.context() as context:
            context.setattr("progeo.evaluation.parts._LISTS_AT_ONCE", 3 * 20)
            found = parts.neighbors(queries, 10, refine=60, **given)
        np.testing.assert_array_equal(found.rows, expected.rows)


def test_a_query_that_is_not_finite_finds_nothing(rows):
    queries = np.full((1, WIDTH), np.nan, np.float32)
    for kind in ("Flat", "IVF8,RaBitQ"):
        parts = parts_of(rows, (400,), kind=kind)
        found = (parts.neighbors(queries, 2, probes=8, refine=4), parts.neighbors_among(np.arange(10, 50), queries, 2))
        assert [each.rows.tolist() for each in found] == [[[-1, -1]]] * 2


@pytest.mark.parametrize("kind", ["Flat", "IVF8,RaBitQ", "LSH"])
def test_fewer_rows_than_wanted_leave_gaps(rows, kind):
    parts = parts_of(rows, (450,), kind=kind, removed=np.arange(2, NUM_ROWS))
    found = parts.neighbors(queries_of(rows, 2), 4, probes=8, refine=4)
    assert np.sort(found.rows[:, :2], axis=1).tolist() == [[0, 1]] * 2
    assert (found.rows[:, 2:] == -1).all()
    assert np.isinf(found.distances[:, 2:]).all()
    nothing = parts_of(rows, (450,), kind=kind, removed=np.arange(NUM_ROWS))
    assert (nothing.neighbors(queries_of(rows, 2), 4, probes=8, refine=4).rows == -1).all()


def test_chosen_rows_are_compared_exactly_but_for_removed_ones(rows):
    queries, chosen, removed = queries_of(rows, 3), np.arange(0, NUM_ROWS, 5), np.arange(0, NUM_ROWS, 2)
    for kind in ("Flat", "LSH"):
        found = parts_of(rows, (300, 310), kind=kind, removed=removed).neighbors_among(chosen, queries, 100)
        others = np.setdiff1d(np.arange(NUM_ROWS), np.setdiff1d(chosen, removed))
        expected, distances = exact(rows, queries, 100, others)
        np.testing.assert_array_equal(found.rows[:, :90], expected)
        np.testing.assert_array_equal(found.distances[:, :90], distances.astype(np.float32))
        assert (found.rows[:, 90:] == -1).all()
    nothing = parts_of(rows, (), removed=removed).neighbors_among(removed, queries, 2)
    assert (nothing.rows.tolist(), np.isinf(nothing.distances).all()) == ([[-1, -1]] * 3, True)


def test_rows_are_taken_in_the_given_order(rows):
    chosen = np.array([899, 0, 300, 299, 0, 305])
    np.testing.assert_array_equal(parts_of(rows, (300, 310)).take(chosen), rows.take(chosen))


def test_few_of_many_candidates_are_in_memory_at_once():
    values = np.random.default_rng(0).standard_normal((300, 8448)).astype(np.float32)
    sizes = []

    def take(chosen):
        sizes.append(len(chosen))
        return values[chosen]

    expected = nearest_neighbors([values], values[:40], 300)
    found = refined(expected, values[:40], take=take)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert (sum(sizes), max(sizes) * 8448 <= 2**24) == (40 * 300, True)
