"""Facade textures, painted once per building."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from progeo.toy_city.colors import ACCENT_COLORS, pick
from progeo.toy_city.district import Building

MIP_LEVELS = 5
OPAQUE = 255
"""Alpha of a painted wall. A window pane has a smaller alpha, which determines in which nights it is lit."""


@lru_cache(maxsize=512)
def paint_facade(building: Building, width_m: float, texels_per_m: float) -> list[np.ndarray]:
    """Paint a facade as a mipmap: RGBA texels at successively halved resolutions, top row first."""
    block = 2 ** (MIP_LEVELS - 1)
    rows, columns = (math.ceil((length * texels_per_m + 1) / block) * block for length in (building.height_m, width_m))
    image = Image.fromarray(_paint_wall(building, rows, columns, texels_per_m))
    brush = _Brush(image, building.height_m, texels_per_m)
    _paint_storeys(brush, building, width_m)
    _paint_ground_floor(brush, building, width_m)
    levels = [np.asarray(image)]
    for _ in range(MIP_LEVELS - 1):
        finer = levels[-1]
        coarser = finer[::2, ::2].copy()
        coarser[..., :3] = finer[..., :3].reshape(len(coarser), 2, -1, 2, 3).mean(axis=(1, 3))
        levels.append(coarser)
    return levels


class _Brush:
    """Painter of rectangles and ellipses in meters from the lower left corner of a facade."""

    def __init__(self, image: Image.Image, height_m: float, texels_per_m: float):
        self._draw, self._height_m, self._texels_per_m = ImageDraw.Draw(image), height_m, texels_per_m

    def box(self, left: float, bottom: float, right: float, top: float, color: np.ndarray, alpha: int = OPAQUE) -> None:
        self._draw.rectangle(self._corners(left, bottom, right, top), fill=rgba(color, alpha))

    def disc(
        self, left: float, bottom: float, right: float, top: float, color: np.ndarray, alpha: int = OPAQUE
    ) -> None:
        self._draw.ellipse(self._corners(left, bottom, right, top), fill=rgba(color, alpha))

    def _corners(self, left: float, bottom: float, right: float, top: float) -> list[int]:
        edges = (left, self._height_m - top, right, self._height_m - bottom)
        x0, y0, x1, y1 = (round(edge * self._texels_per_m) for edge in edges)
        return [x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)]


def rgba(color: np.ndarray, alpha: int) -> tuple[int, ...]:
    """Convert a color to a tuple for Pillow."""
    return (*(int(min(max(value, 0), 255)) for value in color), alpha)


def _paint_wall(building: Building, rows: int, columns: int, texels_per_m: float) -> np.ndarray:
    """Paint the bare wall: plaster, boards or blocks."""
    rng = np.random.default_rng([*building.seed, 0])
    course_m, joint, block_m = rng.uniform(0.3, 0.9), rng.choice([0.0, 0.12, 0.22]), rng.choice([0.0, 1.0])
    down, right = np.arange(rows)[:, None] / texels_per_m, np.arange(columns)[None] / texels_per_m
    course, within = np.divmod(down, course_m)
    joints = within * texels_per_m < 1
    if block_m:
        joints = joints | ((right + course % 2 * block_m / 2) % block_m * texels_per_m < 1)
    tone = 1 - joint * joints + rng.normal(0, 0.03, (rows, columns)) - 0.1 * (down > building.height_m - 0.8)
    wall = np.full((rows, columns, 4), OPAQUE, dtype=np.uint8)
    wall[..., :3] = np.clip(np.array(building.color) * tone[..., None], 0, 255)
    return wall


def _paint_storeys(brush: _Brush, building: Building, width_m: float) -> None:
    """Paint the cornice, string courses and the windows of the upper storeys."""
    rng = np.random.default_rng([*building.seed, 1])
    bay_m, wide, tall = rng.uniform([2.0, 0.35, 0.42], [4.0, 0.72, 0.68])
    arched, sills, mullions, courses, shutters, balconies = rng.random(6) < (0.25, 0.5, 0.6, 0.35, 0.2, 0.2)
    color = np.array(building.color)
    trim = pick(rng, ("#f2efe8", "#2b2b2e", "#e0d4bd", "#5a4636")) if rng.random() < 0.8 else color * 0.6
    accent, glass = pick(rng, ACCENT_COLORS), pick(rng, ("#2c3a48", "#3d4f5c", "#22282e", "#4a6478"))
    height, cornice = building.height_m, building.cornice_m
    brush.box(0, height - cornice, width_m, height, trim * 0.92)
    brush.box(0, height - cornice, width_m, height - cornice * 0.7, trim * 0.6)
    bays = max(2, round(width_m / bay_m))
    bay_m = width_m / bays
    half = bay_m * wide / 2
    for storey in range(building.storeys):
        floor = building.ground_floor_m + storey * building.storey_m
        if courses:
            brush.box(0, floor - 0.15, width_m, floor + 0.15, trim)
        bottom = floor + building.storey_m * (1 - tall) * 0.55
        top = bottom + building.storey_m * tall
        for center in (np.arange(bays) + 0.5) * bay_m:
            pane, alpha = glass * rng.uniform(0.7, 1.5), int(rng.integers(OPAQUE))
            if shutters:
                brush.box(center - half - 0.5, bottom, center + half + 0.5, top, accent)
            if arched:
                brush.disc(center - half - 0.15, top - half, center + half + 0.15, top + half, trim)
                brush.disc(center - half, top - half, center + half, top + half * 0.85, pane, alpha)
            brush.box(center - half - 0.15, bottom - 0.15, center + half + 0.15, top + (0 if arched else 0.15), trim)
            brush.box(center - half, bottom, center + half, top, pane, alpha)
            if rng.random() < 0.4:
                blind = top - rng.uniform(0.2, 0.9) * (top - bottom)
                brush.box(center - half, blind, center + half, top, pane + 70, alpha)
            if mullions:
                brush.box(center - 0.07, bottom, center + 0.07, top, trim)
                bar = bottom + 0.6 * (top - bottom)
                brush.box(center - half, bar, center + half, bar + 0.12, trim)
            if sills:
                brush.box(center - half - 0.3, bottom - 0.35, center + half + 0.3, bottom - 0.1, trim * 0.85)
            if balconies:
                brush.box(center - half - 0.4, floor + 0.05, center + half + 0.4, floor + 0.9, accent * 0.6)


def _paint_ground_floor(brush: _Brush, building: Building, width_m: float) -> None:
    """Paint shops with signs and awnings, or doors, windows and garages."""
    rng = np.random.default_rng([*building.seed, 2])
    shops, awnings, striped = rng.random(3) < (0.55, 0.5, 0.5)
    base, sign, awning, door = (pick(rng, ACCENT_COLORS) for _ in range(4))
    base = base * 0.5 + np.array(building.color) * 0.3 if shops else np.array(building.color) * rng.uniform(0.55, 1.0)
    top = building.ground_floor_m - 0.2
    brush.box(0, 0, width_m, top, base)
    units = max(1, round(width_m / rng.uniform(3.5, 6.0)))
    for left in np.arange(units) * width_m / units:
        right = left + width_m / units
        glass, alpha = np.array((40, 50, 58)) * rng.uniform(0.7, 2.0), int(rng.integers(OPAQUE))
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
