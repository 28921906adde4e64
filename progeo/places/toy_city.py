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
    colour: tuple[float, ...]
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
        extent, depth = math.tan(math.radians(self.fov_deg / 2)), np.maximum(depth, 0.3)
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
    spots = [
        spot for axis in range(2) for k in range(num_streets) for spot in _spots(rng, centres, half_widths, axis, k)
    ]
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
    return _Building(
        seed, tuple(map(float, colour)), storeys, rng.uniform(2.9, 3.8), rng.uniform(3.2, 4.8), rng.uniform(0.4, 1.4)
    )


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
        *(_rgb(colour) * np.float32(rng.uniform(0.85, 1.1)) for colour in (zenith, horizon)),
        *((factor * rng.uniform(0.85, 1.15, 3)).astype(np.float32) for factor in (ambient, sun)),
        sun_direction=np.array([math.sin(azimuth), math.cos(azimuth)], dtype=np.float32),
        sun_slope=0.0 if weather == "night" else math.tan(math.radians(elevation_deg)),
        clouds=float(rng.uniform(0.8, 1.0) if weather == "overcast" else rng.uniform(0, 0.7)),
        haze_m=float(rng.uniform(40, 90) if weather == "fog" else rng.uniform(150, 500)),
        traffic=float(rng.uniform(0.05, 0.75)),
    )


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], dtype=np.float32)


class _Brush:
    """Paints rectangles given in metres from the lower left corner of a facade."""

    def __init__(self, image: Image.Image, height_m: float, texels_per_m: float):
        self._draw, self._height_m, self._texels_per_m = ImageDraw.Draw(image), height_m, texels_per_m

    def box(self, left: float, bottom: float, right: float, top: float, colour: np.ndarray, alpha: int = _OPAQUE):
        self._draw.rectangle(self._corners(left, bottom, right, top), fill=_rgba(colour, alpha))

    def disc(self, left: float, bottom: float, right: float, top: float, colour: np.ndarray, alpha: int = _OPAQUE):
        self._draw.ellipse(self._corners(left, bottom, right, top), fill=_rgba(colour, alpha))

    def _corners(self, left: float, bottom: float, right: float, top: float) -> list[int]:
        edges = (left, self._height_m - top, right, self._height_m - bottom)
        x0, y0, x1, y1 = (round(edge * self._texels_per_m) for edge in edges)
        return [x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)]


def _rgba(colour: np.ndarray, alpha: int) -> tuple[int, ...]:
    return (*(int(min(max(value, 0), 255)) for value in colour), alpha)


@lru_cache(maxsize=512)
def _facade(building: _Building, width_m: float, texels_per_m: float) -> list[np.ndarray]:
    """Paint a facade: RGBA texels at halving resolutions, the top row first."""
    block = 2 ** (_MIP_LEVELS - 1)
    rows, columns = (math.ceil((length * texels_per_m + 1) / block) * block for length in (building.height_m, width_m))
    image = Image.fromarray(_paint_wall(building, rows, columns, texels_per_m))
    brush = _Brush(image, building.height_m, texels_per_m)
    _paint_storeys(brush, building, width_m)
    _paint_ground_floor(brush, building, width_m)
    levels = [np.asarray(image)]
    for _ in range(_MIP_LEVELS - 1):
        finer = levels[-1]
        coarser = finer[::2, ::2].copy()
        coarser[..., :3] = finer[..., :3].reshape(len(coarser), 2, -1, 2, 3).mean(axis=(1, 3))
        levels.append(coarser)
    return levels


def _paint_wall(building: _Building, rows: int, columns: int, texels_per_m: float) -> np.ndarray:
    """Paint the bare wall: plaster, boards or blocks."""
    rng = np.random.default_rng([*building.seed, 0])
    course_m, joint, block_m = rng.uniform(0.3, 0.9), rng.choice([0.0, 0.12, 0.22]), rng.choice([0.0, 1.0])
    down, right = np.arange(rows)[:, None] / texels_per_m, np.arange(columns)[None] / texels_per_m
    course, within = np.divmod(down, course_m)
    joints = within * texels_per_m < 1
    if block_m:
        joints = joints | ((right + course % 2 * block_m / 2) % block_m * texels_per_m < 1)
    tone = 1 - joint * joints + rng.normal(0, 0.03, (rows, columns)) - 0.1 * (down > building.height_m - 0.8)
    wall = np.full((rows, columns, 4), _OPAQUE, dtype=np.uint8)
    wall[..., :3] = np.clip(np.array(building.colour) * tone[..., None], 0, 255)
    return wall


def _paint_storeys(brush: _Brush, building: _Building, width_m: float) -> None:
    """Paint the windows of the upper storeys, the cornice and string courses."""
    rng = np.random.default_rng([*building.seed, 1])
    bay_m, wide, tall = rng.uniform([2.0, 0.35, 0.42], [4.0, 0.72, 0.68])
    arched, sills, mullions, courses, shutters, balconies = rng.random(6) < (0.25, 0.5, 0.6, 0.35, 0.2, 0.2)
    colour = np.array(building.colour)
    trim = _pick(rng, ("#f2efe8", "#2b2b2e", "#e0d4bd", "#5a4636")) if rng.random() < 0.8 else colour * 0.6
    accent, glass = _pick(rng, _ACCENT_COLOURS), _pick(rng, ("#2c3a48", "#3d4f5c", "#22282e", "#4a6478"))
    brush.box(0, building.height_m - building.cornice_m, width_m, building.height_m, trim * 0.92)
    brush.box(
        0, building.height_m - building.cornice_m, width_m, building.height_m - building.cornice_m * 0.7, trim * 0.6
    )
    bays = max(2, round(width_m / bay_m))
    bay_m = width_m / bays
    half = bay_m * wide / 2
    for storey in range(building.storeys):
        floor = building.ground_floor_m + storey * building.storey_m
        if courses:
            brush.box(0, floor - 0.15, width_m, floor + 0.15, trim)
        bottom = floor + building.storey_m * (1 - tall) * 0.55
        top = bottom + building.storey_m * tall
        for centre in (np.arange(bays) + 0.5) * bay_m:
            pane, alpha = glass * rng.uniform(0.7, 1.5), int(rng.integers(_OPAQUE))
            if shutters:
                brush.box(centre - half - 0.5, bottom, centre + half + 0.5, top, accent)
            if arched:
                brush.disc(centre - half - 0.15, top - half, centre + half + 0.15, top + half, trim)
                brush.disc(centre - half, top - half, centre + half, top + half * 0.85, pane, alpha)
            brush.box(centre - half - 0.15, bottom - 0.15, centre + half + 0.15, top + (0 if arched else 0.15), trim)
            brush.box(centre - half, bottom, centre + half, top, pane, alpha)
            if rng.random() < 0.4:
                brush.box(
                    centre - half, top - rng.uniform(0.2, 0.9) * (top - bottom), centre + half, top, pane + 70, alpha
                )
            if mullions:
                brush.box(centre - 0.07, bottom, centre + 0.07, top, trim)
                brush.box(
                    centre - half,
                    bottom + 0.6 * (top - bottom),
                    centre + half,
                    bottom + 0.6 * (top - bottom) + 0.12,
                    trim,
                )
            if sills:
                brush.box(centre - half - 0.3, bottom - 0.35, centre + half + 0.3, bottom - 0.1, trim * 0.85)
            if balconies:
                brush.box(centre - half - 0.4, floor + 0.05, centre + half + 0.4, floor + 0.9, accent * 0.6)


def _paint_ground_floor(brush: _Brush, building: _Building, width_m: float) -> None:
    """Paint shops with signs and awnings, or doors, windows and garages."""
    rng = np.random.default_rng([*building.seed, 2])
    shops, awnings, striped = rng.random(3) < (0.55, 0.5, 0.5)
    base, sign, awning, door = (_pick(rng, _ACCENT_COLOURS) for _ in range(4))
    base = base * 0.5 + np.array(building.colour) * 0.3 if shops else np.array(building.colour) * rng.uniform(0.55, 1.0)
    top = building.ground_floor_m - 0.2
    brush.box(0, 0, width_m, top, base)
    units = max(1, round(width_m / rng.uniform(3.5, 6.0)))
    for left in np.arange(units) * width_m / units:
        right = left + width_m / units
        glass, alpha = np.array((40, 50, 58)) * rng.uniform(0.7, 2.0), int(rng.integers(_OPAQUE))
        if shops:
            brush.box(left + 0.3, 0.5, right - 0.3, top - 0.9, glass, alpha)
            brush.box(right - 1.5, 0.05, right - 0.5, 2.2, door * 0.8)
            brush.box(left + 0.15, top - 0.85, right - 0.15, top - 0.05, sign)
            for x in np.arange(left + 0.5, right - 0.8, 0.5):
                if rng.random() < 0.8:
                    brush.box(x, top - 0.7, x + rng.uniform(0.15, 0.4), top - rng.uniform(0.2, 0.45), 255 - sign)
            if awnings:
                for k, x in enumerate(np.arange(left + 0.2, right - 0.3, 0.5)):
                    brush.box(
                        x, top - 1.7, x + 0.5, top - 0.9, np.array((238, 234, 224)) if striped and k % 2 else awning
                    )
        elif rng.random() < 0.4:
            brush.box(left + 0.5, 0, right - 0.5, 2.5, door * 0.5 + 90)
            for z in (0.6, 1.2, 1.8):
                brush.box(left + 0.6, z, right - 0.6, z + 0.1, door * 0.5 + 50)
        else:
            middle = (left + right) / 2
            brush.box(middle - 1.5, 0, middle - 0.2, 2.6, door * 0.3)
            brush.box(middle - 1.35, 0, middle - 0.35, 2.4, door)
            brush.box(middle + 0.4, 1.0, middle + 1.8, 2.5, np.array((230, 226, 216)))
            brush.box(middle + 0.5, 1.1, middle + 1.7, 2.4, glass, alpha)


def _pick(rng: np.random.Generator, colours) -> np.ndarray:
    return _rgb(colours[rng.integers(len(colours))])


@lru_cache(maxsize=1)
def _mottle() -> np.ndarray:
    """Return a tile of smooth noise from -1 to 1, 256 x 256, that repeats without seams."""
    frequencies = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(256, 256))) / np.maximum(frequencies, 1 / 64) ** 1.3
    noise = np.fft.ifft2(spectrum).real
    return np.clip((noise - noise.mean()) / noise.std() / 2, -1, 1).astype(np.float32)


def _mottled(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _mottle()[y.astype(np.int32) & 255, x.astype(np.int32) & 255]


@dataclass(frozen=True)
class _Picture:
    """What every pixel shows before it is lit: colour (H, W, 3), distance, share of sunlight, own glow (H, W)."""

    colour: np.ndarray
    distance: np.ndarray
    sunlit: np.ndarray
    glow: np.ndarray

    def fill(self, where: np.ndarray, colour: np.ndarray, distance, sunlit, glow) -> None:
        """Fill the pixels of flat indices `where`."""
        self.colour.reshape(-1, 3)[where] = colour
        for plane, value in ((self.distance, distance), (self.sunlit, sunlit), (self.glow, glow)):
            plane.reshape(-1)[where] = value


def _render(district: _District, shot: _Shot, image_size: int) -> Image.Image:
    size = image_size * _SUPERSAMPLING
    rng = np.random.default_rng([*shot.visit_seed, 1])
    light = _draw_light(rng)
    picture = _Picture(np.zeros((size, size, 3), dtype=np.float32), *np.zeros((3, size, size), dtype=np.float32))
    picture.distance[:] = np.inf
    walls = _walls_near(district, shot.camera)
    _draw_walls(picture, district, walls, shot.camera, light, image_size / 12, int(rng.integers(256)))
    _draw_ground(picture, district, walls, shot.camera, light)
    _draw_things(picture, _things_present(district, shot.camera, light, rng), shot.camera, light)
    return _develop(picture, shot, light, rng)


def _walls_near(district: _District, camera: _Camera) -> np.ndarray:
    """Return the walls in sight whose front is towards the camera, wherever it looks: those behind it cast shadows."""
    walls, place = district.walls, camera.place.astype(np.float32)
    across = (place[walls["axis"]] - walls["plane"]) * walls["facing"]
    along = place[1 - walls["axis"]] - walls["origin"] - walls["sense"] * walls["width"] / 2
    return walls[(across > 0) & (np.hypot(across, along) < _SIGHT_M)]


def _intersect(walls: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (F, P) at which rays (2, P) meet the front of F walls, infinite for a miss, and where."""
    axis = walls["axis"]
    through = directions[axis]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (walls["plane"][:, None] - origins[axis]) / through
        along = origins[1 - axis] + distance * directions[1 - axis] - walls["origin"][:, None]
        along *= walls["sense"][:, None]
        inside = (along >= 0) & (along < walls["width"][:, None])
        hit = inside & (through * walls["facing"][:, None] < 0) & (distance > 0.05)
    return np.where(hit, distance, np.float32(np.inf)), along


def _shadow_height(walls: np.ndarray, points: np.ndarray, light: _Light) -> np.ndarray:
    """Return the height (P,) up to which walls shade points (2, P)."""
    distance, _ = _intersect(walls, points, np.broadcast_to(light.sun_direction[:, None], points.shape))
    return (walls["height"][:, None] - distance * np.float32(light.sun_slope)).max(axis=0)


def _draw_walls(
    picture: _Picture,
    district: _District,
    walls: np.ndarray,
    camera: _Camera,
    light: _Light,
    texels_per_m: float,
    salt: int,
) -> None:
    """Draw the walls a column of pixels sees: the nearest, and above it those that rise higher."""
    size = len(picture.colour)
    directions, slopes = camera.rays(size)
    distance, along = _intersect(walls, camera.place.astype(np.float32)[:, None], directions)
    rise = np.where(np.isfinite(distance), (walls["height"][:, None] - np.float32(camera.height_m)) / distance, -np.inf)
    top, columns = np.full(size, -np.inf, dtype=np.float32), np.arange(size)
    layer, seen = np.zeros((size, size), dtype=np.intp), []
    for _ in range(_LAYERS):
        nearest = np.where(rise > top, distance, np.inf).argmin(axis=0)
        top = np.maximum(top, rise[nearest, columns])
        layer += slopes[:, None] > top
        seen.append(nearest)
    nearest = distance[seen[0], columns]
    where = np.flatnonzero((layer < _LAYERS) & (-slopes[:, None] * nearest < camera.height_m))
    row, column = np.divmod(where, size)
    # A strip is what one column sees of one wall: all but the height in it is the same for its pixels.
    strips, strip = np.unique(layer.reshape(-1)[where] * size + column, return_inverse=True)
    strip_column = strips % size
    strip_wall = np.concatenate(seen)[strips]
    far, u = distance[strip_wall, strip_column], along[strip_wall, strip_column]
    wall = walls[strip_wall]
    through = np.abs(directions[wall["axis"], strip_column])
    footprint = far * (2 * math.tan(math.radians(camera.fov_deg / 2)) / size * texels_per_m) / np.sqrt(through)
    level = np.clip(np.log2(footprint), 0, _MIP_LEVELS - 1).astype(np.int32)
    texels, start, stride = _atlas(district, walls, strip_wall, level, texels_per_m)
    start = start + np.where(wall["party"], 0, (u * texels_per_m).astype(np.int32) >> level)
    height = np.float32(camera.height_m) + far[strip] * slopes[row]
    down = np.maximum((wall["height"][strip] - height) * np.float32(texels_per_m), 0).astype(np.int32) >> level[strip]
    texel = texels[start[strip] + down * stride[strip]]
    pane = texel[:, 3] != _OPAQUE
    colour = texel[:, :3].astype(np.float32)
    if light.night:
        sunlit = np.exp(-height / 5)
        glow = pane & (texel[:, 3] * np.uint8(73) + np.uint8(salt) < 90)
    else:
        colour[pane] = 0.7 * colour[pane] + 0.3 * light.horizon
        incidence = np.maximum(wall["facing"] * light.sun_direction[wall["axis"]], 0) / math.hypot(1, light.sun_slope)
        points = camera.place.astype(np.float32)[:, None] + far * directions[:, strip_column]
        shade = _shadow_height(walls, points, light)
        sunlit = incidence[strip] * (height > shade[strip])
        glow = np.zeros(1)
    picture.fill(where, colour, far[strip], sunlit, glow)


def _atlas(
    district: _District, walls: np.ndarray, strip_wall: np.ndarray, level: np.ndarray, texels_per_m: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the texels of all facades in sight, and where those of each strip start and how long their rows are."""
    shown, slot = np.unique(strip_wall, return_inverse=True)
    pieces, starts, strides, total = [], [], [], 0
    for wall in walls[shown]:
        building = district.buildings[wall["building"]]
        if wall["party"]:
            levels = [
                np.array([[[*(0.8 * value for value in building.colour), _OPAQUE]]]).astype(np.uint8)
            ] * _MIP_LEVELS
        else:
            levels = _facade(building, float(wall["width"]), texels_per_m)
        for piece in levels:
            starts.append(total)
            strides.append(0 if wall["party"] else piece.shape[1])
            total += piece.shape[0] * piece.shape[1]
        pieces += [piece.reshape(-1, 4) for piece in levels]
    index = slot * _MIP_LEVELS + level
    return np.concatenate(pieces), np.array(starts)[index], np.array(strides)[index]


def _draw_ground(picture: _Picture, district: _District, walls: np.ndarray, camera: _Camera, light: _Light) -> None:
    size = len(picture.colour)
    directions, slopes = camera.rays(size)
    horizon = int((slopes >= 0).sum())
    far = np.repeat(np.float32(camera.height_m) / -slopes[horizon:], size)
    where = np.flatnonzero(np.isinf(picture.distance[horizon:]))
    far, column = far[where], where % size
    x, y = (np.float32(camera.place[axis]) + far * directions[axis][column] for axis in range(2))
    road = _road_colours(district, x, y)
    sunlit = np.float32(0.8 if light.night else light.sun_slope / math.hypot(1, light.sun_slope))
    if light.sun.max() > 0.1 and not light.night:
        sunlit = sunlit * _ground_in_sun(walls, camera, light, slopes[horizon:], directions).reshape(-1)[where]
    picture.fill(where + horizon * size, road, far, sunlit, 0)


def _road_colours(district: _District, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    offsets, gaps, parity = [], [], []
    for coordinate, centres, half_widths in zip((x, y), district.centres, district.half_widths, strict=True):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, coordinate)
        offsets.append(np.abs(coordinate - centres[nearest]))
        gaps.append(offsets[-1] - (half_widths[nearest] - _SIDEWALK_M))
        parity.append(nearest % 2)
    gap = np.minimum(*gaps)
    joints = (np.minimum(x % 1.5, y % 1.5) < 0.06) & (gap > 0.25)
    material = np.where(gap < 0, 0, np.where(gap < 0.25, 2, 1 + 4 * joints))
    for axis, along in enumerate((y, x)):
        crossing = gaps[1 - axis]
        solid = parity[axis] == 1
        line = (offsets[axis] < 0.12) & (crossing > 4) & (solid | (along % 6 < 3))
        stripes = (gaps[axis] < -0.3) & (np.abs(crossing - 2) < 1.4) & (offsets[axis] % 1.2 < 0.6)
        material[stripes | (line & ~solid)] = 3
        material[line & solid] = 4
    palette = np.array(
        [(82, 83, 86), (150, 146, 138), (178, 175, 168), (212, 212, 206), (206, 166, 62), (126, 122, 116)]
    )
    tone = 1 + 0.16 * _mottled(x * 5, y * 5) + 0.1 * _mottled(x, y)
    return palette.astype(np.float32)[material] * tone[:, None]


def _ground_in_sun(
    walls: np.ndarray, camera: _Camera, light: _Light, slopes: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Return which pixels (H, W) of the ground no wall shades, from a coarse grid of rays."""
    coarse_slopes, coarse = slopes[len(slopes) % 8 // 2 :: 8], directions[:, 4::8]
    far = np.float32(camera.height_m) / np.maximum(-coarse_slopes, 0.02)
    points = camera.place.astype(np.float32)[:, None, None] + far[:, None] * coarse[:, None]
    shade = _shadow_height(walls, points.reshape(2, -1), light).reshape(len(far), -1)
    image = Image.fromarray(np.clip(shade, -3, 3).astype(np.float32))
    return np.asarray(image.resize((directions.shape[1], len(slopes)), Image.Resampling.BILINEAR)) < 0


class _Canvas:
    """Draws shapes given in metres over each other; the number of a shape's ink is kept as alpha."""

    def __init__(self, camera: _Camera, size: int):
        self._camera, self._size = camera, size
        self.image = Image.new("RGBA", (size, size))
        self._draw = ImageDraw.Draw(self.image)
        self.inks = [(np.inf, 0.0)]

    def dip(self, distance_m: float, glow: float = 0.0) -> None:
        """Take a new ink for shapes `distance_m` away."""
        self.inks.append((distance_m, glow))

    def faces(self, points: np.ndarray, faces: list[tuple[list[int], np.ndarray]]) -> None:
        """Draw those polygons over points (N, 3) whose corners run clockwise in the picture."""
        columns, rows, depths = self._camera.project(points, self._size).T
        for corners, colour in faces:
            x, y = columns[corners], rows[corners]
            if depths[corners].max() > 0.3 and (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0:
                self._draw.polygon(list(zip(x, y, strict=True)), fill=_rgba(colour, len(self.inks) - 1))

    def discs(self, points: np.ndarray, radius_m: float, colours: np.ndarray) -> None:
        columns, rows, depths = self._camera.project(points, self._size).T
        radii = radius_m * self._size / 2 / math.tan(math.radians(self._camera.fov_deg / 2)) / depths
        for x, y, radius, colour in zip(columns, rows, radii, colours, strict=True):
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_rgba(colour, len(self.inks) - 1))

    def upright(self, place: np.ndarray, bottom: float, top: float, width_m: float, colour: np.ndarray) -> None:
        """Draw a rectangle that stands at `place` and faces the camera."""
        half = self._camera.axes()[1] * width_m / 2
        corners = [(*(place - half), top), (*(place + half), top), (*(place + half), bottom), (*(place - half), bottom)]
        self.faces(np.array(corners), [([0, 1, 2, 3], colour)])


def _things_present(district: _District, camera: _Camera, light: _Light, rng: np.random.Generator) -> np.ndarray:
    """Return what stands near at a visit: trees and lamps always, cars and people at some of their spots."""
    spots = district.spots
    near = np.hypot(spots["east"] - camera.place[0], spots["north"] - camera.place[1]) < _DETAIL_M
    spots = spots[near]
    chance = np.select([spots["kind"] == "car", spots["kind"] == "person"], [light.traffic, light.traffic * 0.1], 1)
    passing = chance < 1
    spots["seed"][passing] = rng.integers(2**32, size=passing.sum())
    return spots[rng.random(len(spots)) < chance]


def _draw_things(picture: _Picture, things: np.ndarray, camera: _Camera, light: _Light) -> None:
    canvas = _Canvas(camera, len(picture.colour))
    places = np.stack([things["east"], things["north"]], axis=1)
    depth, side = camera.axes() @ (places - camera.place.astype(np.float32)).T
    shown = np.flatnonzero((depth > 0) & (np.abs(side) < depth + 5))
    draw = {"car": _draw_car, "tree": _draw_tree, "lamp": _draw_lamp, "person": _draw_person}
    for k in shown[np.argsort(-depth[shown])][-120:]:
        # A thing hides the ground it stands on, up to its near end.
        canvas.dip(depth[k] - 3)
        draw[things["kind"][k]](canvas, places[k], np.random.default_rng(things["seed"][k]), things["axis"][k])
    drawn = np.asarray(canvas.image).reshape(-1, 4)
    distance, glow = np.array(canvas.inks, dtype=np.float32)[drawn[:, 3]].T
    where = np.flatnonzero(distance < picture.distance.reshape(-1))
    picture.fill(where, drawn[where, :3], distance[where], 0.6, glow[where] * light.night)


def _draw_car(canvas: _Canvas, place: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    paint, glass, black = _pick(rng, _CAR_COLOURS), np.array((46, 54, 62)), np.array((26, 26, 28))
    van = rng.random() < 0.2
    length, width, belt, top = rng.uniform(4.1, 4.8), 1.8, 1.1 if van else 0.85, 2.0 if van else 1.45
    ends = [(0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5)]

    def slab(bottom: float, top: float, lengths: tuple[float, float], widths: tuple[float, float]) -> np.ndarray:
        corners = [
            (across * w, along * l, z)
            for l, w, z in zip(lengths, widths, (bottom, top), strict=True)
            for across, along in ends
        ]
        points = np.array(corners)
        if axis == 1:
            points = points[:, [1, 0, 2]] * (1, -1, 1)
        return points + (*place, 0)

    sides = [[4, 5, 1, 0], [5, 6, 2, 1], [6, 7, 3, 2], [7, 4, 0, 3]]
    canvas.faces(slab(0, 0.02, (length + 0.2, length + 0.2), (width + 0.2, width + 0.2)), [([4, 7, 6, 5], black)])
    tones = (0.9, 0.75, 0.9, 0.75)
    body = slab(0.3, belt, (length, length), (width, width))
    canvas.faces(
        body, [*((side, paint * tone) for side, tone in zip(sides, tones, strict=True)), ([4, 7, 6, 5], paint)]
    )
    cabin = slab(belt, top, (length * 0.6, length * 0.42), (width * 0.96, width * 0.8))
    canvas.faces(
        cabin, [*((side, glass * tone) for side, tone in zip(sides, tones, strict=True)), ([4, 7, 6, 5], paint * 1.1)]
    )


def _draw_tree(canvas: _Canvas, place: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    trunk, radius = rng.uniform(2.5, 3.5), rng.uniform(1.3, 2.2)
    canvas.upright(place, 0, trunk + 0.5, 0.3, np.array((84, 66, 50)))
    offsets = rng.normal(size=(36, 3))
    offsets *= radius * rng.uniform(0.5, 1, (36, 1)) / np.linalg.norm(offsets, axis=1, keepdims=True)
    offsets = offsets[np.argsort(offsets[:, 2])]
    tones = 0.8 + 0.3 * offsets[:, 2:] / radius + rng.uniform(-0.1, 0.1, (36, 1))
    canvas.discs(np.array((*place, trunk + radius * 0.8)) + offsets, radius * 0.3, np.array((74, 104, 52)) * tones)


def _draw_lamp(canvas: _Canvas, place: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    canvas.upright(place, 0, 5.6, 0.16, np.array((62, 68, 70)))
    canvas.dip(canvas.inks[-1][0], glow=1.0)
    canvas.discs(np.array([(*place, 5.7)]), 0.28, np.array([(226, 222, 205)]))


def _draw_person(canvas: _Canvas, place: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    tall = rng.uniform(1.55, 1.9)
    canvas.upright(place, 0, tall * 0.5, 0.34, _pick(rng, ("#2b3040", "#3c3a38", "#52607a")))
    canvas.upright(place, tall * 0.48, tall * 0.86, 0.48, _pick(rng, _ACCENT_COLOURS))
    canvas.discs(np.array([(*place, tall * 0.93)]), 0.13, np.array([(176, 132, 106)]) * rng.uniform(0.6, 1.2))


def _develop(picture: _Picture, shot: _Shot, light: _Light, rng: np.random.Generator) -> Image.Image:
    """Light the picture, hang the sky, and expose it as that visit's camera does."""
    size = len(picture.colour)
    colour = picture.colour * (light.ambient + picture.sunlit[..., None] * light.sun)
    colour += picture.glow[..., None] * np.array((225, 175, 95), dtype=np.float32)
    colour = light.horizon + (colour - light.horizon) * np.exp(-picture.distance / light.haze_m)[..., None]
    directions, slopes = shot.camera.rays(size)
    sky = np.flatnonzero(np.isinf(picture.distance))
    row, column = np.divmod(sky, size)
    slope = np.maximum(slopes[row], 0)
    blue = np.minimum(slope * 1.2, 1)[:, None]
    x, y = directions[:, column] / (slope + 0.15) * 40 + rng.uniform(0, 256, (2, 1)).astype(np.float32)
    cloud = np.clip(_mottled(x, y) + light.clouds - 0.5, 0, 1)[:, None] * 0.8
    clear = light.horizon + (light.zenith - light.horizon) * blue
    colour.reshape(-1, 3)[sky] = clear + (light.horizon * 1.1 - clear) * cloud
    colour = colour.reshape(size // 2, 2, size // 2, 2, 3).mean(axis=(1, 3))
    gain, gamma, saturation = np.exp(rng.normal(0, 0.18)), rng.uniform(0.85, 1.25), rng.uniform(0.6, 1.2)
    cast = rng.uniform(0.86, 1.14, 3)
    rng = np.random.default_rng([*shot.visit_seed, round(shot.camera.heading_deg * 100)])
    gain = gain * rng.uniform(0.9, 1.1) * (1.3 if light.night else 1)
    grey = colour.mean(axis=2, keepdims=True)
    colour = np.clip((grey + (colour - grey) * saturation) * cast * gain / 255, 0, 1) ** gamma * 255
    colour += rng.normal(0, 7 if light.night else 2.5, colour.shape)
    return Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
