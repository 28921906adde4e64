"""Benchmark kinds of index: CPU time of building, size, CPU time of a query, and recall against exact search.

Run `python -m benchmarks.kinds`, with other rows by `--rows`, `--dim` and `--kinds`. Descriptors lie around centers of
24 dimensions, 10 around each; queries lie farther from some of the centers. Every index is searched with and without an
exact comparison of its best 200 rows, from float16 descriptors that are memory-mapped. Time is process CPU time on one
thread, the minimum of three rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch

from progeo.evaluation.kinds import train_kind
from progeo.evaluation.parts import Part, Parts
from progeo.evaluation.search import add_to_index, map_index, save_index
from progeo.features.store import ShardedRows

LATENT_DIM, PER_CENTER, ROW_NOISE, QUERY_NOISE = 24, 10, 0.05, 0.1
NUM_QUERIES, BATCH, ROUNDS = 512, 64, 3
PROBES, REFINE = 64, 200
KINDS = ("IVF1024,Flat", "SQ8", "PQ64", "IVF1024,PQ64", "OPQ64,IVF1024,PQ64", "RaBitQ", "IVF1024,RaBitQ")


def main() -> None:
    """Print two lines for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    columns = ("build, s", "MB", "ms of 1", "ms of 64", "R@1", "R@10")
    print(f"{options.rows:,} x {options.dim}\n{'':32}{''.join(f'{column:>10}' for column in columns)}")
    with tempfile.TemporaryDirectory() as name:
        rows, queries = written_rows(Path(name), options.rows, options.dim)
        parts = Parts([Part(np.load(rows.path(0), mmap_mode="r"))])
        expected = parts.neighbors(queries, 10).rows
        print(line("Flat", 0.0, 4 * options.rows * options.dim, searched(parts, queries, 0), expected))
        for kind in options.kinds:
            for text in lines(kind, rows, queries, expected):
                print(text, flush=True)


def lines(kind: str, rows: ShardedRows, queries: np.ndarray, expected: np.ndarray) -> Iterator[str]:
    """Build an index and search it, refined or not."""
    start = time.process_time()
    index = train_kind(rows, kind)
    add_to_index(index, rows)
    seconds = time.process_time() - start
    save_index(index, file := rows.folder / "index.faiss")
    mapped = map_index(file, probes=PROBES)
    parts = Parts([Part(np.load(rows.path(0), mmap_mode="r"), mapped)])
    for refine in (0, REFINE):
        title = f"{kind}, refine {refine}"
        yield line(title, seconds, file.stat().st_size, searched(parts, queries, refine), expected)


def line(title: str, seconds: float, size: int, found: tuple[np.ndarray, float, float], expected: np.ndarray) -> str:
    """Format what was measured."""
    rows, one, many = found
    recalls = [
        np.mean([len(set(mine) & set(theirs)) / count for mine, theirs in zip(rows[:, :count], each, strict=True)])
        for count in (1, 10)
        for each in [expected[:, :count]]
    ]
    values = f"{seconds:10.1f}{size / 1e6:10.1f}{one:10.3f}{many:10.3f}"
    return f"{title:32}{values}{recalls[0]:10.3f}{recalls[1]:10.3f}"


def searched(parts: Parts, queries: np.ndarray, refine: int) -> tuple[np.ndarray, float, float]:
    """Return the rows found, and the CPU milliseconds of a query, searched one at a time and in batches."""

    def search(query: int, count: int) -> np.ndarray:
        return parts.neighbors(queries[query : query + count], 10, probes=PROBES, refine=refine).rows

    one = least_seconds(lambda: [search(query, 1) for query in range(BATCH)]) / BATCH
    many = least_seconds(lambda: [search(query, BATCH) for query in range(0, NUM_QUERIES, BATCH)]) / NUM_QUERIES
    return search(0, NUM_QUERIES), 1e3 * one, 1e3 * many


def least_seconds(search: Callable[[], object]) -> float:
    """Return the minimum CPU time of several rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        search()
        seconds.append(time.process_time() - start)
    return min(seconds)


def written_rows(folder: Path, count: int, dim: int) -> tuple[ShardedRows, np.ndarray]:
    """Write descriptors, float16 (N, D), in one file; also returns those of queries, float32 (Q, D)."""
    random = np.random.default_rng(0)
    basis = random.standard_normal((LATENT_DIM, dim), np.float32)
    centers = unit(random.standard_normal((max(1, count // PER_CENTER), LATENT_DIM), np.float32) @ basis)

    def around(size: int, noise: float) -> np.ndarray:
        of = random.integers(0, len(centers), size)
        return unit(centers[of] + noise * random.standard_normal((size, dim), np.float32))

    rows = ShardedRows(folder, num_rows=count, width=dim, shard_size=count)
    rows.write_shard(0, around(count, ROW_NOISE).astype(np.float16))
    return rows, around(NUM_QUERIES, QUERY_NOISE)


def unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalize."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
