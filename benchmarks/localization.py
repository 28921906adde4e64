"""Benchmark localization at scale: all images, inverted lists, class means alone, and the best cells searched exactly.

Run `python -m benchmarks.localization`, smaller with `--rows 200000 --dim 256 --classes 4000`. Descriptors of the
images of a cell lie around a center; queries lie farther from some of the centers. Each search runs in a process of its
own. Time is CPU time of all cores, for a batch of queries; memory is the peak beyond that of the
libraries, without the descriptors on disk that an exact search reads.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.evaluation.cell_index import build_cell_index
from progeo.evaluation.search import build_index, index_neighbors, map_index, nearest_neighbors, save_index
from progeo.features.store import ShardedRows

ROWS_PER_FILE = 8192
COUNT = 20
LATENT_DIM, IMAGE_NOISE, QUERY_NOISE = 24, 0.05, 0.13
INVERTED_LISTS, LISTS_VISITED = "IVF1024,Flat", 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of the synthetic database."""

    rows: int
    dim: int
    classes: int
    queries: int


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    first: np.ndarray
    """First database row of each query, or for class means its class, int64 (Q,)."""
    cpu_ms: float
    """CPU milliseconds per query."""
    rows_read: float
    """Mean number of descriptors that a query is compared with."""
    megabytes: float
    """Size of what is searched on disk."""


def main() -> None:
    """Print a line for every way to search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 5, 20], help="cells searched for a query")
    options = parser.parse_args()
    sizes = Sizes(options.rows, options.dim, options.classes, options.queries)
    print(f"{sizes.rows:,} descriptors of {sizes.dim} dimensions in {sizes.classes:,} cells, {sizes.queries} queries")
    columns = ("CPU ms a query", "of exact", "rows read", "peak, MB", "on disk, MB", "as exact, %", "right cell, %")
    print(f"{'':24}{''.join(f'{column:>16}' for column in columns)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_a_process(write_descriptors, folder, sizes)
        for job in (write_inverted_lists, write_cells):
            in_a_process(job, folder, sizes)
        exact, megabytes = in_a_process(search_exactly, folder, sizes)
        print(line("exact", exact, megabytes, exact, sizes, folder))
        searches: dict[str, tuple[Callable[..., Found], int]] = {
            f"{INVERTED_LISTS}, {LISTS_VISITED} lists": (search_inverted_lists, LISTS_VISITED),
            "class means": (search_means, 0),
            **{f"{count} best cells, exact": (search_cells, count) for count in options.probes},
        }
        for title, (job, count) in searches.items():
            found, megabytes = in_a_process(job, folder, sizes, count)
            print(line(title, found, megabytes, exact, sizes, folder), flush=True)


def line(title: str, found: Found, megabytes: float, exact: Found, sizes: Sizes, folder: Path) -> str:
    """Format a row of the table."""
    cells = np.load(folder / "query_cells.npy")
    first_cells = found.first if title == "class means" else cells_of(found.first, sizes)
    same = first_cells == cells_of(exact.first, sizes) if title == "class means" else found.first == exact.first
    values = (
        f"{found.cpu_ms:.3f}",
        f"1/{exact.cpu_ms / found.cpu_ms:.0f}",
        f"{found.rows_read:,.0f}",
        f"{megabytes:,.0f}",
        f"{found.megabytes:,.0f}",
        f"{100 * same.mean():.1f}",
        f"{100 * (first_cells == cells).mean():.1f}",
    )
    return f"{title:24}{''.join(f'{value:>16}' for value in values)}"


def in_a_process(job: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    """Run a job in a process of its own; returns its result and its peak megabytes beyond the libraries."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        before = process.apply(peak_megabytes)
        return process.apply(job, arguments), process.apply(peak_megabytes) - before


def peak_megabytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def cells_of(rows: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Return the cells of images: neighboring rows share a cell."""
    return rows * sizes.classes // sizes.rows


def unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalize vectors."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def descriptors_in(folder: Path, sizes: Sizes) -> ShardedRows:
    """Open the descriptors of the database."""
    return ShardedRows(
        folder / "database", num_rows=sizes.rows, width=sizes.dim, shard_size=ROWS_PER_FILE, dtype="float32"
    )


def write_descriptors(folder: Path, sizes: Sizes) -> None:
    """Write the descriptors of the images and the queries, the queries' cells, and the mean of every cell."""
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((LATENT_DIM, sizes.dim), np.float32)
    centers = unit(rng.standard_normal((sizes.classes, LATENT_DIM), np.float32) @ basis)
    rows, sums = descriptors_in(folder, sizes), np.zeros((sizes.classes, sizes.dim))
    for shard in rows.missing_shards():
        cells = cells_of(np.array(rows.shard_rows(shard)), sizes)
        values = unit(centers[cells] + IMAGE_NOISE * rng.standard_normal((len(cells), sizes.dim), np.float32))
        rows.write_shard(shard, values)
        np.add.at(sums, cells, values)
    cells = rng.integers(0, sizes.classes, sizes.queries)
    noise = rng.standard_normal((sizes.queries, sizes.dim), np.float32)
    np.save(folder / "queries.npy", unit(centers[cells] + QUERY_NOISE * noise))
    np.save(folder / "query_cells.npy", cells)
    np.save(folder / "means.npy", unit(sums).astype(np.float32))


def write_inverted_lists(folder: Path, sizes: Sizes) -> None:
    """Build the IVF index."""
    save_index(build_index(descriptors_in(folder, sizes), INVERTED_LISTS), folder / "inverted.faiss")


def write_cells(folder: Path, sizes: Sizes) -> None:
    """Build the index whose inverted lists are cells."""
    cells = cells_of(np.arange(sizes.rows), sizes)
    index = build_cell_index(descriptors_in(folder, sizes), cells, np.load(folder / "means.npy"))
    save_index(index, folder / "cells.faiss")


def timed(folder: Path, find: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the first match of each query and the CPU milliseconds per query."""
    queries = np.load(folder / "queries.npy")
    find(queries[:2])
    start = time.process_time()
    found = find(queries)
    return found[:, 0], 1e3 * (time.process_time() - start) / len(queries)


def search_exactly(folder: Path, sizes: Sizes) -> Found:
    """Search all descriptors."""
    rows = descriptors_in(folder, sizes)
    first, cpu_ms = timed(folder, lambda queries: nearest_neighbors(rows.parts(), queries, COUNT).rows)
    return Found(first, cpu_ms, sizes.rows, rows.num_bytes / 1e6)


def search_inverted_lists(folder: Path, sizes: Sizes, probes: int) -> Found:
    """Search the lists of k-means clusters nearest to a query."""
    return search_lists(folder / "inverted.faiss", folder, probes)


def search_cells(folder: Path, sizes: Sizes, probes: int) -> Found:
    """Search the cells whose means are nearest to a query."""
    return search_lists(folder / "cells.faiss", folder, probes)


def search_lists(path: Path, folder: Path, probes: int) -> Found:
    """Search some inverted lists of an index."""
    index = map_index(path, probes=probes)
    first, cpu_ms = timed(folder, lambda queries: index_neighbors(index, queries, COUNT).rows)
    _, lists = index.quantizer.search(np.load(folder / "queries.npy"), probes)
    sizes_of_lists = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
    rows_read = index.nlist + sizes_of_lists[lists].sum(axis=1).mean()
    return Found(first, cpu_ms, rows_read, path.stat().st_size / 1e6)


def search_means(folder: Path, sizes: Sizes, _: int) -> Found:
    """Search the means of the cells alone: localization by classification."""
    means = np.load(folder / "means.npy")
    first, cpu_ms = timed(folder, lambda queries: nearest_neighbors([means], queries, COUNT).rows)
    return Found(first, cpu_ms, sizes.classes, means.nbytes / 1e6)


if __name__ == "__main__":
    main()
