"""Benchmark evaluation at scale: search 200,000 descriptors, and extract features of images of mixed shapes.

Run `python -m benchmarks.evaluation`. Search: descriptors of 512 dimensions, ten for each place, and queries of some of
the places. Each search runs in a process of its own, with its peak memory beyond that of the libraries; the baseline
holds all descriptors in one faiss index in memory, as evaluations usually do. Extraction: a ResNet-18 with GeM on
images at their native sizes; the plain baseline reads the database in fixed batches and the queries, which have several
shapes, one by one. Wall time on all cores.
"""

import copy
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.timing import clock_of_device, min_seconds
from progeo.engine.accelerator import start_accelerator
from progeo.evaluation.search import index_neighbors, index_path, nearest_neighbors, open_or_build_index
from progeo.features.batches import extract_rows
from progeo.features.descriptors import descriptor_extractor
from progeo.features.options import ImageOptions
from progeo.features.store import ShardedRows
from progeo.models.encoder import Encoder, build_encoder
from progeo.places.catalogue import read_catalogue

NUM_DATABASE, NUM_QUERIES, DIM, IMAGES_PER_PLACE = 200_000, 2_000, 512, 10
ROWS_PER_FILE = 8192
COUNT, PROBES = 20, 16
INDEXES = ("IVF1024,SQ8", "IVF1024,PQ128x4fsr")
NUM_IMAGES, BATCH_SIZE, NUM_WORKERS = 96, 16, 1
DATABASE_SHAPES = ((240, 320),)
QUERY_SHAPES = ((240, 320), (320, 240), (240, 240), (256, 341), (341, 256), (200, 300))


@dataclass(frozen=True)
class Search:
    """Time and recall of a search."""

    seconds: float
    recall: float
    """Percentage of queries whose first match is an image of their place."""


def main() -> None:
    """Print the results of both benchmarks."""
    with tempfile.TemporaryDirectory() as folder:
        for line in chain(compare_searches(Path(folder)), compare_describing(Path(folder))):
            print(line, flush=True)


def compare_searches(folder: Path) -> Iterator[str]:
    """Yield time, memory and recall@1 of each search, and build time and size of each index."""
    in_a_process(write_descriptors, folder)
    columns = f"{'search, s':>12}{'ms a query':>12}{'peak, GB':>10}{'R@1':>8}{'made in, s':>12}{'kept, MB':>10}"
    title = f"{NUM_DATABASE:,} x {NUM_QUERIES:,} x {DIM}"
    yield f"{title:30}{columns}"
    for name, job in (("exact, all in memory", search_in_memory), ("exact, file by file", search_by_file)):
        yield search_line(name, *in_a_process(job, folder), 0.0, NUM_DATABASE * DIM * 4)
    for kind in INDEXES:
        made, _ = in_a_process(make_index, folder, kind)
        kept = index_path(rows_in(folder / "database", NUM_DATABASE), kind).stat().st_size
        yield search_line(kind, *in_a_process(search_index, folder, kind), made, kept)


def search_line(name: str, search: Search, gigabytes: float, made: float, kept: int) -> str:
    """Format a row of the table."""
    each = 1e3 * search.seconds / NUM_QUERIES
    found = f"{search.seconds:12.2f}{each:12.3f}{gigabytes:10.2f}{search.recall:8.1f}"
    return f"{name:30}{found}{made:12.1f}{kept / 1e6:10.1f}"


def in_a_process(job: Callable, *arguments: object) -> tuple[Any, float]:
    """Run a job in a process of its own; returns its result and its peak gigabytes beyond the libraries."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        before = process.apply(peak_gigabytes)
        return process.apply(job, arguments), process.apply(peak_gigabytes) - before


def peak_gigabytes() -> float:
    """Return the peak memory of this process in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def write_descriptors(folder: Path) -> None:
    """Write unit vectors: ten around the center of each place, and queries farther from some of the centers."""
    rng = np.random.default_rng(0)
    num_places = NUM_DATABASE // IMAGES_PER_PLACE
    centers = unit(rng.standard_normal((num_places, 24), np.float32) @ rng.standard_normal((24, DIM), np.float32))
    rows = rows_in(folder / "database", NUM_DATABASE)
    for shard in rows.missing_shards():
        places = np.array(rows.shard_rows(shard)) // IMAGES_PER_PLACE
        noise = rng.standard_normal((len(places), DIM), np.float32)
        rows.write_shard(shard, unit(centers[places] + 0.03 * noise))
    places = rng.integers(0, num_places, NUM_QUERIES)
    noise = rng.standard_normal((NUM_QUERIES, DIM), np.float32)
    np.save(folder / "queries.npy", unit(centers[places] + 0.12 * noise))
    np.save(folder / "places.npy", places)


def unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalize vectors."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_in(folder: Path, count: int) -> ShardedRows:
    """Open the descriptors in the files of a folder."""
    return ShardedRows(folder, num_rows=count, width=DIM, shard_size=ROWS_PER_FILE, dtype="float32")


def timed(folder: Path, find: Callable[[np.ndarray], np.ndarray]) -> Search:
    """Time the search for all queries, excluding the time to open the database."""
    queries, places = np.load(folder / "queries.npy"), np.load(folder / "places.npy")
    start = time.perf_counter()
    found = find(queries)
    seconds = time.perf_counter() - start
    return Search(seconds, 100 * float((found[:, 0] // IMAGES_PER_PLACE == places).mean()))


def search_in_memory(folder: Path) -> Search:
    """Search one faiss index in memory, as evaluations usually do."""
    index = faiss.IndexFlatL2(DIM)
    index.add(np.concatenate(list(rows_in(folder / "database", NUM_DATABASE).parts())))
    return timed(folder, lambda queries: index.search(queries, COUNT)[1])


def search_by_file(folder: Path) -> Search:
    """Search file by file, as progeo does without an index."""
    database = rows_in(folder / "database", NUM_DATABASE)
    return timed(folder, lambda queries: nearest_neighbors(database.parts(), queries, COUNT).rows)


def make_index(folder: Path, kind: str) -> float:
    """Train, fill and write an index; returns the seconds."""
    start = time.perf_counter()
    open_or_build_index(rows_in(folder / "database", NUM_DATABASE), kind, probes=PROBES)
    return time.perf_counter() - start


def search_index(folder: Path, kind: str) -> Search:
    """Search an existing index."""
    index = open_or_build_index(rows_in(folder / "database", NUM_DATABASE), kind, probes=PROBES)
    return timed(folder, lambda queries: index_neighbors(index, queries, COUNT).rows)


def compare_describing(folder: Path) -> Iterator[str]:
    """Yield images per second of the plain loop and of ours, for a database of one shape and queries of several."""
    encoder = build_encoder("resnet18", "random", DATABASE_SHAPES[0], normalization="imagenet").eval()
    yield f"{'describing, images/s':30}{'plain':>12}{'ours':>12}{'ratio':>8}{'largest difference':>20}"
    whole = np.zeros(2)
    for side, shapes, plain_batch in (("database", DATABASE_SHAPES, BATCH_SIZE), ("queries", QUERY_SHAPES, 1)):
        write_shapes(folder / f"{side}_images", shapes)
        plain, ours = (
            plain_loop(encoder, folder / f"{side}_images", plain_batch),
            our_loop(encoder, folder / f"{side}_images"),
        )
        difference = float(np.abs(plain() - ours()).max())
        seconds = np.array(min_seconds([plain, ours], clock_of_device, rounds=3))
        whole += seconds
        yield f"{speeds(f'{side} of {len(shapes)} shapes', NUM_IMAGES, seconds)}{difference:20.1e}"
    yield speeds("both", 2 * NUM_IMAGES, whole)


def speeds(name: str, count: int, seconds: np.ndarray) -> str:
    """Format a row of the table."""
    plain, ours = seconds.tolist()
    return f"{name:30}{count / plain:12.1f}{count / ours:12.1f}{plain / ours:8.2f}"


def write_shapes(folder: Path, shapes: Sequence[tuple[int, int]]) -> None:
    """Write smooth random JPEGs with alternating shapes."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for place in range(NUM_IMAGES):
        height, width = shapes[place % len(shapes)]
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"@{place}@0@.jpg", quality=90)


class PlainImages(torch.utils.data.Dataset):
    """Images as floats, normalized one by one."""

    def __init__(self, paths: Sequence[Path], encoder: Encoder) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(encoder.mean.tolist(), encoder.std.tolist())]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(Image.open(self.paths[row]).convert("RGB"))


def plain_loop(encoder: Encoder, folder: Path, batch_size: int) -> Callable[[], np.ndarray]:
    """Build the extraction loop of published evaluations."""
    images = read_catalogue(folder)
    plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
    loader = DataLoader(
        PlainImages([images.path(row) for row in range(len(images))], encoder),
        batch_size=batch_size,
        num_workers=NUM_WORKERS,
    )

    @torch.inference_mode()
    def extract() -> np.ndarray:
        return np.concatenate([plain.aggregate(plain.features(batch)).numpy() for batch in loader])

    return extract


def our_loop(encoder: Encoder, folder: Path) -> Callable[[], np.ndarray]:
    """Build our extraction loop, with batches of one shape each."""
    images = read_catalogue(folder)
    extractor = descriptor_extractor(encoder, ImageOptions(database_preprocessing="native"), start_accelerator("no"))

    def extract() -> np.ndarray:
        encoder.to(memory_format=torch.channels_last)
        pixels, rows = extractor.images(images), range(len(images))
        return extract_rows(
            extractor.extract,
            pixels,
            rows,
            extractor.batches(pixels, rows, BATCH_SIZE),
            width=encoder.descriptor_dim,
            num_workers=NUM_WORKERS,
            what="ours",
        )[0]

    return extract


if __name__ == "__main__":
    main()
