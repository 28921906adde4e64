"""Cars, trees, lamps and people, drawn in front of walls and ground."""

import math

import numpy as np
from PIL import Image, ImageDraw

from progeo.toy_city.colors import ACCENT_COLORS, CAR_COLORS, pick
from progeo.toy_city.district import District
from progeo.toy_city.facades import rgba
from progeo.toy_city.scene import Camera, Light, Picture

_DETAIL_M = 60.0
"""Distance in meters beyond which only buildings are drawn."""


def draw_things(picture: Picture, things: np.ndarray, camera: Camera, light: Light) -> None:
    """Draw objects in front of walls and ground, farthest first."""
    canvas = _Canvas(camera, len(picture.color))
    positions = np.stack([things["east"], things["north"]], axis=1)
    depth, side = camera.axes() @ (positions - camera.position.astype(np.float32)).T
    shown = np.flatnonzero((depth > 0) & (np.abs(side) < depth + 5))
    draw = {"car": _draw_car, "tree": _draw_tree, "lamp": _draw_lamp, "person": _draw_person}
    for k in shown[np.argsort(-depth[shown])][-120:]:
        # An object hides the ground it stands on, up to its near end.
        canvas.dip(depth[k] - 3)
        draw[things["kind"][k]](canvas, positions[k], np.random.default_rng(things["seed"][k]), things["axis"][k])
    drawn = np.asarray(canvas.image).reshape(-1, 4)
    distance, glow = np.array(canvas.inks, dtype=np.float32)[drawn[:, 3]].T
    where = np.flatnonzero(distance < picture.distance.reshape(-1))
    picture.fill(where, drawn[where, :3], distance[where], 0.6, glow[where] * light.night)


def things_present(district: District, camera: Camera, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Return the objects nearby at a visit: all trees and lamps, cars and people at some of their spots."""
    spots = district.spots
    near = np.hypot(spots["east"] - camera.position[0], spots["north"] - camera.position[1]) < _DETAIL_M
    spots = spots[near]
    chance = np.select([spots["kind"] == "car", spots["kind"] == "person"], [light.traffic, light.traffic * 0.1], 1)
    passing = chance < 1
    spots["seed"][passing] = rng.integers(2**32, size=passing.sum())
    return spots[rng.random(len(spots)) < chance]


class _Canvas:
    """Painter of shapes given in meters, back to front; the alpha of a pixel is the index of its ink."""

    def __init__(self, camera: Camera, size: int):
        self._camera, self._size = camera, size
        self.image = Image.new("RGBA", (size, size))
        self._draw = ImageDraw.Draw(self.image)
        self.inks = [(np.inf, 0.0)]

    def dip(self, distance_m: float, glow: float = 0.0) -> None:
        """Use a new ink for shapes at a distance of `distance_m`."""
        self.inks.append((distance_m, glow))

    def faces(self, points: np.ndarray, faces: list[tuple[list[int], np.ndarray]]) -> None:
        """Draw the polygons over points (N, 3) whose corners are clockwise in the picture."""
        columns, rows, depths = self._camera.project(points, self._size).T
        for corners, color in faces:
            x, y = columns[corners], rows[corners]
            if depths[corners].max() > 0.3 and (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0:
                self._draw.polygon(list(zip(x, y, strict=True)), fill=rgba(color, len(self.inks) - 1))

    def discs(self, points: np.ndarray, radius_m: float, colors: np.ndarray) -> None:
        columns, rows, depths = self._camera.project(points, self._size).T
        radii = radius_m * self._size / 2 / math.tan(math.radians(self._camera.fov_deg / 2)) / depths
        for x, y, radius, color in zip(columns, rows, radii, colors, strict=True):
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=rgba(color, len(self.inks) - 1))

    def upright(self, position: np.ndarray, bottom: float, top: float, width_m: float, color: np.ndarray) -> None:
        """Draw a rectangle that stands at `position` and faces the camera."""
        half = self._camera.axes()[1] * width_m / 2
        left, right = position - half, position + half
        corners = [(*left, top), (*right, top), (*right, bottom), (*left, bottom)]
        self.faces(np.array(corners), [([0, 1, 2, 3], color)])


def _draw_car(canvas: _Canvas, position: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    paint, glass, black = pick(rng, CAR_COLORS), np.array((46, 54, 62)), np.array((26, 26, 28))
    van = rng.random() < 0.2
    length, width, belt, top = rng.uniform(4.1, 4.8), 1.8, 1.1 if van else 0.85, 2.0 if van else 1.45
    ends = [(0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5)]

    def slab(bottom: float, top: float, lengths: tuple[float, float], widths: tuple[float, float]) -> np.ndarray:
        corners = [
            (across * wide, along * long, z)
            for long, wide, z in zip(lengths, widths, (bottom, top), strict=True)
            for across, along in ends
        ]
        points = np.array(corners)
        if axis == 1:
            points = points[:, [1, 0, 2]] * (1, -1, 1)
        return points + np.array([*position, 0])

    def show(points: np.ndarray, color: np.ndarray, roof: np.ndarray) -> None:
        sides = [[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]
        shaded = [(side, color * tone) for side, tone in zip(sides, (0.9, 0.75, 0.9, 0.75), strict=True)]
        canvas.faces(points, [*shaded, ([5, 6, 7, 4], roof)])

    canvas.faces(slab(0, 0.02, (length + 0.2, length + 0.2), (width + 0.2, width + 0.2)), [([5, 6, 7, 4], black)])
    show(slab(0.3, belt, (length, length), (width, width)), paint, paint)
    show(slab(belt, top, (length * 0.6, length * 0.42), (width * 0.96, width * 0.8)), glass, paint * 1.1)


def _draw_tree(canvas: _Canvas, position: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    trunk, radius = rng.uniform(2.5, 3.5), rng.uniform(1.3, 2.2)
    canvas.upright(position, 0, trunk + 0.5, 0.3, np.array((84, 66, 50)))
    offsets = rng.normal(size=(36, 3))
    offsets *= radius * rng.uniform(0.5, 1, (36, 1)) / np.linalg.norm(offsets, axis=1, keepdims=True)
    offsets = offsets[np.argsort(offsets[:, 2])]
    tones = 0.8 + 0.3 * offsets[:, 2:] / radius + rng.uniform(-0.1, 0.1, (36, 1))
    canvas.discs(np.array((*position, trunk + radius * 0.8)) + offsets, radius * 0.3, np.array((74, 104, 52)) * tones)


def _draw_lamp(canvas: _Canvas, position: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    canvas.upright(position, 0, 5.6, 0.16, np.array((62, 68, 70)))
    canvas.dip(canvas.inks[-1][0], glow=1.0)
    canvas.discs(np.array([(*position, 5.7)]), 0.28, np.array([(226, 222, 205)]))


def _draw_person(canvas: _Canvas, position: np.ndarray, rng: np.random.Generator, axis: int) -> None:
    tall = rng.uniform(1.55, 1.9)
    canvas.upright(position, 0, tall * 0.5, 0.34, pick(rng, ("#2b3040", "#3c3a38", "#52607a")))
    canvas.upright(position, tall * 0.48, tall * 0.86, 0.48, pick(rng, ACCENT_COLORS))
    canvas.discs(np.array([(*position, tall * 0.93)]), 0.13, np.array([(176, 132, 106)]) * rng.uniform(0.6, 1.2))
