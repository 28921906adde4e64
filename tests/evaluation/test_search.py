import os
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pytest

from progeo.evaluation.search import (
    check_searchable,
    distances_of,
    index_neighbors,
    index_path,
    load_index,
    map_index,
    nearest_neighbors,
    open_or_build_index,
    save_index,
)
from progeo.features.store import ShardedRows
from progeo.files import file_digest


@pytest.fixture
def database(tmp_path):
    """3,000 descriptors around 40 centers, in files of 1,000."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 32))[rng.integers(0, 40, 3000)] + 0.3 * rng.normal(size=(3000, 32))
    rows = ShardedRows(tmp_path, num_rows=3000, width=32, shard_size=1000, dtype="float32")
    for shard in range(3):
        rows.write_shard(shard, values[rows.shard_rows(shard)].astype(np.float32))
    return rows


@pytest.mark.parametrize(
    ("kind", "least", "max_bytes"),
    [
        ("Flat", 1.0, 400_000),
        ("IVF32,Flat", 0.99, 430_000),
        ("SQ8", 0.95, 110_000),
        ("PQ16x4fs", 0.2, 70_000),
        ("IVF16,PQ16x4fs", 0.2, 110_000),
        ("HNSW16", 0.95, 900_000),
        ("PCA16,Flat", 0.3, 210_000),
        ("PCAW16,Flat", 0.2, 210_000),
    ],
)
def test_an_index_finds_what_an_exact_search_finds_and_is_kept(database, kind, least, max_bytes):
    queries = database.take(np.arange(0, 3000, 50)) + 0.01
    exact = nearest_neighbors(database.parts(), queries, 10)
    found = index_neighbors(open_or_build_index(database, kind, probes=8), queries, 10)
    same = np.mean([len(set(mine) & set(theirs)) / 10 for mine, theirs in zip(found.rows, exact.rows, strict=True)])
    assert same >= least
    assert (found.rows[:, 0] == exact.rows[:, 0]).mean() >= least
    written = index_path(database, kind).stat()
    assert written.st_size < max_bytes
    again = index_neighbors(open_or_build_index(database, kind, probes=8), queries, 10)
    assert again.rows.tolist() == found.rows.tolist()
    assert index_path(database, kind).stat().st_mtime_ns == written.st_mtime_ns


def test_more_probes_find_more(database):
    queries = database.take(np.arange(0, 3000, 50)) + 0.3
    exact = nearest_neighbors(database.parts(), queries, 10).rows
    one, all_ = (
        index_neighbors(open_or_build_index(database, "IVF32,Flat", probes=n), queries, 10).rows for n in (1, 32)
    )
    assert (all_ == exact).all()
    assert (one != exact).any()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nonsense", "dimensions: could not parse index string nonsense"),
        ("IVF0,Flat", "it would have no list"),
        *(
            (kind, "a number in it is too small")
            for kind in ("HNSW0", "HNSW1,Flat", "NSG0", "PQ4x0", "IVF4_HNSW0,Flat")
        ),
        ("IDMap,Flat", "its rows have numbers of their own"),
        ("PQ7", "should be a multiple of the number of subquantizers"),
        ("IVF5000,Flat", "should be at least as large as number of clusters"),
    ],
)
def test_an_index_that_cannot_be_is_refused(database, kind, words):
    with pytest.raises(ValueError, match=rf"no index '{kind}' of 3000 .*{words}.*example IVF54,Flat"):
        open_or_build_index(database, kind, probes=1)
    assert not index_path(database, kind).exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells how much memory is used")
def test_a_mapped_index_is_not_read_into_memory(tmp_path):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    values = np.random.default_rng(0).normal(size=(100_000, 128)).astype(np.float32)
    save_index(faiss.IndexFlatL2(128), tmp_path / "small.faiss")
    index = faiss.IndexFlatL2(128)
    index.add(values)
    save_index(index, tmp_path / "large.faiss")
    map_index(tmp_path / "small.faiss", probes=1)
    before = resident_bytes()
    mapped = map_index(tmp_path / "large.faiss", probes=1)
    assert resident_bytes() - before < 0.1 * values.nbytes
    assert index_neighbors(mapped, values[:3], 1).rows.ravel().tolist() == [0, 1, 2]


def test_a_damaged_index_is_refused_by_name(tmp_path):
    save_index(faiss.IndexFlatL2(8), tmp_path / "x.faiss")
    (tmp_path / "x.faiss").write_bytes((tmp_path / "x.faiss").read_bytes()[:20])
    for read in (load_index, partial(map_index, probes=1)):
        with pytest.raises(ValueError, match=r"x.faiss is corrupt or no index"):
            read(tmp_path / "x.faiss")


@pytest.mark.parametrize("damage", ["flipped", "without digest", "digest of another"])
def test_a_damaged_index_of_the_cache_is_built_again_before_faiss_opens_it(database, damage):
    queries = database.take(np.arange(5))
    expected = index_neighbors(open_or_build_index(database, "IVF8,Flat", probes=8), queries, 10).rows.tolist()
    file = index_path(database, "IVF8,Flat")
    content, digest = file.read_bytes(), file.with_suffix(".sha256")
    if damage == "flipped":
        file.write_bytes(content[:90] + b"\xff" * 8 + content[98:])
    elif damage == "without digest":
        digest.unlink()
    else:
        digest.write_text("0" * 64)
    assert index_neighbors(open_or_build_index(database, "IVF8,Flat", probes=8), queries, 10).rows.tolist() == expected
    assert (file.read_bytes(), digest.read_text()) == (content, file_digest(file))


def test_an_index_that_crashes_faiss_is_refused_by_another_process(tmp_path):
    index = faiss.IndexHNSWFlat(4, 4)
    index.add(np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32))
    save_index(index, tmp_path / "x.faiss")
    check_searchable(tmp_path / "x.faiss")
    links = faiss.vector_to_array(index.hnsw.neighbors)
    content = (tmp_path / "x.faiss").read_bytes()
    assert content.count(links.tobytes()) == 1
    (tmp_path / "x.faiss").write_bytes(content.replace(links.tobytes(), b"\xff\xff\xff\x6f" * len(links)))
    with pytest.raises(ValueError, match=r"x.faiss is corrupt or no index, a search in it fails"):
        check_searchable(tmp_path / "x.faiss")


def test_an_index_of_descriptors_that_changed_is_made_anew(database):
    queries = database.take(np.arange(5))
    assert index_neighbors(open_or_build_index(database, "Flat", probes=1), queries, 1).rows.ravel().tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    before = (database.folder / "rows_00000.npy").stat()
    database.write_shard(0, database.take(np.arange(999, -1, -1)))
    os.utime(database.folder / "rows_00000.npy", ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    for shard in (1, 2):
        os.utime(database.folder / f"rows_{shard:05}.npy", ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))
    found = index_neighbors(open_or_build_index(database, "Flat", probes=1), queries, 1).rows
    assert found.ravel().tolist() == [999, 998, 997, 996, 995]


def test_distances_are_those_of_the_nearest_crop_and_unknown_where_nothing_was_found(tmp_path):
    rows = ShardedRows(tmp_path, num_rows=3, width=2, shard_size=2, dtype="float32")
    rows.write_shard(0, np.array([[0, 0], [3, 4]], np.float32))
    rows.write_shard(1, np.array([[6, 8]], np.float32))
    crops = np.array([[0, 0, 6, 8], [3, 4, 3, 4]], np.float32)  # two of each query
    found = distances_of(np.array([[2, 1, -1], [0, 1, 2]]), crops, rows)
    np.testing.assert_array_equal(found, [[0, 5, np.nan], [5, 0, 5]])


def test_what_is_not_found_in_a_part_is_no_row():
    parts = [np.eye(3, dtype=np.float32), np.full((2, 3), np.nan, np.float32)]
    found = nearest_neighbors(parts, np.eye(3, dtype=np.float32), 5).rows
    assert [sorted(row[row >= 0].tolist()) for row in found] == [[0, 1, 2]] * 3
