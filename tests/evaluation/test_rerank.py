import numpy as np
import pytest

from progeo.evaluation import rerank
from progeo.evaluation.rerank import build_reranker, k_reciprocal
from progeo.features.store import ShardedRows


def plain(queries, database, k1, k2, weight):
    """Re-ranked distances by sets and loops over a matrix of all pairs, as published."""
    images = np.concatenate([queries, database]).astype(np.float64)
    num = len(images)
    distances = ((images[:, None] - images) ** 2).sum(axis=2) ** 2
    distances /= distances.max(axis=1, keepdims=True)
    ranking = [sorted(range(num), key=lambda other: distances[row, other]) for row in range(num)]

    def mutual(row, count):
        return {other for other in ranking[row][:count] if row in ranking[other][:count]}

    weights = np.zeros((num, num))
    for row in range(num):
        neighbors = mutual(row, k1 + 1)
        expanded = set(neighbors)
        for other in neighbors:
            more = mutual(other, int(np.around(k1 / 2)) + 1)
            if len(more & neighbors) > 2 / 3 * len(more):
                expanded |= more
        chosen = sorted(expanded)
        weights[row, chosen] = np.exp(-distances[row, chosen]) / np.exp(-distances[row, chosen]).sum()
    if k2 > 1:
        weights = np.stack([weights[ranking[row][:k2]].mean(axis=0) for row in range(num)])
    found = np.empty((len(queries), len(database)))
    for query in range(len(queries)):
        for image in range(len(database)):
            overlap = np.minimum(weights[query], weights[len(queries) + image]).sum()
            jaccard = 1 - overlap / (2 - overlap)
            original = distances[query, len(queries) + image]
            found[query, image] = jaccard * (1 - weight) + original * weight
    return found


@pytest.fixture(scope="module")
def descriptors():
    """Descriptors of length 1 around 12 places."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 16))[rng.integers(0, 12, 90)] + 0.7 * rng.normal(size=(90, 16))
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    return images[:25], images[25:]


SETTINGS = [(20, 1, 0.1), (25, 1, 0.0), (20, 6, 0.3), (5, 9, 1.0), (7, 2, 0.5), (200, 3, 0.3)]


@pytest.mark.parametrize(("k1", "k2", "weight"), SETTINGS)
def test_distances_are_those_of_plain_loops(descriptors, k1, k2, weight):
    found = k_reciprocal(*descriptors, k1=k1, k2=k2, weight=weight)
    assert (found.shape, found.dtype) == ((25, 65), np.float32)
    np.testing.assert_allclose(found, plain(*descriptors, k1, k2, weight), atol=2e-6)


class CountedRows(ShardedRows):
    """Rows that note how many of them are read at once."""

    most = 0

    def take(self, rows):
        self.most = max(self.most, len(rows))
        return super().take(rows)


@pytest.mark.parametrize("kind", ["one block", "small blocks"])
def test_distances_do_not_depend_on_where_descriptors_are_stored_and_on_blocks(
    descriptors, tmp_path, monkeypatch, kind
):
    queries, database = descriptors
    if kind == "small blocks":
        monkeypatch.setattr(rerank, "_BLOCK_VALUES", 200)
        monkeypatch.setattr(rerank, "_MAX_BLOCK", 7)
    rows = CountedRows(tmp_path, num_rows=66, width=16, shard_size=30, dtype="float32")
    stored = np.insert(database, 40, queries[0], axis=0)
    for shard in rows.shards:
        rows.write_shard(shard, stored[shard * 30 : (shard + 1) * 30])
    rows = rows.without(np.array([40]))
    found = k_reciprocal(queries, rows, k1=7, k2=2, weight=0.3)
    assert (rows.most < 30) == (kind == "small blocks")
    expected = plain(queries, database, 7, 2, 0.3)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    some = np.array([20, 3, 4])
    reranker = build_reranker(queries, database, k1=7, k2=2, weight=0.3)
    np.testing.assert_allclose(reranker.distances_of(some), expected[some], atol=2e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_nearest_images_are_sorted_and_those_without_common_neighbors_by_descriptor(descriptors, weight):
    queries, database = descriptors
    nearest = build_reranker(queries, database, k1=4, k2=1, weight=weight).nearest(60)
    distances = plain(queries, database, 4, 1, weight)
    original = np.linalg.norm(queries[:, None] - database, axis=2)
    order = np.lexsort((original, np.round(distances, 6)))[:, :60]
    assert nearest.rows.tolist() == order.tolist()
    np.testing.assert_allclose(nearest.distances, np.take_along_axis(distances, order, axis=1), atol=2e-6)
    assert (nearest.distances[:, 40] == 1).all() == (weight == 0)  # ties, which the descriptors order
    assert build_reranker(queries, database[:5], k1=4, k2=1, weight=weight).nearest(60).rows.shape == (25, 5)


def test_equal_images_have_finite_distances():
    same = np.ones((30, 4), np.float32)
    assert (k_reciprocal(same[:2], same[2:], k1=5, k2=1, weight=0.5) <= 1).all()
    weights = build_reranker(same[:2], same[2:], k1=5, k2=1, weight=0.5).encodings
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)  # each is a neighbor of itself at least
    one = k_reciprocal(same[:1], same[1:2], k1=20, k2=6, weight=0.5)
    assert one.tolist() == [[0]]


def test_images_of_the_database_are_re_ranked_as_queries_among_the_same_images_are(descriptors):
    how = {"k1": 6, "k2": 3, "weight": 0.3}
    alone = build_reranker(np.empty((0, 16), np.float32), np.concatenate(descriptors), **how)
    found = alone.distances_of(np.arange(25))
    np.testing.assert_allclose(found[:, 25:], k_reciprocal(*descriptors, **how), atol=1e-6)
