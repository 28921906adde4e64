import numpy as np
import pytest

from progeo.evaluation.predict import open_faiss_index
from progeo.evaluation.search import nearest_neighbors
from progeo.features.store import ShardedRows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    values = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float16)
    stored = ShardedRows(tmp_path_factory.mktemp("rows"), num_rows=600, width=16, shard_size=250)
    for shard in stored.shards:
        stored.write_shard(shard, values[stored.shard_rows(shard)])
    return stored


@pytest.mark.parametrize("kind", ["IVF8,RaBitQ", "LSH"])
def test_a_compressed_index_that_is_refined_finds_more_with_exact_distances(rows, kind, tmp_path):
    queries = rows.take(np.arange(0, 600, 20)).astype(np.float32) + 0.2
    exact = nearest_neighbors(rows.parts(), queries, 10)
    few, default, all_ = (
        open_faiss_index(rows, kind, probes=8, refine=refine, folder=tmp_path) for refine in (10, None, 600)
    )
    found = [index.search(queries, 10)[0] for index in (few, default, all_)]
    recalls = [(each.rows == exact.rows).mean() for each in found]
    assert (recalls[0] < recalls[1] <= recalls[2], recalls[2]) == (True, 1)
    np.testing.assert_array_equal(found[2].distances, exact.distances)
    assert default.facts == {"index refined": "the best 200 rows are compared exactly"}


def test_an_index_without_euclidean_distances_is_refused_unless_it_is_refined(rows, tmp_path):
    with pytest.raises(ValueError, match="`refine` must be above 0 for LSH"):
        open_faiss_index(rows, "LSH", probes=1, refine=0, folder=tmp_path)
    plain = open_faiss_index(rows, "IVF8,Flat", probes=8, refine=None, folder=tmp_path)
    queries = rows.take(np.arange(5)).astype(np.float32)
    assert (plain.search(queries, 1)[0].rows.ravel().tolist(), plain.facts) == ([0, 1, 2, 3, 4], {})
