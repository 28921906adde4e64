"""The streets, lots and buildings of the toy city: everything that is the same at every visit."""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from progeo.toy_city.colors import WALL_COLORS, rgb

SPACING_M = 30
"""Grid spacing of streets and positions, in the middle of 10 m cells: the minimum distance of two positions."""
SIDEWALK_M = 3.0
_WALL_DTYPE = np.dtype(
    [(name, "i4") for name in ("axis", "facing", "sense", "building")]
    + [(name, "f4") for name in ("plane", "origin", "width", "height")]
    + [("party", "?")]
)
"""A vertical rectangle in the plane where coordinate `axis` equals `plane`, visible from its `facing` side. The other
coordinate extends `width` meters from `origin` in direction `sense`, left to right for a viewer."""
_SPOT_DTYPE = np.dtype([("kind", "U6"), ("axis", "i4"), ("east", "f4"), ("north", "f4"), ("seed", "u4")])


@dataclass(frozen=True)
class Building:
    """The parameters that determine how a building's facades are painted."""

    seed: tuple[int, ...]
    color: tuple[float, ...]
    storeys: int
    storey_m: float
    ground_floor_m: float
    cornice_m: float

    @property
    def height_m(self) -> float:
        """Height from the pavement to the top of the cornice."""
        return self.ground_floor_m + self.storeys * self.storey_m + self.cornice_m


@dataclass(frozen=True)
class District:
    """A street grid in meters from its origin: everything that is the same at every visit."""

    centers: list[np.ndarray]
    """Center lines: east coordinates of the streets that run north, north coordinates of those that run east."""
    half_widths: list[np.ndarray]
    positions: np.ndarray
    buildings: list[Building]
    walls: np.ndarray
    spots: np.ndarray
    """Positions of trees and lamps, and possible positions of cars and people."""


@lru_cache(maxsize=4)
def build_district(seed: int, split: int, num_positions: int) -> District:
    """Lay out streets with room for `num_positions` positions, and add buildings, trees and lamps."""
    rng = np.random.default_rng([seed, split, num_positions])
    for num_streets in itertools.count(4):
        centers = [SPACING_M * np.cumsum(rng.integers(2, 5, num_streets)) for _ in range(2)]
        # The outermost streets only close the view; they have no positions.
        easts, norths = (np.arange(line[1], line[-2] + 1, SPACING_M) for line in centers)
        grid = np.array([(x, y) for x in easts for y in norths if x in centers[0] or y in centers[1]], dtype=float)
        if len(grid) >= num_positions:
            break
    half_widths = [rng.uniform(9.0, 11.5, num_streets) for _ in range(2)]
    buildings: list[Building] = []
    walls: list[tuple] = []
    for i, j in np.ndindex(num_streets - 1, num_streets - 1):
        low = [centers[axis][k] + half_widths[axis][k] for axis, k in enumerate((i, j))]
        high = [centers[axis][k + 1] - half_widths[axis][k + 1] for axis, k in enumerate((i, j))]
        walls += _build_block(rng, low, high, buildings, (seed, split))
    spots = [
        spot for axis in range(2) for k in range(num_streets) for spot in _spots(rng, centers, half_widths, axis, k)
    ]
    positions = rng.permutation(grid)[:num_positions]
    return District(
        centers, half_widths, positions, buildings, np.array(walls, _WALL_DTYPE), np.array(spots, _SPOT_DTYPE)
    )


def _build_block(
    rng: np.random.Generator, low: list[float], high: list[float], buildings: list[Building], seed: tuple[int, ...]
) -> list[tuple]:
    """Line the four sides of a block with buildings, counterclockwise, which is left to right seen from outside."""
    (west, south), (east, north) = low, high
    sides = [(1, -1, 1, south, west), (0, 1, 1, east, south), (1, 1, -1, north, east), (0, -1, -1, west, north)]
    lots = [_lot_edges(rng, high[1 - axis] - low[1 - axis]) for axis, *_ in sides]
    # The last lot of a side and the first lot of the next side are one corner building.
    total = sum(len(edges) - 2 for edges in lots)
    first, walls = len(buildings), []
    buildings += [_draw_building(rng, (*seed, first + k)) for k in range(total)]
    index = 0
    for (axis, facing, sense, plane, corner), edges in zip(sides, lots, strict=True):
        owners = [first + (index + k) % total for k in range(len(edges) - 1)]
        index += len(edges) - 2
        heights = [buildings[owner].height_m for owner in owners]
        for k, owner in enumerate(owners):
            origin = corner + sense * edges[k]
            walls.append((axis, facing, sense, owner, plane, origin, edges[k + 1] - edges[k], heights[k], False))
        for k in range(1, len(owners)):
            taller, toward = (k - 1, sense) if heights[k - 1] > heights[k] else (k, -sense)
            party = (1 - axis, toward, -facing, owners[taller], corner + sense * edges[k], plane, 10.0)
            walls.append((*party, heights[taller], True))
    return walls


def _lot_edges(rng: np.random.Generator, length_m: float) -> np.ndarray:
    widths = rng.uniform(8, 19, max(2, round(length_m / 13)))
    return np.concatenate([[0.0], np.cumsum(widths) * length_m / widths.sum()])


def _draw_building(rng: np.random.Generator, seed: tuple[int, ...]) -> Building:
    color = np.clip(rgb(rng.choice(WALL_COLORS)) * rng.uniform(0.85, 1.1) + rng.normal(0, 8, 3), 20, 250)
    storeys = int(rng.choice([1, 2, 3, 4, 5, 7], p=[0.2, 0.3, 0.25, 0.1, 0.1, 0.05]))
    return Building(
        seed, tuple(map(float, color)), storeys, rng.uniform(2.9, 3.8), rng.uniform(3.2, 4.8), rng.uniform(0.4, 1.4)
    )


def _spots(
    rng: np.random.Generator, centers: list[np.ndarray], half_widths: list[np.ndarray], axis: int, street: int
) -> list[tuple]:
    """Place objects along both curbs of a street, except at crossings."""
    kinds = {"car": (6.2, -1.1), "person": (4.0, 1.8), "lamp": (27.0, 0.5)}
    if rng.random() < 0.6:
        kinds["tree"] = (float(rng.uniform(9, 16)), 0.9)
    spots = []
    for (kind, (step_m, from_kerb_m)), side in itertools.product(kinds.items(), (-1, 1)):
        along = np.arange(centers[1 - axis][0] + rng.uniform(0, step_m), centers[1 - axis][-1], step_m)
        gaps = np.abs(along[:, None] - centers[1 - axis]) - half_widths[1 - axis]
        across = centers[axis][street] + side * (half_widths[axis][street] - SIDEWALK_M + from_kerb_m)
        for coordinate in along[(gaps > 3).all(axis=1)]:
            position = (across, coordinate) if axis == 0 else (coordinate, across)
            spots.append((kind, axis, *position, rng.integers(2**32)))
    return spots
