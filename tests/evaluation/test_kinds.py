import tracemalloc

import faiss
import numpy as np
import pytest

from progeo.evaluation.kinds import (
    IndexKind,
    Restored,
    add_rows,
    check_refine,
    default_kind,
    default_refine,
    train_kind,
    training_size,
)
from progeo.features.store import ShardedRows


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    values = np.random.default_rng(0).standard_normal((1500, 16)).astype(np.float32)
    stored = ShardedRows(tmp_path_factory.mktemp("rows"), num_rows=1500, width=16, shard_size=1500, dtype="float32")
    stored.write_shard(0, values)
    return stored


@pytest.mark.parametrize(
    ("num_rows", "width", "kind"),
    [
        (1, 256, IndexKind("Flat", 1, 0)),
        (199_999, 256, IndexKind("Flat", 1, 0)),
        (200_000, 256, IndexKind("IVF1024,RaBitQ", 256, 200)),
        (1_000_000, 256, IndexKind("IVF2048,RaBitQ", 512, 200)),
        (5_000_000, 256, IndexKind("IVF4096,RaBitQ", 1024, 200)),
        (41_000_000, 256, IndexKind("IVF16384,RaBitQ", 4096, 200)),
        (41_000_000, 8448, IndexKind("IVF512,RaBitQ", 128, 200)),
        (200_000, 2**22, IndexKind("IVF1,RaBitQ", 1, 200)),
    ],
)
def test_many_rows_are_compressed_in_lists_of_which_a_quarter_is_visited(num_rows, width, kind):
    assert default_kind(num_rows, width) == kind


@pytest.mark.parametrize(
    ("num_rows", "width", "num_lists", "size"),
    [
        (1000, 256, 16, 1000),
        (10**7, 256, 1024, 2**17),
        (10**7, 256, 4096, 2**18),
        (10**9, 256, 2**20, 2**19),
        (10**7, 8448, 1, 15_887),
    ],
)
def test_training_takes_a_bounded_number_of_rows_and_bytes(num_rows, width, num_lists, size):
    assert training_size(num_rows, width, num_lists) == size


@pytest.mark.parametrize(
    ("kind", "refine"),
    [
        *((kind, 0) for kind in ("Flat", "IVF8,Flat", "HNSW8", "IVF8,PQ4x4fs,RFlat", "RR,IVF8,Flat")),
        *((kind, 200) for kind in ("IVF8,RaBitQ", "SQ8", "HNSW8,SQ8", "PCA8,Flat", "RR,PCA8,IVF8,PQ4x4", "LSH")),
    ],
)
def test_an_index_that_stores_codes_is_refined(rows, kind, refine):
    assert default_refine(train_kind(rows, kind)) == refine


def test_lsh_is_refused_without_refining(rows):
    check_refine(train_kind(rows, "LSH"), 1)
    check_refine(train_kind(rows, "SQ8"), 0)
    with pytest.raises(ValueError, match="`refine` must be above 0 for LSH"):
        check_refine(train_kind(rows, "LSH"), 0)


@pytest.mark.parametrize(
    "kind",
    [
        "IVF8,Flat",
        "IVF8,RaBitQ",
        "IVF8,SQ8",
        "IVF8,PQ4x4",
        "RR,PCA8,IVF8,Flat",
        "IVF8,RaBitQfs",
        "IVF8_HNSW4,Flat",
        "SQ8",
    ],
)
def test_rows_are_in_the_lists_in_which_faiss_would_put_them(rows, kind):
    index, values = train_kind(rows, kind), rows.take(np.arange(1500))
    assert (index.is_trained, index.ntotal) == (True, 0)
    expected = faiss.deserialize_index(faiss.serialize_index(index))
    expected.add(values)
    for start in range(0, 1500, 600):
        add_rows(index, values[start : start + 600])
    assert index.ntotal == 1500
    for each in (index, expected):
        if isinstance(faiss.try_extract_index_ivf(each), faiss.IndexIVF):
            faiss.extract_index_ivf(each).nprobe = 2
    for mine, theirs in zip(index.search(values[:50], 30), expected.search(values[:50], 30), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("kind", ["IVF8,RaBitQ", "RR,PCA8,IVF8,PQ4x4", "IVF8,SQ8"])
def test_the_same_rows_train_the_same_index(rows, kind):
    first, second = (faiss.serialize_index(train_kind(rows, kind)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_training_holds_few_rows_once(tmp_path):
    rows = ShardedRows(tmp_path, num_rows=3000, width=1024, shard_size=100, dtype="float32")
    values = np.random.default_rng(0).standard_normal((3000, 1024)).astype(np.float32)
    for shard in rows.shards:
        rows.write_shard(shard, values[rows.shard_rows(shard)])
    tracemalloc.start()
    train_kind(rows, "IVF4,SQ8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * values.nbytes


@pytest.mark.parametrize("kind", ["Flat", "IVF8,Flat", "HNSW8", "RR,IVF8,Flat"])
def test_an_index_restores_the_rows_that_it_stores(rows, kind):
    index, values = train_kind(rows, kind), rows.take(np.arange(1500))
    add_rows(index, values)
    restored = Restored(index)
    assert (len(restored), restored.shape) == (1500, (1500, 16))
    np.testing.assert_allclose(restored[np.array([7, 1400, 0])], values[[7, 1400, 0]], atol=1e-6)
    np.testing.assert_allclose(restored[1490:], values[1490:], atol=1e-6)


@pytest.mark.parametrize("kind", ["LSH", "RaBitQ", "IVF8,RaBitQ", "IVF8,RaBitQfs", "PCA8,LSH"])
def test_an_index_that_restores_no_rows_is_refused(rows, kind):
    index = train_kind(rows, kind)
    add_rows(index, rows.take(np.arange(1500)))
    with pytest.raises(ValueError, match="does not restore its rows: build it anew"):
        Restored(index)
