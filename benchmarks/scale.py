"""Benchmark place indexes of millions of images: building in parts, adding, searching, and searching near a position.

Run `python -m benchmarks.scale`, smaller with `--rows 200000 --added_to 50000`. Descriptors are generated when they are
read, see `benchmarks.generated_city`; the catalogue is a memory-mapped file, as `progeo dataset scan` writes it. Every
job runs in a process of its own. Seconds are CPU seconds of all cores, with those that generate the descriptors; memory
is the peak of the process, with its libraries and what it read of mapped files. "whole" builds the same faiss index in
memory and writes it at once. Recall is that of an exact search of all rows, or of all rows within the radius.
"""

import argparse
import multiprocessing
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated_city import (
    QUERY_NOISE,
    GeneratedRows,
    generated_images,
    position_deg,
    rows_within,
    save_images,
)
from progeo.disk import make_folder
from progeo.evaluation.kinds import default_kind
from progeo.evaluation.search import Neighbors, build_index, nearest_neighbors, save_index
from progeo.export.weights import load_encoder, save_encoder
from progeo.features.descriptors import descriptor_metadata
from progeo.features.store import ShardedRows
from progeo.localization.adding import add_images
from progeo.localization.building import rows_in_cell_order, write_index
from progeo.localization.engines.connecting import engine_metadata
from progeo.localization.engines.options import EngineOptions
from progeo.localization.engines.writer import fingerprint_of
from progeo.localization.index_folder import ENCODER_FOLDER
from progeo.localization.index_metadata import EXACT, IndexMetadata
from progeo.localization.place_index import PlaceIndex, open_index
from progeo.localization.restriction import Restriction
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import open_catalogue
from progeo.places.nearby import Near

COUNT, RADIUS_M = 10, 500.0
NUM_ADDED = 10_000
MIN_COMPRESSED = 200_000
"""Number of rows from which an index is compressed by default."""
NUM_SINGLE = 50
"""Number of queries that are searched one at a time."""
BLOCK_BYTES = 512
ENGINES = {
    f"Qdrant Edge, {quantization}": EngineOptions(engine="qdrant", engine_quantization=quantization)
    for quantization in ("none", "int8")
}
"""Engines that are compared, by the name of their line."""
COLUMNS = ("CPU s", "wall s", "peak MB", "disk MB", "ms, 1", "ms, all", "R@1", "R@10", "ms, near", "R@1 near")


@dataclass(frozen=True)
class City:
    """A generated city on disk."""

    folder: Path
    num_rows: int
    dim: int
    num_queries: int

    @property
    def rows(self) -> GeneratedRows:
        """Descriptors of the images, in the order of the catalogue."""
        return GeneratedRows(self.num_rows, self.dim)

    @property
    def query_rows(self) -> np.ndarray:
        """Images at whose places the queries are, int64 (Q,)."""
        return np.linspace(0, self.num_rows - 1, self.num_queries).astype(np.int64)

    @property
    def queries(self) -> np.ndarray:
        """Descriptors of the queries, float32 (Q, D)."""
        return GeneratedRows(self.num_rows, self.dim, noise=QUERY_NOISE, seed=2).take(self.query_rows)

    def index(self, kind: str) -> Path:
        """Return the folder of the index of a kind."""
        return self.folder / re.sub(r"\W+", "_", kind)


@dataclass(frozen=True)
class Cost:
    """What a job took, and its result."""

    result: Any
    cpu_s: float
    wall_s: float
    peak_mb: float


@dataclass(frozen=True)
class Searched:
    """Neighbors of the queries in an index, as rows of the catalogue, and CPU milliseconds for each query."""

    rows: np.ndarray
    near_rows: np.ndarray
    single_ms: float
    batch_ms: float
    near_ms: float


def main() -> None:
    """Print a line for every job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 5_000_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", help="faiss factory strings; by default Flat, IVF Flat and the default")
    parser.add_argument("--without_whole", action="store_true", help="build no index in memory beside that in parts")
    parser.add_argument("--added_to", type=int, default=1_000_000, help="rows of an index that images are added to")
    parser.add_argument("--engine_rows", type=int, default=100_000, help="rows of an index in Qdrant Edge; 0 for none")
    parser.add_argument("--folder", type=Path, help="folder for temporary files, 14 GB for 5 million rows")
    options = parser.parse_args()
    if options.folder is not None:
        make_folder(options.folder)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for num_rows in options.rows:
            city = City(Path(name) / str(num_rows), num_rows, options.dim, options.queries)
            kinds = options.kinds or kinds_of(num_rows, options.dim)
            for line in lines_of_kinds(city, kinds, with_whole=not options.without_whole):
                print(line, flush=True)
            shutil.rmtree(city.folder)
        if options.engine_rows:
            city = City(Path(name) / "engine", options.engine_rows, options.dim, options.queries)
            for line in lines_of_kinds(city, [EXACT, *ENGINES], with_whole=False):
                print(line, flush=True)
            shutil.rmtree(city.folder)
        for line in lines_of_adding(Path(name), options.added_to, options.dim):
            print(line, flush=True)


def kinds_of(num_rows: int, dim: int) -> list[str]:
    """Return the kinds that are compared: exact, lists of descriptors, and lists of one bit a dimension."""
    compressed = default_kind(max(num_rows, MIN_COMPRESSED), dim).faiss
    return [EXACT, f"{compressed.partition(',')[0]},Flat", compressed]


def lines_of_kinds(city: City, kinds: list[str], *, with_whole: bool) -> Iterator[str]:
    """Build and search an index of each kind; yields the lines of a table."""
    in_a_process(write_city, city)
    truth = in_a_process(search_exactly, city).result
    yield f"\n{city.num_rows:,} x {city.dim} descriptors, {city.num_queries} queries"
    yield f"{'':24}{''.join(f'{column:>10}' for column in COLUMNS)}"
    for kind in kinds:
        if with_whole:
            whole = in_a_process(build_whole, city, kind)
            yield line(f"{kind}, whole", whole, whole.result)
        built = in_a_process(build_in_parts, city, kind)
        searched: Searched = in_a_process(search_index, city, kind).result
        recalls = [f"{recall(searched.rows, truth[0], count):.3f}" for count in (1, COUNT)]
        timings = [f"{each:.2f}" for each in (searched.single_ms, searched.batch_ms)]
        near = [f"{searched.near_ms:.2f}", f"{recall(searched.near_rows, truth[1], 1):.3f}"]
        title = kind if kind in ENGINES else f"{kind}, parts"
        yield line(title, built, built.result, *timings, *recalls, *near)
        shutil.rmtree(city.index(kind))


def line(title: str, cost: Cost, num_bytes: int, *others: str) -> str:
    """Format a row of a table."""
    values = (f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.peak_mb:,.0f}", f"{num_bytes / 1e6:,.0f}", *others)
    return f"{title:24}{''.join(f'{value:>10}' for value in values)}"


def lines_of_adding(parent: Path, num_rows: int, dim: int) -> Iterator[str]:
    """Add images to an index of some rows and to one of four times as many; yields the lines of a table."""
    yield f"\n{NUM_ADDED:,} images added to an index of kind {EXACT} of"
    seconds = []
    for size in (num_rows, 4 * num_rows):
        city = City(parent / str(size), size, dim, 1)
        in_a_process(write_city, city)
        in_a_process(build_in_parts, city, EXACT)
        added = in_a_process(add, city)
        yield line(f"{size:,} images", added, added.result)
        seconds.append(added.cpu_s)
        shutil.rmtree(city.folder)
    yield f"ratio of CPU seconds {seconds[1] / seconds[0]:.2f}"


def in_a_process(job: Callable[..., Any], *arguments: object) -> Cost:
    """Run a job in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(measured, (job, arguments))


def measured(job: Callable[..., Any], arguments: tuple[object, ...]) -> Cost:
    """Run a job and measure it."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    result = job(*arguments)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Cost(result, cpu_s, wall_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def write_city(city: City) -> None:
    """Write the catalogue of a city, and an encoder of its dimension, which encodes nothing here."""
    city.folder.mkdir()
    save_images(city.folder / "city.arrow", city.num_rows)
    encoder = build_encoder("tiny-resnet", "random", descriptor_dim=city.dim, aggregation="gem")
    save_encoder(city.folder / "encoder", encoder, provenance={}, recalls={})


def search_exactly(city: City) -> tuple[np.ndarray, np.ndarray]:
    """Search all rows, and all within the radius, exactly: rows of the catalogue, int64 (Q, K) each."""
    queries = city.queries
    found = nearest_neighbors(city.rows.parts(), queries, COUNT).rows
    near = []
    for query, position in zip(queries, positions(city), strict=True):
        within = rows_within(Near(*position, RADIUS_M), city.num_rows)
        nearest = nearest_neighbors([city.rows.take(within)], query[None], COUNT)
        near.append(within[nearest.rows[0]])
    return found, np.stack(near)


def build_whole(city: City, kind: str) -> int:
    """Build an index in memory and write it; returns its bytes."""
    save_index(build_index(city.rows, kind), file := city.folder / "whole.faiss")
    size = file.stat().st_size
    file.unlink()
    return size


def build_in_parts(city: City, kind: str) -> int:
    """Build a place index; returns the bytes of its parts."""
    encoder, chosen = load_encoder(city.folder / "encoder"), default_kind(max(city.num_rows, MIN_COMPRESSED), city.dim)
    described = descriptor_metadata(encoder)
    options = ENGINES.get(kind, EngineOptions())
    shutil.copytree(city.folder / "encoder", city.index(kind) / ENCODER_FOLDER)
    metadata = IndexMetadata(
        kind=options.engine or kind,
        engine=engine_metadata(options, city.index(kind), fingerprint_of(described)),
        probes=chosen.probes,
        encoder=described,
        image_size=(64, 64),
        database_preprocessing="hard_resize",
        query_preprocessing="hard_resize",
        parts=(),
    )
    images = open_catalogue(city.folder / "city.arrow", city.folder)
    assert write_index(city.index(kind), metadata, rows_in_cell_order(images, city.rows))
    return size_of_parts(city.index(kind))


def search_index(city: City, kind: str) -> Searched:
    """Search an index: some queries one at a time, all at once, and each within the radius."""
    index = open_index(city.index(kind))
    queries, among = city.queries, [Restriction(Near(*each, RADIUS_M)) for each in positions(city)]

    def search_one(row: int) -> Neighbors:
        return index.search(queries[row : row + 1])

    def search_near(row: int) -> Neighbors:
        return index.search(queries[row : row + 1], among=among[row])

    search_one(0)
    search_near(0)
    num_single = min(NUM_SINGLE, len(queries))
    _, single_ms = timed(lambda: [search_one(row) for row in range(num_single)], num_single)
    found, batch_ms = timed(lambda: index.search(queries, min_count=COUNT), len(queries))
    near, near_ms = timed(lambda: [search_near(row) for row in range(len(queries))], len(queries))
    near_rows = np.concatenate([in_catalogue(index, each) for each in near])
    return Searched(in_catalogue(index, found), near_rows, single_ms, batch_ms, near_ms)


def timed(search: Callable[[], Any], count: int) -> tuple[Any, float]:
    """Return the result of a search for some queries, and the CPU milliseconds of each."""
    start = time.process_time()
    found = search()
    return found, 1e3 * (time.process_time() - start) / count


def in_catalogue(index: PlaceIndex, neighbors: Neighbors) -> np.ndarray:
    """Return the rows of the catalogue of neighbors, (Q, COUNT); -1 for none."""
    rows = neighbors.rows[:, :COUNT]
    paths = index.catalogue.take(np.maximum(rows, 0).ravel()).table["path"].to_pylist()
    numbers = np.array([int(Path(path).stem) for path in paths]).reshape(rows.shape)
    return np.where(rows < 0, -1, numbers)


def positions(city: City) -> Iterator[tuple[float, float]]:
    """Yield latitude and longitude of each query."""
    return zip(*(each.tolist() for each in position_deg(city.query_rows)), strict=True)


def recall(found: np.ndarray, truth: np.ndarray, count: int) -> float:
    """Return the share of the first `count` of exact searches that are among the first `count` found."""
    return float(
        np.mean([np.isin(wanted[:count], row[:count]).mean() for row, wanted in zip(found, truth, strict=True)])
    )


def add(city: City) -> int:
    """Add images to an index; returns the bytes of its parts."""
    folder = city.index(EXACT)
    before = size_of_parts(folder)
    index = open_index(folder)
    rows = ShardedRows(city.folder / "added", num_rows=NUM_ADDED, width=city.dim, shard_size=NUM_ADDED, dtype="float32")
    rows.write_shard(0, GeneratedRows(NUM_ADDED, city.dim, seed=3).take(np.arange(NUM_ADDED)))
    add_images(index, generated_images(NUM_ADDED, first=city.num_rows), rows)
    return size_of_parts(folder) - before


def size_of_parts(folder: Path) -> int:
    """Return the bytes that an index takes on the disk without its encoder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != ENCODER_FOLDER)
    return sum(BLOCK_BYTES * path.stat().st_blocks for path in files)


if __name__ == "__main__":
    main()
