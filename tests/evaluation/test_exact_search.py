import faiss
import numpy as np
import pytest
import torch

from progeo.evaluation import exact_search, search
from progeo.evaluation.exact_search import blocks
from progeo.evaluation.search import nearest_neighbors, squared_distances

NUM_ROWS, NUM_QUERIES, WIDTH = 700, 24, 48
DRAWN = np.random.default_rng(0)
BASE = DRAWN.normal(size=(NUM_ROWS, WIDTH)).astype(np.float32)
QUERIES = DRAWN.normal(size=(NUM_QUERIES, WIDTH)).astype(np.float32)
COPIES = BASE[DRAWN.integers(0, 20, NUM_ROWS)]
SETS = {
    "normal": (QUERIES, BASE),
    "copies": (COPIES[:NUM_QUERIES], COPIES),
    "nearly copies": (COPIES[:NUM_QUERIES], COPIES + np.float32(1e-6) * BASE),
    "nearly one point": (100 + np.float32(1e-3) * QUERIES, 100 + np.float32(1e-3) * BASE),
    "zero": (np.zeros_like(QUERIES), np.zeros_like(BASE)),
    "some zero or constant": (
        QUERIES,
        np.where(np.arange(NUM_ROWS)[:, None] % 3, BASE, np.arange(NUM_ROWS)[:, None] % 2),
    ),
    "huge": (QUERIES * np.float32(1e18), BASE * np.float32(1e18)),
    "squares overflow": (QUERIES * np.float32(1e19), BASE * np.float32(1e19)),
    "squares overflow, differences do not": (
        np.full((NUM_QUERIES, WIDTH), np.r_[np.linspace(2e18, 2.2e18, 4), np.linspace(2.6e18, 2.72e18, 20)][:, None]),
        np.linspace(2.3e18, 4.1e18, NUM_ROWS)[:, None] + 1e16 * BASE,
    ),
    "squares underflow": (QUERIES * np.float32(1e-21), BASE * np.float32(1e-21)),
    "all lengths": (
        QUERIES,
        BASE * np.float32(10) ** np.arange(-18, 18)[np.arange(NUM_ROWS) % 36, None].astype(np.float32),
    ),
    "farthest first": (
        np.repeat(QUERIES[:1], NUM_QUERIES, axis=0),
        BASE[np.argsort(-np.linalg.norm(BASE - QUERIES[0], axis=1))],
    ),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("at_once", [NUM_ROWS, 97])
def test_products_find_exactly_what_a_direct_comparison_finds(name, at_once, monkeypatch):
    monkeypatch.setattr(exact_search, "_QUERIES_AT_ONCE", 20)
    monkeypatch.setattr(exact_search, "_FIRST_PAIRS", 1)
    queries, database = (np.ascontiguousarray(each, np.float32) for each in SETS[name])
    found = nearest_neighbors((database[at : at + at_once] for at in range(0, NUM_ROWS, at_once)), queries, 10)
    for row, query in enumerate(queries):
        squared, expected = faiss.knn(query[None], database, 10)  # of one query, which faiss compares directly
        np.testing.assert_array_equal(found.rows[row], expected[0])
        np.testing.assert_array_equal(found.distances[row], np.sqrt(np.where(expected[0] < 0, np.inf, squared[0])))


@pytest.mark.parametrize("num_queries", [1, 15, 19])
def test_equal_descriptors_of_great_width_are_at_distance_0_in_the_order_of_their_rows(num_queries):
    drawn = np.random.default_rng(0).normal(size=(3, 8448)).astype(np.float32)
    database = drawn[np.arange(60) % 3]
    found = nearest_neighbors([database[:25], database[25:]], database[:num_queries], 20)
    for row in range(num_queries):
        assert found.rows[row].tolist() == list(range(row % 3, 60, 3))
    assert (found.distances == 0).all()


@pytest.mark.parametrize("name", ["normal", "copies", "nearly one point", "zero"])
def test_most_pairs_are_excluded_also_where_descriptors_are_nearly_equal(name, monkeypatch):
    compared, squared_of_pairs = [], exact_search.squared_of_pairs

    def counted(queries, block, of, rows):
        compared.append(len(of))
        return squared_of_pairs(queries, block, of, rows)

    monkeypatch.setattr(exact_search, "squared_of_pairs", counted)
    monkeypatch.setattr(exact_search, "_FIRST_PAIRS", 1)
    queries, database = SETS[name]
    nearest_neighbors([database], queries, 1)
    assert sum(compared) < NUM_QUERIES * NUM_ROWS / 3


def test_neighbors_are_exact_where_torch_rounds_factors_of_products(monkeypatch):
    def rounded(left, right, *, out):
        out.copy_((left.bfloat16() @ right.bfloat16()).float())

    monkeypatch.setattr(exact_search, "_FIRST_PAIRS", 1)
    queries, database = QUERIES + 10, BASE + 10
    expected = nearest_neighbors([database], queries, 10)
    monkeypatch.setattr(torch, "mm", rounded)
    precision = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        found = nearest_neighbors([database], queries, 10)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = precision
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_what_is_not_finite_is_no_neighbor_and_hides_no_other(monkeypatch):
    monkeypatch.setattr(exact_search, "_FIRST_PAIRS", 1)
    database = BASE.copy()
    database[:100], database[200], database[300, 3] = np.nan, np.inf, -np.inf
    queries = QUERIES.copy()
    queries[0], queries[1, 2] = np.nan, np.inf
    found = nearest_neighbors([database], queries, NUM_ROWS)
    assert (found.rows[:2] == -1).all()
    readable = np.delete(np.arange(100, NUM_ROWS), [100, 200])
    for rows in found.rows[2:]:
        assert sorted(rows[rows >= 0].tolist()) == readable.tolist()
    assert np.isinf(found.distances[found.rows < 0]).all()


@pytest.mark.parametrize("num_queries", [None, 1, 1000])
def test_blocks_hold_all_rows_in_order_as_float32(num_queries):
    values = np.arange(9000, dtype=np.float16)[:, None] * np.ones((1, 3), np.float16)
    values.flags.writeable = False
    parts = [values[:8500], values[8500:8501], values[8501:].astype(np.float32)]
    found = [block.copy() for block in blocks(parts, num_queries=num_queries)]
    assert {block.dtype for block in found} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(found), values)
    sizes = [len(block) for block in found]
    assert sizes == (
        [64, 64, 128, 256, 512, 1024, 2048, 4096, 308, 1, 499] if num_queries == 1000 else [8192, 308, 1, 499]
    )


def test_memory_of_a_gpu_is_taken_once_for_all_parts_and_searches(monkeypatch):
    made = []

    class Resources:
        def __init__(self):
            made.append(self)

        def setTempMemory(self, _num_bytes):
            pass

    monkeypatch.setattr(search, "_GPU", search._Gpu())
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", lambda resources, *given: (made.index(resources), faiss.knn(*given))[1])
    pairwise = lambda resources, *given: (made.index(resources), faiss.pairwise_distances(*given))[1]  # noqa: E731
    monkeypatch.setattr(faiss, "pairwise_distance_gpu", pairwise)
    for _ in range(2):
        found = nearest_neighbors((BASE[at : at + 100] for at in range(0, NUM_ROWS, 100)), QUERIES, 5)
        squared = squared_distances(QUERIES, BASE)
        assert (found.rows == np.argsort(squared, axis=1)[:, :5]).all()
    assert len(made) == 1


@pytest.mark.gpu
def test_a_gpu_finds_the_neighbors_that_the_cpu_finds(monkeypatch):
    on_gpu = nearest_neighbors([BASE[:300], BASE[300:]], QUERIES, 10)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    on_cpu = nearest_neighbors([BASE], QUERIES, 10)
    np.testing.assert_array_equal(on_gpu.rows, on_cpu.rows)
    np.testing.assert_allclose(on_gpu.distances, on_cpu.distances, rtol=1e-5)
