"""Rendering of walls by a column ray caster, and of the ground."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from progeo.toy_city.district import SIDEWALK_M, District
from progeo.toy_city.facades import MIP_LEVELS, OPAQUE, paint_facade
from progeo.toy_city.scene import Camera, Light, Picture, Share

_SIGHT_M = 150.0
_LAYERS = 4
"""Maximum number of walls visible above one another in a pixel column."""


def walls_near(district: District, camera: Camera) -> np.ndarray:
    """Return the nearby walls that face the camera, in all directions, because walls behind it cast shadows."""
    walls, position = district.walls, camera.position.astype(np.float32)
    across = (position[walls["axis"]] - walls["plane"]) * walls["facing"]
    along = position[1 - walls["axis"]] - walls["origin"] - walls["sense"] * walls["width"] / 2
    return walls[(across > 0) & (np.hypot(across, along) < _SIGHT_M)]


def draw_walls(
    picture: Picture,
    district: District,
    walls: np.ndarray,
    camera: Camera,
    light: Light,
    texels_per_m: float,
    salt: int,
) -> None:
    """Draw the walls visible in each pixel column: the nearest, and farther walls that rise above it."""
    size = len(picture.color)
    directions, slopes = camera.rays(size)
    distance, along = _intersect(walls, camera.position.astype(np.float32)[:, None], directions)
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
    # A strip is the part of a wall visible in one column: its pixels differ only in height.
    strips, strip = np.unique(layer.reshape(-1)[where] * size + column, return_inverse=True)
    strip_column = strips % size
    strip_wall = np.concatenate(seen)[strips]
    far, u = distance[strip_wall, strip_column], along[strip_wall, strip_column]
    wall = walls[strip_wall]
    through = np.abs(directions[wall["axis"], strip_column])
    footprint = far * (2 * math.tan(math.radians(camera.fov_deg / 2)) / size * texels_per_m) / np.sqrt(through)
    level = np.clip(np.log2(footprint), 0, MIP_LEVELS - 1).astype(np.int32)
    texels, start, stride = _atlas(district, walls, strip_wall, level, texels_per_m)
    start = start + np.where(wall["party"], 0, (u * texels_per_m).astype(np.int32) >> level)
    height = np.float32(camera.height_m) + far[strip] * slopes[row]
    down = np.maximum((wall["height"][strip] - height) * np.float32(texels_per_m), 0).astype(np.int32) >> level[strip]
    texel = texels[start[strip] + down * stride[strip]]
    pane = texel[:, 3] != OPAQUE
    color = texel[:, :3].astype(np.float32)
    if light.night:
        sunlit = np.exp(-height / 5)
        glow = pane & (texel[:, 3] * np.uint8(73) + np.uint8(salt) < 90)
    else:
        color[pane] = 0.7 * color[pane] + 0.3 * light.horizon
        incidence = np.maximum(wall["facing"] * light.sun_direction[wall["axis"]], 0) / math.hypot(1, light.sun_slope)
        points = camera.position.astype(np.float32)[:, None] + far * directions[:, strip_column]
        shade = _shadow_height(walls, points, light)
        sunlit = incidence[strip] * (height > shade[strip])
        glow = np.zeros(1)
    picture.fill(where, color, far[strip], sunlit, glow)


def draw_ground(picture: Picture, district: District, walls: np.ndarray, camera: Camera, light: Light) -> None:
    """Draw road, pavement and markings where no wall covers them."""
    size = len(picture.color)
    directions, slopes = camera.rays(size)
    horizon = int((slopes >= 0).sum())
    far = np.repeat(np.float32(camera.height_m) / -slopes[horizon:], size)
    where = np.flatnonzero(np.isinf(picture.distance[horizon:]))
    far, column = far[where], where % size
    x, y = (np.float32(camera.position[axis]) + far * directions[axis][column] for axis in range(2))
    road = _road_colors(district, x, y)
    sunlit: Share = float(0.8 if light.night else light.sun_slope / math.hypot(1, light.sun_slope))
    if light.sun.max() > 0.1 and not light.night:
        sunlit = sunlit * _ground_in_sun(walls, camera, light, slopes[horizon:], directions).reshape(-1)[where]
    picture.fill(where + horizon * size, road, far, sunlit, 0)


def mottled(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return smooth noise from -1 to 1 at texel coordinates."""
    return _mottle()[y.astype(np.int32) & 255, x.astype(np.int32) & 255]


@lru_cache(maxsize=1)
def _mottle() -> np.ndarray:
    """Generate a seamlessly repeating 256 x 256 tile of smooth noise from -1 to 1."""
    frequencies = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(256, 256))) / np.maximum(frequencies, 1 / 64) ** 1.3
    noise = np.fft.ifft2(spectrum).real
    return np.clip((noise - noise.mean()) / noise.std() / 2, -1, 1).astype(np.float32)


def _intersect(walls: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (F, P) at which rays (2, P) hit the front of F walls, inf for a miss, and the offsets."""
    axis = walls["axis"]
    through = directions[axis]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (walls["plane"][:, None] - origins[axis]) / through
        along = origins[1 - axis] + distance * directions[1 - axis] - walls["origin"][:, None]
        along *= walls["sense"][:, None]
        inside = (along >= 0) & (along < walls["width"][:, None])
        hit = inside & (through * walls["facing"][:, None] < 0) & (distance > 0.05)
    return np.where(hit, distance, np.float32(np.inf)), along


def _shadow_height(walls: np.ndarray, points: np.ndarray, light: Light) -> np.ndarray:
    """Return the height (P,) up to which walls shade points (2, P)."""
    distance, _ = _intersect(walls, points, np.broadcast_to(light.sun_direction[:, None], points.shape))
    return (walls["height"][:, None] - distance * np.float32(light.sun_slope)).max(axis=0)


def _atlas(
    district: District, walls: np.ndarray, strip_wall: np.ndarray, level: np.ndarray, texels_per_m: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the texels of all visible facades, and the start and row length of the texture of each strip."""
    shown, slot = np.unique(strip_wall, return_inverse=True)
    pieces, starts, strides, total = [], [], [], 0
    for wall in walls[shown]:
        building = district.buildings[wall["building"]]
        if wall["party"]:
            levels = [np.array([[[*(0.8 * value for value in building.color), OPAQUE]]]).astype(np.uint8)] * MIP_LEVELS
        else:
            levels = paint_facade(building, float(wall["width"]), texels_per_m)
        for piece in levels:
            starts.append(total)
            strides.append(0 if wall["party"] else piece.shape[1])
            total += piece.shape[0] * piece.shape[1]
        pieces += [piece.reshape(-1, 4) for piece in levels]
    index = slot * MIP_LEVELS + level
    return np.concatenate(pieces), np.array(starts)[index], np.array(strides)[index]


def _road_colors(district: District, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    offsets, gaps, parity = [], [], []
    for coordinate, centers, half_widths in zip((x, y), district.centers, district.half_widths, strict=True):
        nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, coordinate)
        offsets.append(np.abs(coordinate - centers[nearest]))
        gaps.append(offsets[-1] - (half_widths[nearest] - SIDEWALK_M))
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
    tone = 1 + 0.16 * mottled(x * 5, y * 5) + 0.1 * mottled(x, y)
    return palette.astype(np.float32)[material] * tone[:, None]


def _ground_in_sun(
    walls: np.ndarray, camera: Camera, light: Light, slopes: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Return which ground pixels (H, W) are not in the shadow of a wall, interpolated from a coarse grid of rays."""
    coarse_slopes, coarse = slopes[len(slopes) % 8 // 2 :: 8], directions[:, 4::8]
    far = np.float32(camera.height_m) / np.maximum(-coarse_slopes, 0.02)
    points = camera.position.astype(np.float32)[:, None, None] + far[:, None] * coarse[:, None]
    shade = _shadow_height(walls, points.reshape(2, -1), light).reshape(len(far), -1)
    image = Image.fromarray(np.clip(shade, -3, 3).astype(np.float32))
    return np.asarray(image.resize((directions.shape[1], len(slopes)), Image.Resampling.BILINEAR)) < 0
