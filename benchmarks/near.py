"""Benchmark searches near a rough position: recall and CPU time with and without it, and what it does to confidence.

Run `python -m benchmarks.near` for a synthetic city, and `python -m benchmarks.near --folder DATABASE_PARENT` for the
folders `database` and `queries` of a set with positions in it, by thumbnails or `--encoder`. In the synthetic city
descriptors change with the position, and a tenth of the distance between neighbors is noise. Time is CPU time of one
query at a time on one thread, from memory-mapped descriptors.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

import progeo
from progeo.evaluation.parts import Part, Parts
from progeo.evaluation.priors import Regions, build_regions
from progeo.evaluation.search import Neighbors
from progeo.export.weights import load_encoder
from progeo.localization.confidence import calibrate, confidence_features
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.cell_order import cell_order
from progeo.places.coordinates import project
from progeo.places.geographic import positions_m
from progeo.places.nearby import OwnPosition
from progeo.places.positives import find_positives

COUNT, RADIUS_M, NUM_SPLITS = 20, 25.0, 20
WIDTH_DEG, LATENT_DIM, SCALE_M = 0.1, 48, 60.0
PRIORS = (
    (None, None),
    ((2000, 0), None),
    ((500, 0), None),
    ((500, 100), None),
    ((100, 0), None),
    ((100, 50), None),
    ((100, 100), None),
    ((100, 300), None),
    (None, 45.0),
    ((500, 0), 45.0),
)
"""Radius and error of the position in meters, and tolerance of the heading in degrees."""


@dataclass(frozen=True)
class City:
    """Images and queries with their descriptors."""

    database: Catalogue
    queries: Catalogue
    parts: Parts
    """Descriptors of the database, memory-mapped."""
    vectors: np.ndarray
    """Descriptors of the queries, (Q, D)."""


def main() -> None:
    """Print a line for each prior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="a set to measure in place of a synthetic city")
    parser.add_argument("--encoder", default="thumbnail")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "descriptors.npy"
        if options.folder is None:
            city = synthetic_city(file, rows=options.rows, dim=options.dim, num_queries=options.queries)
        else:
            city = real_city(file, options.folder, options.encoder)
        print(f"{len(city.parts):,} x {city.vectors.shape[1]} descriptors, {len(city.queries):,} queries")
        for line in lines(city):
            print(line, flush=True)


def lines(city: City) -> Iterator[str]:
    """Measure each prior."""
    columns = ("in region", "nothing, %", "CPU ms", "of all", "R@1", "R@5", "ECE", "conf.-R@1", "correct of known")
    yield f"{'':34}{''.join(f'{column:>17}' for column in columns)}"
    positives = find_positives(city.database, city.queries, RADIUS_M)
    database_m, _ = positions_m(city.database, city.queries)
    has_headings = not (np.isnan(city.database.heading).all() or np.ptp(city.database.heading) == 0)
    plain: tuple[np.ndarray, np.ndarray] | None = None
    all_ms = 0.0
    for position, tolerance in PRIORS:
        if tolerance is not None and not has_headings:
            continue
        near = None if position is None else OwnPosition(*position)
        regions = build_regions(city.database, city.queries, near, tolerance)
        neighbors, sizes, cpu_ms = searched(city, regions)
        all_ms = all_ms or cpu_ms
        hits = np.stack([np.isin(found, given) for found, given in zip(neighbors.rows, positives, strict=True)])
        found = sizes > 0
        features = features_of(neighbors, database_m)
        plain = plain or (features, hits[:, 0])
        values = (
            f"{sizes.mean():,.0f}",
            f"{100 * (~found).mean():.1f}",
            f"{cpu_ms:.2f}",
            f"1/{all_ms / cpu_ms:.1f}",
            f"{100 * hits[:, 0].mean():.1f}",
            f"{100 * hits[:, :5].any(axis=1).mean():.1f}",
            *confidence(plain, features, hits[:, 0], found),
        )
        yield f"{name_of(near, tolerance):34}{''.join(f'{value:>17}' for value in values)}"


def name_of(near: OwnPosition | None, tolerance: float | None) -> str:
    """Name a prior."""
    parts = [] if near is None else [f"{near.radius_m:g} m, error {near.error_m:g} m"]
    parts += [] if tolerance is None else [f"heading {tolerance:g} degrees"]
    return ", ".join(parts) or "all"


def searched(city: City, regions: Regions | None) -> tuple[Neighbors, np.ndarray, float]:
    """Search for one query at a time; also returns the sizes of the regions and CPU milliseconds per query."""
    num_queries = len(city.queries)
    everything = np.arange(len(city.parts))

    def neighbors_of(query: int) -> Neighbors:
        vector = city.vectors[query : query + 1]
        if regions is None:
            return city.parts.neighbors(vector, COUNT)
        return city.parts.neighbors_among(regions.rows(query), vector, COUNT)

    neighbors_of(0)
    start = time.process_time()
    found = [neighbors_of(query) for query in range(num_queries)]
    cpu_ms = 1e3 * (time.process_time() - start) / num_queries
    sizes = [len(everything if regions is None else regions.rows(query)) for query in range(num_queries)]
    rows, distances = (np.concatenate(each) for each in zip(*((one.rows, one.distances) for one in found), strict=True))
    return Neighbors(rows, distances), np.array(sizes), cpu_ms


def features_of(neighbors: Neighbors, database_m: np.ndarray) -> np.ndarray:
    """Compute confidence features as `PlaceIndex.confidence_features` does, (Q, 2)."""
    last = np.maximum((neighbors.rows >= 0).sum(axis=1, keepdims=True) - 1, 0)
    distances = np.where(neighbors.rows < 0, np.take_along_axis(neighbors.distances, last, axis=1), neighbors.distances)
    rows = np.where(neighbors.rows < 0, neighbors.rows[:, :1], neighbors.rows)
    with np.errstate(invalid="ignore"):
        return confidence_features(distances, database_m[rows], RADIUS_M)


def confidence(
    plain: tuple[np.ndarray, np.ndarray], features: np.ndarray, correct: np.ndarray, found: np.ndarray
) -> list[str]:
    """Calibrate without a prior on half of the queries, and measure with it on those of the other half that find any.

    Returns:
        expected calibration error, mean confidence minus accuracy, and the accuracy of those with a confidence of at
        least 0.5, in percent, all of them means over random halves.
    """
    rng, numbers = np.random.default_rng(0), []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(len(correct))
        fitted, held_out = np.split(order, [len(order) // 2])
        held_out = held_out[found[held_out]]
        confidences = calibrate(plain[0][fitted], plain[1][fitted], RADIUS_M).confidences(features[held_out])
        right = correct[held_out]
        bins = np.minimum((confidences * 10).astype(int), 9)
        gaps = [abs((confidences - right)[bins == each].sum()) for each in range(10)]
        known = confidences >= 0.5
        accuracy = right[known].mean() if known.any() else np.nan
        numbers.append((sum(gaps) / len(right), confidences.mean() - right.mean(), accuracy))
    return [f"{100 * value:.1f}" for value in np.nanmean(numbers, axis=0).tolist()]


def real_city(file: Path, folder: Path, encoder: str) -> City:
    """Extract the descriptors of a set."""
    database, queries = (read_catalogue(folder / side) for side in ("database", "queries"))
    loaded = load_encoder(encoder)
    vectors = [
        progeo.extract([images.path(row) for row in range(len(images))], loaded) for images in (database, queries)
    ]
    return City(database, queries, stored(file, vectors[0]), vectors[1])


def synthetic_city(file: Path, *, rows: int, dim: int, num_queries: int) -> City:
    """Draw a city of random positions and headings, whose descriptors are waves of position and heading with noise."""
    rng = np.random.default_rng(0)
    latitude, longitude = 37.70 + WIDTH_DEG * rng.random(rows), -122.5 + WIDTH_DEG * rng.random(rows)
    order = cell_order(*(pa.chunked_array([each]) for each in (latitude, longitude)))
    latitude, longitude, heading = latitude[order], longitude[order], 90.0 * rng.integers(0, 4, rows)
    chosen = rng.choice(rows, num_queries, replace=False)
    moved = rng.normal(scale=5 / 111_000, size=(2, num_queries))
    places = [
        (latitude, longitude, heading),
        (latitude[chosen] + moved[0], longitude[chosen] + moved[1], heading[chosen]),
    ]
    frequencies, phases = rng.normal(size=(4, LATENT_DIM)), rng.uniform(0, 2 * math.pi, LATENT_DIM)
    basis = rng.normal(size=(LATENT_DIM, dim)) / math.sqrt(LATENT_DIM)
    sides, vectors = [], []
    for (north, east, turn), noise in zip(places, (0.7, 1.0), strict=True):
        sides.append(catalogue_of(file.parent, north, east, turn))
        around = [
            111_000 * north / SCALE_M,
            88_000 * east / SCALE_M,
            np.cos(np.radians(turn)),
            np.sin(np.radians(turn)),
        ]
        waves = np.cos(np.stack(around, axis=1) @ frequencies + phases)
        vectors.append((waves @ basis + noise * rng.normal(size=(len(north), dim))).astype(np.float32))
    return City(*sides, stored(file, vectors[0]), vectors[1])


def stored(file: Path, descriptors: np.ndarray) -> Parts:
    """Store descriptors, and memory-map them."""
    np.save(file, descriptors)
    return Parts([Part(np.load(file, mmap_mode="r"))])


def catalogue_of(folder: Path, latitude: np.ndarray, longitude: np.ndarray, heading: np.ndarray) -> Catalogue:
    """Build a catalogue of positions in degrees."""
    at = project(latitude, longitude)
    names = pa.array([f"{row}.jpg" for row in range(len(latitude))], pa.large_string())
    columns = {"east": at.east, "north": at.north, "zone": np.full(len(latitude), at.zone, np.int8)}
    return Catalogue(
        folder, pa.table({"path": names, **columns, "heading": heading, "latitude": latitude, "longitude": longitude})
    )


if __name__ == "__main__":
    main()
