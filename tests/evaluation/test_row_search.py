import faiss
import numpy as np
import pytest

from progeo.evaluation.row_search import RowSearch
from progeo.evaluation.search import map_index

KINDS = ("Flat", "IVF8,Flat", "IVF8,PQ4x4", "OPQ4,IVF8,PQ4x4", "PCA8,Flat", "HNSW8", "SQ8", "IVF8,SQ8")


@pytest.fixture(scope="module")
def descriptors():
    vectors = np.random.default_rng(0).standard_normal((420, 16)).astype(np.float32)
    return vectors[:400], vectors[400:]


@pytest.mark.parametrize("kind", KINDS)
def test_all_chosen_rows_are_compared_as_the_index_compares_them(kind, descriptors, tmp_path):
    database, queries = descriptors
    index = faiss.index_factory(16, kind)
    index.train(database)
    index.add(database)
    faiss.write_index(index, str(tmp_path / "index"))
    if isinstance(faiss.try_extract_index_ivf(index), faiss.IndexIVF):
        faiss.extract_index_ivf(index).nprobe = 8
    elif kind == "HNSW8":
        index = faiss.IndexFlatL2(16)
        index.add(database)
    squared, everything = index.search(queries, 400)
    chosen = np.sort(np.random.default_rng(1).choice(400, 30, replace=False))
    found = RowSearch(map_index(tmp_path / "index", probes=1)).neighbors_among(chosen, queries, 10)
    for row in range(len(queries)):
        is_chosen = np.isin(everything[row], chosen)
        np.testing.assert_array_equal(found.rows[row], everything[row][is_chosen][:10])
        np.testing.assert_allclose(found.distances[row] ** 2, squared[row][is_chosen][:10], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["Flat", "IVF4,Flat"])
def test_fewer_rows_than_wanted_leave_gaps_and_ties_are_ordered_by_row(kind, descriptors):
    index = faiss.index_factory(16, kind)
    index.train(descriptors[0])
    index.add(np.repeat(descriptors[0][:1], 9, axis=0))
    found = RowSearch(index).neighbors_among(np.array([1, 4, 7]), descriptors[0][:1], 5)
    assert found.rows.tolist() == [[1, 4, 7, -1, -1]]
    assert np.isinf(found.distances[0, 3:]).all()


@pytest.mark.parametrize(
    "kind",
    ["LSH", "RaBitQ", "RaBitQfs", "IVF4,FlatDedup", "IVF4,RQ4x4", "IVF4,LSQ4x4", "IVF4,PRQ2x2x4", "IVF4,PQ4+4"],
)
def test_an_index_that_has_no_euclidean_distances_of_chosen_rows_is_refused(kind, descriptors):
    index = faiss.index_factory(16, kind)
    index.train(descriptors[0])
    index.add(descriptors[0])
    with pytest.raises(ValueError, match=f"An index of the kind {type(index).__name__} cannot be searched in parts"):
        RowSearch(index).neighbors_among(np.arange(20), descriptors[1], 5)
