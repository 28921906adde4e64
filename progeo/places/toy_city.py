"""Renders a seeded toy city into the folders and names of the field, so that everything runs with no download.

Every split is a street grid of its own. Facades are painted once per building and seen through a column ray caster;
sky, light, cars and people are drawn anew at every visit.
"""

import base64
import itertools
import math
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import utm
from PIL import Image, ImageDraw
from tqdm import tqdm

from progeo.places.filename import ParsedNames, format_names

MIN_IMAGES = 20
HEADINGS_DEG = (15, 105, 195, 285)
"""Centres of 30 degree bins; 15 degrees off the streets, so that a view along a street also shows one side of it."""
DATES_PER_PLACE = 10
SPACING_M = 30
"""Streets and positions lie on a grid of this step, in the middle of 10 m cells: no two positions are nearer."""
SPLITS = ("train", "val", "test")
_ZONE, _LETTER, _NORTH_M, _EASTS_M = 10, "S", 4_180_005, (545_005, 560_005, 575_005)
"""UTM origins of the splits' street grids, further apart than any grid is long."""

_SIDEWALK_M = 3.0
_SIGHT_M = 150.0
_DETAIL_M = 60.0
"""Further away there are buildings only."""
_LAYERS = 4
"""Walls seen one above the other in a column of pixels."""
_MIP_LEVELS = 5
_SUPERSAMPLING = 2
_OPAQUE = 255
"""Alpha of painted wall; a pane of glass has a smaller one, which decides in which nights it is lit."""

_WALL_COLOURS = (
    "#9c4a38 #b5654a #7d3b30 #d8c9a6 #e6dcc6 #c9b48a #8f9aa3 #b9bdbb #6d7780 #a8c0cf #6f93b5 #b7cfa8 #7f9a72 #e3c35f "
    "#d99a4e #e3b6ae #c77f86 #a99bc0 #f0ece2 #5d5048 #8a6b4f #3f5e6b"
).split()
_ACCENT_COLOURS = "#b3202a #1f5fa8 #1e7d46 #e0a81c #6b2d7a #e2702a #222831 #f2efe6 #1d9aa1 #c2417c".split()
_CAR_COLOURS = "#d9d9d9 #f4f4f4 #1c1d20 #5b6066 #8c1f22 #24406b #a9a79f #2f4f3c".split()

_WALL_DTYPE = np.dtype(
    [(name, "i4") for name in ("axis", "facing", "sense", "building")]
    + [(name, "f4") for name in ("plane", "origin", "width", "height")]
    + [("party", "?")]
)
"""A vertical rectangle in the plane where coordinate `axis` is `plane`, seen from its `facing` side; the other
coordinate runs `width` metres from `origin` in direction `sense`, from a viewer's left to right."""
_SPOT_DTYPE = np.dtype([("kind", "U6"), ("axis", "i4"), ("east", "f4"), ("north", "f4"), ("seed", "u4")])


@dataclass(frozen=True)
class _Building:
    seed: tuple[int, ...]
    colour: np.ndarray
    storeys: int
    storey_m: float
    ground_floor_m: float
    cornice_m: float

    @property
    def height_m(self) -> float:
        return self.ground_floor_m + self.storeys * self.storey_m + self.cornice_m


@dataclass(frozen=True)
class _District:
    """A street grid in metres from its origin: all that stays from visit to visit."""

    centres: list[np.ndarray]
    """Of the streets that run north, their east; of the streets that run east, their north."""
    half_widths: list[np.ndarray]
    positions: np.ndarray
    buildings: list[_Building]
    walls: np.ndarray
    spots: np.ndarray
    """Where trees and lamps stand, and where cars and people may."""


@dataclass(frozen=True)
class _Camera:
    place: np.ndarray
    height_m: float
    heading_deg: float
    pitch_deg: float
    """Shifts the picture without tilting it: walls stay upright, and a column of pixels sees one direction."""
    fov_deg: float

    def axes(self) -> np.ndarray:
        """Return the unit vectors forward and to the right, as rows of (east, north)."""
        sine, cosine = math.sin(math.radians(self.heading_deg)), math.cos(math.radians(self.heading_deg))
        return np.array([[sine, cosine], [cosine, -sine]], dtype=np.float32)

    def rays(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return directions (2, size) of the columns, one metre forward, and slopes (size,) of the rows."""
        tangents = ((np.arange(size) + 0.5) / size * 2 - 1) * math.tan(math.radians(self.fov_deg / 2))
        forward, right = self.axes()
        directions = forward[:, None] + right[:, None] * tangents
        return directions.astype(np.float32), (math.tan(math.radians(self.pitch_deg)) - tangents).astype(np.float32)

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Return column, row and depth (N, 3) of points (N, 3) in front of the camera."""
        depth, side = self.axes() @ (points[:, :2] - self.place).T
        extent, depth = math.tan(math.radians(self.fov_deg / 2)), np.maximum(depth, 1e-3)
        slope = (points[:, 2] - self.height_m) / depth - math.tan(math.radians(self.pitch_deg))
        return np.stack([(side / depth / extent + 1) * size / 2, (1 - slope / extent) * size / 2, depth], axis=1)


@dataclass(frozen=True)
class _Light:
    """The sky and light of a visit; colours are RGB from 0 to 255, or factors of the colours they light."""

    zenith: np.ndarray
    horizon: np.ndarray
    ambient: np.ndarray
    sun: np.ndarray
    """At night the street lamps, whose light falls off with height."""
    sun_direction: np.ndarray
    sun_slope: float
    """Tangent of the sun's elevation, 0 at night."""
    clouds: float
    haze_m: float
    traffic: float

    @property
    def night(self) -> bool:
        return self.sun_slope == 0


@dataclass(frozen=True)
class _Shot:
    split: int
    num_positions: int
    folder: str
    name: str
    visit_seed: tuple[int, ...]
    camera: _Camera


def render_toy_city(
    out: Path, *, seed: int = 0, num_images: int = 2000, image_size: int = 128, workers: int = os.cpu_count() or 1
) -> Path:
    """Render a city to `out`/{train, val/database, val/queries, test/database, test/queries}.

    Seven tenths of the images are for training, about ten dates of each place; val and test have two database images
    for each query, of another date. The same seed gives the same bytes, whatever the number of workers.

    Args:
        out: a folder that is empty or does not exist; it appears when the last image is rendered.
        image_size: side of the square images in pixels.
        workers: processes that render.

    Returns:
        `out`.

    Raises:
        ValueError: `out` is not empty, or `num_images` is too small.
    """
    if num_images < MIN_IMAGES:
        raise ValueError(f"num_images must be at least {MIN_IMAGES} for three splits, got {num_images}.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder. Choose a new one: nothing is deleted or mixed with.")
    shots = [shot for split in range(len(SPLITS)) for shot in _plan_split(seed, split, num_images)]
    out = out.resolve()
    unfinished = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        for folder in {shot.folder for shot in shots}:
            (unfinished / folder).mkdir(parents=True)
        _render_shots(partial(_render_to_disk, root=unfinished, seed=seed, image_size=image_size), shots, workers)
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def _render_shots(render, shots: list[_Shot], workers: int) -> None:
    progress = partial(tqdm, total=len(shots), desc="toy city", unit="image")
    if workers == 1:
        for _ in progress(map(render, shots)):
            pass
        return
    # Chunks are long, because neighbouring shots see the same facades, which every process paints for itself.
    chunk = math.ceil(len(shots) / workers / 8)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in progress(pool.map(render, shots, chunksize=chunk)):
            pass


def _render_to_disk(shot: _Shot, *, root: Path, seed: int, image_size: int) -> None:
    district = _build_district(seed, shot.split, shot.num_positions)
    _render(district, shot, image_size).save(root / shot.folder / shot.name, quality=90)


def _plan_split(seed: int, split: int, num_images: int) -> list[_Shot]:
    """Choose the places of a split, their visits and cameras; shots of one position follow each other."""
    rng = np.random.default_rng([seed, split])
    num_database, num_queries = num_images // 10, num_images // 20
    if SPLITS[split] == "train":
        num_train = num_images - 2 * (num_database + num_queries)
        num_places = max(2, num_train // DATES_PER_PLACE)
        taken = [("train", i % num_places, i // num_places) for i in range(num_train)]
    else:
        num_places = num_database
        taken = [(f"{SPLITS[split]}/database", place, 0) for place in range(num_database)]
        taken += [(f"{SPLITS[split]}/queries", int(place), 1) for place in rng.permutation(num_places)[:num_queries]]
    # A large city uses all headings of a position; a tiny one rather has more positions.
    num_positions = max(math.ceil(num_places / len(HEADINGS_DEG)), min(num_places, 12))
    district = _build_district(seed, split, num_positions)
    shots = []
    for folder, place, visit in sorted(taken, key=lambda shot: (shot[1] % num_positions, shot)):
        position, turn = place % num_positions, place // num_positions
        heading = HEADINGS_DEG[(position + turn) % len(HEADINGS_DEG)]
        visit_seed = (seed, split, position, visit)
        camera = _aim(visit_seed, district.positions[position], heading)
        name = _name(visit_seed, camera)
        shots.append(_Shot(split, num_positions, folder, name, visit_seed, camera))
    return shots


def _aim(visit_seed: tuple[int, ...], position: np.ndarray, heading_deg: int) -> _Camera:
    """Place a camera near `position`; the headings of a visit share the place, as crops of one panorama do."""
    rng = np.random.default_rng(visit_seed)
    place, height_m = np.round(position + rng.uniform(-2, 2, 2), 2), rng.uniform(2.2, 2.8)
    rng = np.random.default_rng([*visit_seed, heading_deg])
    turn_deg, pitch_deg, fov_deg = rng.uniform([-8, 5, 78], [8, 11, 90])
    return _Camera(place, round(height_m, 2), round(heading_deg + turn_deg, 2), round(pitch_deg, 2), fov_deg)


def _name(visit_seed: tuple[int, ...], camera: _Camera) -> str:
    seed, split, position, visit = visit_seed
    months = np.random.default_rng([seed, split, position]).permutation(15 * 12)
    year, month = divmod(int(months[visit]), 12)
    pano_id = base64.urlsafe_b64encode(np.random.default_rng(visit_seed).bytes(16)).decode()[:22]
    east, north = camera.place + (_EASTS_M[split], _NORTH_M)
    latitude, longitude = utm.to_latlon(east, north, _ZONE, _LETTER)
    numbers = {"east": east, "north": north, "latitude": latitude, "longitude": longitude, "roll": 0.0}
    numbers |= {"heading": camera.heading_deg, "pitch": camera.pitch_deg, "height": camera.height_m}
    texts = {"letter": _LETTER, "pano_id": pano_id, "tile": "", "timestamp": f"{2008 + year}{month + 1:02}", "note": ""}
    columns = {field: np.array([value]) for field, value in {**numbers, **texts}.items()}
    return format_names(ParsedNames(zone=np.array([_ZONE], dtype=np.int8), **columns))[0]


@lru_cache(maxsize=4)
def _build_district(seed: int, split: int, num_positions: int) -> _District:
    rng = np.random.default_rng([seed, split, num_positions])
    for num_streets in itertools.count(4):
        centres = [SPACING_M * np.cumsum(rng.integers(2, 5, num_streets)) for _ in range(2)]
        # The outermost streets close the view and have no positions of their own.
        easts, norths = (np.arange(line[1], line[-2] + 1, SPACING_M) for line in centres)
        grid = np.array([(x, y) for x in easts for y in norths if x in centres[0] or y in centres[1]], dtype=float)
        if len(grid) >= num_positions:
            break
    half_widths = [rng.uniform(9.0, 11.5, num_streets) for _ in range(2)]
    buildings: list[_Building] = []
    walls: list[tuple] = []
    for i, j in np.ndindex(num_streets - 1, num_streets - 1):
        low = [centres[axis][k] + half_widths[axis][k] for axis, k in enumerate((i, j))]
        high = [centres[axis][k + 1] - half_widths[axis][k + 1] for axis, k in enumerate((i, j))]
        walls += _build_block(rng, low, high, buildings, (seed, split))
    spots = [spot for axis in range(2) for k in range(num_streets) for spot in _spots(rng, centres, half_widths, axis, k)]
    positions = rng.permutation(grid)[:num_positions]
    return _District(
        centres, half_widths, positions, buildings, np.array(walls, _WALL_DTYPE), np.array(spots, _SPOT_DTYPE)
    )


def _build_block(
    rng: np.random.Generator, low: list[float], high: list[float], buildings: list[_Building], seed: tuple[int, ...]
) -> list[tuple]:
    """Line the four sides of a block with buildings, counterclockwise, which is left to right as seen from outside."""
    (west, south), (east, north) = low, high
    sides = [(1, -1, 1, south, west), (0, 1, 1, east, south), (1, 1, -1, north, east), (0, -1, -1, west, north)]
    lots = [_lot_edges(rng, high[1 - axis] - low[1 - axis]) for axis, *_ in sides]
    # The last lot of a side and the first of the next are one building, at the corner.
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
            taller, towards = (k - 1, sense) if heights[k - 1] > heights[k] else (k, -sense)
            party = (1 - axis, towards, -facing, owners[taller], corner + sense * edges[k], plane, 10.0)
            walls.append((*party, heights[taller], True))
    return walls


def _lot_edges(rng: np.random.Generator, length_m: float) -> np.ndarray:
    widths = rng.uniform(8, 19, max(2, round(length_m / 13)))
    return np.concatenate([[0.0], np.cumsum(widths) * length_m / widths.sum()])


def _draw_building(rng: np.random.Generator, seed: tuple[int, ...]) -> _Building:
    colour = np.clip(_rgb(rng.choice(_WALL_COLOURS)) * rng.uniform(0.85, 1.1) + rng.normal(0, 8, 3), 20, 250)
    storeys = int(rng.choice([1, 2, 3, 4, 5, 7], p=[0.2, 0.3, 0.25, 0.1, 0.1, 0.05]))
    return _Building(seed, colour, storeys, rng.uniform(2.9, 3.8), rng.uniform(3.2, 4.8), rng.uniform(0.4, 1.4))


def _spots(rng: np.random.Generator, centres, half_widths, axis: int, street: int) -> list[tuple]:
    """Place what stands along both kerbs of a street, outside of its crossings."""
    kinds = {"car": (6.2, -1.1), "person": (4.0, 1.8), "lamp": (27.0, 0.5)}
    if rng.random() < 0.6:
        kinds["tree"] = (float(rng.uniform(9, 16)), 0.9)
    spots = []
    for (kind, (step_m, from_kerb_m)), side in itertools.product(kinds.items(), (-1, 1)):
        along = np.arange(centres[1 - axis][0] + rng.uniform(0, step_m), centres[1 - axis][-1], step_m)
        gaps = np.abs(along[:, None] - centres[1 - axis]) - half_widths[1 - axis]
        across = centres[axis][street] + side * (half_widths[axis][street] - _SIDEWALK_M + from_kerb_m)
        for coordinate in along[(gaps > 3).all(axis=1)]:
            place = (across, coordinate) if axis == 0 else (coordinate, across)
            spots.append((kind, axis, *place, rng.integers(2**32)))
    return spots


def _draw_light(rng: np.random.Generator) -> _Light:
    weather = rng.choice(["clear", "overcast", "fog", "golden", "night"], p=[0.34, 0.22, 0.1, 0.17, 0.17])
    zenith, horizon, ambient, sun = {
        "clear": ("#4a80c8", "#bcd2e6", (0.42, 0.46, 0.56), (0.75, 0.70, 0.58)),
        "overcast": ("#8f979f", "#c4c8ca", (0.72, 0.74, 0.76), (0.06, 0.06, 0.06)),
        "fog": ("#b9bdc0", "#c8cacb", (0.66, 0.68, 0.72), (0.0, 0.0, 0.0)),
        "golden": ("#6f7fae", "#f0b27a", (0.36, 0.34, 0.42), (0.95, 0.58, 0.26)),
        "night": ("#0c1226", "#2a2a3c", (0.13, 0.14, 0.21), (0.62, 0.46, 0.24)),
    }[weather]
    azimuth = rng.uniform(0, 2 * math.pi)
    elevation_deg = rng.uniform(8, 22) if weather == "golden" else rng.uniform(25, 65)
    return _Light(
        *(_rgb(colour) * rng.uniform(0.85, 1.1) for colour in (zenith, horizon)),
        *(np.array(factor) * rng.uniform(0.85, 1.15, 3) for factor in (ambient, sun)),
        sun_direction=np.array([math.sin(azimuth), math.cos(azimuth)], dtype=np.float32),
        sun_slope=0.0 if weather == "night" else math.tan(math.radians(elevation_deg)),
        clouds=float(rng.uniform(0.8, 1.0) if weather == "overcast" else rng.uniform(0, 0.7)),
        haze_m=float(rng.uniform(40, 90) if weather == "fog" else rng.uniform(150, 500)),
        traffic=float(rng.uniform(0.05, 0.75)),
    )


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], dtype=np.float32)
