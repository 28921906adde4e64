"""A city of any size whose descriptors are generated when they are read: they take no disk and hardly any time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.atomic import replacing
from progeo.places.catalogue import Catalogue, catalogue_writer
from progeo.places.distances import EARTH_RADIUS_M
from progeo.places.nearby import Near, haversine_m

IMAGES_PER_PLACE, SPACING_M = 8, 30.0
IMAGE_NOISE, QUERY_NOISE = 0.6, 0.8
"""Length of what is random in a descriptor, beside what the images of a place share, which has length 1."""
_LATENT_DIM, _NUM_TABLE = 32, 2**14
_SOUTH_DEG, _WEST_DEG = 37.5, -122.6
_SIDE = 1024
"""Number of places from west to east."""
_ROWS_AT_ONCE, _IMAGES_AT_ONCE = 2**15, 2**20


@dataclass(frozen=True)
class GeneratedRows:
    """Descriptors of unit length: a place is a point in a space of 32 dimensions, an image lies around its place."""

    num_rows: int
    width: int
    """D."""
    noise: float = IMAGE_NOISE
    seed: int = 1
    """Other images of the same places have another."""

    def __len__(self) -> int:
        return self.num_rows

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        latent = rng.standard_normal((_NUM_TABLE, _LATENT_DIM), np.float32)
        basis = rng.standard_normal((_LATENT_DIM, self.width), np.float32)
        ambient = rng.standard_normal((_NUM_TABLE, self.width), np.float32)
        return latent, basis, ambient / np.linalg.norm(ambient, axis=1, keepdims=True)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Generate the descriptors of rows int64 (n,), float32 (n, D)."""
        found = np.empty((len(rows), self.width), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            found[start : start + _ROWS_AT_ONCE] = self._generated(rows[start : start + _ROWS_AT_ONCE])
        return found

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows in turn, (n, D) at a time."""
        for start in range(0, self.num_rows, _ROWS_AT_ONCE):
            yield self._generated(np.arange(start, min(start + _ROWS_AT_ONCE, self.num_rows)))

    def _generated(self, rows: np.ndarray) -> np.ndarray:
        latent, basis, ambient = self._tables
        places = rows // IMAGES_PER_PLACE
        shared = (latent[_drawn(places, 0)] + latent[_drawn(places, -1)]) @ basis
        shared /= np.linalg.norm(shared, axis=1, keepdims=True)
        values = shared + self.noise * ambient[_drawn(rows, 2 * self.seed)]
        values += self.noise * ambient[_drawn(rows, 2 * self.seed + 1)]
        return values / np.linalg.norm(values, axis=1, keepdims=True)


def generated_images(num_rows: int, *, first: int = 0) -> Catalogue:
    """Build the catalogue of rows `first` and on, as `index_images` returns it: places on a grid of 30 m."""
    rows = np.arange(first, first + num_rows)
    places = rows // IMAGES_PER_PLACE
    latitude, longitude = position_deg(rows)
    paths = pc.binary_join_element_wise(
        pa.scalar("/city/"), pc.cast(pa.array(rows), pa.string()), pa.scalar(".jpg"), ""
    )
    table = pa.table(
        {
            "path": paths.cast(pa.large_string()),
            "east": 500_000 + SPACING_M * (places % _SIDE),
            "north": 4_150_000 + SPACING_M * (places // _SIDE),
            "zone": np.full(num_rows, 10, np.int8),
            "heading": (rows % IMAGES_PER_PLACE) * 360.0 / IMAGES_PER_PLACE,
            "latitude": latitude,
            "longitude": longitude,
        }
    )
    return Catalogue(Path("/city"), table)


def save_images(path: Path, num_rows: int) -> None:
    """Write the catalogue of all rows to an Arrow file, some at a time."""
    with replacing(path) as temporary, catalogue_writer(temporary, generated_images(1).table.schema, {}) as writer:
        for first in range(0, num_rows, _IMAGES_AT_ONCE):
            writer.write_table(generated_images(min(_IMAGES_AT_ONCE, num_rows - first), first=first).table)


def position_deg(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return latitude and longitude of the places of rows, (n,) each."""
    north, east = np.divmod(rows // IMAGES_PER_PLACE, _SIDE)
    step = np.degrees(SPACING_M / EARTH_RADIUS_M)
    return _SOUTH_DEG + step * north, _WEST_DEG + step * east / np.cos(np.radians(_SOUTH_DEG))


def rows_within(near: Near, num_rows: int) -> np.ndarray:
    """Find the rows within a radius by comparing all rows of its latitudes, int64 (n,)."""
    meters = np.radians(near.latitude - _SOUTH_DEG) * EARTH_RADIUS_M
    bounds = [int((meters + side * (near.radius_m + SPACING_M)) // SPACING_M) for side in (-1, 1)]
    first, last = (np.clip(each * _SIDE * IMAGES_PER_PLACE, 0, num_rows) for each in (bounds[0], bounds[1] + 1))
    rows = np.arange(first, last)
    return rows[haversine_m(*position_deg(rows), near.latitude, near.longitude) <= near.radius_m]


def _drawn(numbers: np.ndarray, salt: int) -> np.ndarray:
    """Draw a row of a table for each number: a hash of the number and the salt (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64((salt + 2) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(_NUM_TABLE)).astype(np.int64)
