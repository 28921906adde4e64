import numpy as np
import pytest

from progeo.features.store import ShardedRows
from progeo.training import mining
from progeo.training.mining import difficult_positives, draw_pool, find_candidates, hardest_negatives, mine

NUM_QUERIES, NUM_DATABASE, DIM = 24, 90, 8


@pytest.fixture
def city():
    """Images of panoramas along a street of 150 m; the last query is far from all others."""
    rng = np.random.default_rng(0)
    query_m, database_m = rng.uniform(0, 150, (NUM_QUERIES, 2)), rng.uniform(0, 150, (NUM_DATABASE, 2))
    query_m[:, 1] /= 15
    database_m[:, 1] /= 15
    query_m[-1] = 1e4
    panoramas = np.array([f"p{number}" for number in rng.integers(0, 30, NUM_QUERIES + NUM_DATABASE)], object)
    return query_m, database_m, panoramas[:NUM_QUERIES], panoramas[NUM_QUERIES:]


def candidates_of(city):
    return find_candidates(
        *city[:2],
        positive_radius_m=10,
        exclusion_radius_m=25,
        query_panoramas=city[2],
        database_panoramas=city[3],
    )


def published_order(order):
    """The entries that OpenIBL chooses of positives whose ranks, by re-ranked distance, are `order`."""
    gaps = [place - rank for place, rank in enumerate(order)]
    ahead = sorted((place for place, gap in enumerate(gaps) if gap < 0), key=lambda place: gaps[place])
    return [order[place] for place in [*ahead, *(place for place, gap in enumerate(gaps) if gap == 0)]]


def published_turn(distances, reranked, positives, excluded, pool, kept, num_negatives, num_positives):
    """The tuple of one query, in the lists of the published sampler."""
    ranking = sorted(range(len(distances)), key=lambda row: distances[row])
    near = [row for row in ranking if row in positives]
    allowed = [row for row in ranking if row not in excluded]
    places = sorted({allowed.index(row) for row in [*pool, *kept]})
    order = sorted(range(len(near[:20])), key=lambda rank: reranked[near[rank]])
    difficult = [near[rank] for rank in published_order(order)][:num_positives]
    return near[0], [allowed[place] for place in places[:num_negatives]], difficult


def test_candidates_are_those_of_a_plain_loop(city):
    found = candidates_of(city)
    query_m, database_m, query_panoramas, database_panoramas = city
    rows = []
    for query in range(NUM_QUERIES):
        away_m = np.linalg.norm(database_m - query_m[query], axis=1)
        positives = [
            row
            for row in range(NUM_DATABASE)
            if away_m[row] <= 10 and database_panoramas[row] != query_panoramas[query]
        ]
        if positives:
            assert found.positives[len(rows)].tolist() == positives
            assert found.excluded[len(rows)].tolist() == np.flatnonzero(away_m <= 25).tolist()
            rows.append(query)
    assert found.queries.tolist() == rows
    assert NUM_QUERIES - 1 not in rows
    few = found.take(np.array([3, 0]))
    assert (few.queries.tolist(), few.positives[1].tolist()) == ([rows[3], rows[0]], found.positives[0].tolist())
    assert few.excluded[0].tolist() == found.excluded[3].tolist()


def test_radii_are_inclusive_and_an_image_is_no_positive_of_itself():
    street_m = np.array([[0.0, 0], [10, 0], [35, 0], [60, 0], [61, 0]])
    radii = {"positive_radius_m": 10, "exclusion_radius_m": 25}
    found = find_candidates(street_m, street_m, **radii, query_rows=np.arange(5))
    assert found.queries.tolist() == [0, 1, 3, 4]
    assert [each.tolist() for each in found.positives] == [[1], [0], [4], [3]]
    assert [each.tolist() for each in found.excluded] == [[0, 1], [0, 1, 2], [2, 3, 4], [3, 4]]
    same = np.array([7, 8, 9, 5, 5])
    found = find_candidates(
        street_m, street_m, **radii, query_panoramas=same.tolist(), database_panoramas=same.tolist()
    )
    assert [each.tolist() for each in found.positives] == [[1], [0]]
    alone = find_candidates(street_m[:1], street_m[2:], **radii)
    assert (alone.queries.dtype, len(alone.queries), alone.positives, alone.excluded) == (np.int64, 0, [], [])


@pytest.mark.parametrize("radii_m", [(0, 25), (30, 25)])
def test_radii_that_cannot_be_are_refused(radii_m):
    with pytest.raises(ValueError, match="`positive_radius_m` must be above 0 and at most `exclusion_radius_m`, got"):
        find_candidates(np.zeros((1, 2)), np.zeros((1, 2)), positive_radius_m=radii_m[0], exclusion_radius_m=radii_m[1])


def test_a_pool_is_a_function_of_its_numbers_and_avoids_what_is_excluded():
    numbers = {"seed": 1, "generation": 2, "epoch": 3, "query": 4}
    excluded = np.array([0, 1, 5, 50, 99])
    pool = draw_pool(excluded, 100, pool=20, **numbers)
    assert pool.tolist() == draw_pool(excluded, 100, pool=20, **numbers).tolist()
    assert (len(set(pool.tolist())), pool.dtype) == (20, np.int64)
    assert pool.tolist() == sorted(pool.tolist())
    assert not set(pool.tolist()) & set(excluded.tolist())
    for name in numbers:
        assert pool.tolist() != draw_pool(excluded, 100, pool=20, **{**numbers, name: 9}).tolist()
    everything = sorted(set(range(100)) - set(excluded.tolist()))
    assert draw_pool(excluded, 100, pool=95, **numbers).tolist() == everything
    assert draw_pool(excluded, 100, pool=1000, **numbers).tolist() == everything
    assert draw_pool(np.arange(100), 100, pool=10, **numbers).tolist() == []


def test_every_candidate_is_drawn_as_often():
    counts = np.zeros(12, int)
    for query in range(2000):
        counts[draw_pool(np.array([2, 3, 11]), 12, pool=3, seed=0, generation=0, epoch=0, query=query)] += 1
    assert counts[[2, 3, 11]].tolist() == [0, 0, 0]
    assert abs(np.delete(counts, [2, 3, 11]) - 2000 / 3).max() < 100  # 4.7 standard deviations


class CountedRows(ShardedRows):
    """Rows that note how many of them are read at once."""

    most = 0

    def take(self, rows):
        self.most = max(self.most, len(rows))
        return super().take(rows)


@pytest.mark.parametrize("kind", ["array", "alike", "files", "small blocks"])
def test_two_turns_are_those_of_the_published_sampler(tmp_path, monkeypatch, city, kind):
    rng = np.random.default_rng(1)
    candidates, kept = candidates_of(city), None
    published_kept = [[] for _ in candidates.queries]
    if kind == "small blocks":
        monkeypatch.setattr(mining, "_BLOCK_VALUES", 200)
    for epoch in range(2):
        every, database = (rng.normal(size=(count, DIM)).astype(np.float32) for count in (NUM_QUERIES, NUM_DATABASE))
        if kind == "alike":  # as those of an untrained network
            every, database = every / 1000 + 1, database / 1000 + 1
        queries = every[candidates.queries]
        distances = np.linalg.norm(queries[:, None] - database, axis=2)
        reranked = rng.random(distances.shape)
        pools = [
            draw_pool(excluded, NUM_DATABASE, pool=12, seed=0, generation=1, epoch=epoch, query=query)
            for query, excluded in zip(candidates.queries.tolist(), candidates.excluded, strict=True)
        ]
        rows = database
        if kind in ("files", "small blocks"):
            rows = CountedRows(tmp_path / str(epoch), num_rows=90, width=DIM, shard_size=40, dtype="float32")
            rows.folder.mkdir()
            for shard in rows.shards:
                rows.write_shard(shard, database[shard * 40 : (shard + 1) * 40])
        mined = mine(
            queries,
            rows,
            candidates,
            pools,
            previous=kept,
            num_negatives=6,
            reranked=lambda positions, reranked=reranked: reranked[positions],
            num_positives=3,
        )
        for query in range(len(queries)):
            positive, negatives, difficult = published_turn(
                distances[query],
                reranked[query],
                candidates.positives[query].tolist(),
                candidates.excluded[query].tolist(),
                pools[query].tolist(),
                published_kept[query],
                6,
                3,
            )
            assert mined.positive[query] == positive
            assert mined.negatives[query].tolist() == negatives
            assert mined.difficult[query].tolist() == difficult
            published_kept[query] = negatives
        if kind in ("files", "small blocks"):
            assert (rows.most < 20) == (kind == "small blocks")
        assert hardest_negatives(distances, pools, previous=kept, count=6).tolist() == mined.negatives.tolist()
        found = difficult_positives(distances, reranked, candidates.positives, pool=20, count=3)
        assert [each.tolist() for each in found] == [each.tolist() for each in mined.difficult]
        if kept is not None:  # some of the first turn stayed, which the second pool does not hold
            both = zip(mined.negatives, pools, strict=True)
            assert any(set(rows.tolist()) - set(pool.tolist()) for rows, pool in both)
        kept = mined.negatives
    assert all(each.dtype == np.int64 for each in (mined.positive, mined.negatives, *mined.difficult))


def test_fewer_negatives_than_asked_are_padded_and_equal_ones_are_ordered_by_row():
    distances = np.array([[1.0, 3, 2, 2, 5], [4, 4, 4, 4, 4], [1, 2, 3, 4, 5]])
    pools = [np.array([3, 1, 2]), np.array([4, 1]), np.empty(0, np.int64)]
    found = hardest_negatives(distances, pools, previous=None, count=3)
    assert found.tolist() == [[2, 3, 1], [1, 4, -1], [-1, -1, -1]]
    again = hardest_negatives(distances, [np.array([0]), np.array([0, 4]), np.array([1])], previous=found, count=4)
    assert again.tolist() == [[0, 2, 3, 1], [0, 1, 4, -1], [1, -1, -1, -1]]
    rectangle = np.array([[3, 1, 2], [4, 1, -1], [-1, -1, -1]])
    assert hardest_negatives(distances, rectangle, previous=None, count=3).tolist() == found.tolist()


def test_difficult_positives_of_hand_made_ranks():
    distances = np.arange(6.0)[None].repeat(4, axis=0)
    reranked = np.array(
        [
            [0.1, 0.2, 0.3, 0.4, 0.0, 9],  # rank 4 comes to the front, the others fall back one rank each
            [0.1, 0.2, 0.3, 0.4, 0.5, 9],  # nothing moves
            [0.5, 0.2, 0.3, 0.4, 0.1, 9],  # ranks 0 and 4 swap
            [0.3, 0.1, 0.2, 0.0, 0.0, 9],  # of two, the second comes to the front
        ]
    )
    positives = [np.arange(5), np.arange(5), np.arange(5), np.array([0, 2])]
    found = difficult_positives(distances, reranked, positives, pool=5, count=3)
    assert [each.tolist() for each in found] == [[4], [0, 1, 2], [4, 1, 2], [2]]
    masks = np.array([np.isin(np.arange(6), rows) for rows in positives])
    of_masks = difficult_positives(distances, reranked, masks, pool=5, count=3)
    assert [each.tolist() for each in of_masks] == [each.tolist() for each in found]
    few = difficult_positives(distances, reranked, positives, pool=4, count=10)
    assert [each.tolist() for each in few] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [2]]


def test_without_reranking_there_are_no_difficult_positives(city):
    candidates = candidates_of(city)
    descriptors = np.random.default_rng(3).normal(size=(NUM_DATABASE, DIM))
    pools = [np.empty(0, np.int64)] * len(candidates.queries)
    mined = mine(
        descriptors[: len(pools)].astype(np.float16), descriptors, candidates, pools, previous=None, num_negatives=2
    )
    assert (mined.negatives == -1).all()
    assert [len(each) for each in mined.difficult] == [0] * len(pools)
