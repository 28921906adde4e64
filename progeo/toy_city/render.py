"""Render a seeded synthetic city with the folders and file names of the field, to run everything without a download.

Every split has its own street grid. Facades are painted once per building and rendered by a column ray caster;
sky, light, cars and people are drawn anew for every visit.
"""

import base64
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import utm
from PIL import Image

from progeo.atomic import replacing_folder
from progeo.places.filename import complete_fields, format_names
from progeo.progress import Progress
from progeo.toy_city.district import District, build_district
from progeo.toy_city.scene import Camera, Light, Picture, draw_light
from progeo.toy_city.surfaces import draw_ground, draw_walls, mottled, walls_near
from progeo.toy_city.things import draw_things, things_present

MIN_IMAGES = 20
HEADINGS_DEG = (15, 105, 195, 285)
"""Centers of 30 degree bins, 15 degrees off the streets so that a view along a street also shows one side of it."""
DATES_PER_PLACE = 10
SPLITS = ("train", "val", "test")
_ZONE, _LETTER, _NORTH_M, _EASTS_M = 10, "S", 4_180_005, (545_005, 560_005, 575_005)
"""UTM origins of the splits' street grids, farther apart than the length of any grid."""
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class _Shot:
    split: int
    num_positions: int
    folder: str
    name: str
    visit_seed: tuple[int, ...]
    camera: Camera


def render_toy_city(
    out: Path, *, seed: int = 0, num_images: int = 2000, image_size: int = 128, workers: int = os.cpu_count() or 1
) -> Path:
    """Render a city to `out`/{train, known/queries, val/database, val/queries, test/database, test/queries}.

    70 % of the images are for training, about ten dates per place; val and test have two database images per query, of
    another date. The same seed gives the same bytes, whatever the number of workers.

    Args:
        out: a folder that is empty or does not exist; it is created after the last image is rendered.
        num_images: images of train, val and test; `known/queries`, other visits to places of train, has 5 % more.
        image_size: side of the square images in pixels.
        workers: number of rendering processes.

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
    with replacing_folder(out.resolve(), durable=False) as unfinished:
        for folder in {shot.folder for shot in shots}:
            (unfinished / folder).mkdir(parents=True)
        _render_shots(partial(_render_to_disk, root=unfinished, seed=seed, image_size=image_size), shots, workers)
    return out


def _render_shots(render: Callable[[_Shot], None], shots: list[_Shot], workers: int) -> None:
    if workers == 1:
        _count(map(render, shots), len(shots))
        return
    # Long chunks, because neighboring shots share facades, which every process paints separately.
    chunk = math.ceil(len(shots) / workers / 8)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        _count(pool.map(render, shots, chunksize=chunk), len(shots))


def _count(rendered: Iterable[None], total: int) -> None:
    with Progress("toy city", total=total, leave=True) as bar:
        for _ in rendered:
            bar.update()


def _render_to_disk(shot: _Shot, *, root: Path, seed: int, image_size: int) -> None:
    district = build_district(seed, shot.split, shot.num_positions)
    photo = render_photo(district, shot.camera, visit_seed=shot.visit_seed, image_size=image_size)
    photo.save(root / shot.folder / shot.name, quality=90)


def _plan_split(seed: int, split: int, num_images: int) -> list[_Shot]:
    """Choose the places, visits and cameras of a split; shots from one position are consecutive."""
    rng = np.random.default_rng([seed, split])
    num_database, num_queries = num_images // 10, num_images // 20
    if SPLITS[split] == "train":
        num_train = num_images - 2 * (num_database + num_queries)
        num_places = max(2, num_train // DATES_PER_PLACE)
        taken = [("train", i % num_places, i // num_places) for i in range(num_train)]
        visit = taken[-1][2] + 1
        taken += [("known/queries", int(place), visit) for place in rng.permutation(num_places)[:num_queries]]
    else:
        num_places = num_database
        taken = [(f"{SPLITS[split]}/database", place, 0) for place in range(num_database)]
        taken += [(f"{SPLITS[split]}/queries", int(place), 1) for place in rng.permutation(num_places)[:num_queries]]
    # A large city uses all headings of each position; a tiny one has more positions instead.
    num_positions = max(math.ceil(num_places / len(HEADINGS_DEG)), min(num_places, 12))
    district = build_district(seed, split, num_positions)
    shots = []
    for folder, place, visit in sorted(taken, key=lambda shot: (shot[1] % num_positions, shot)):
        position, turn = place % num_positions, place // num_positions
        heading = HEADINGS_DEG[(position + turn) % len(HEADINGS_DEG)]
        visit_seed = (seed, split, position, visit)
        camera = _aim(visit_seed, district.positions[position], heading)
        name = photo_name(visit_seed, camera)
        shots.append(_Shot(split, num_positions, folder, name, visit_seed, camera))
    return shots


def _aim(visit_seed: tuple[int, ...], position: np.ndarray, heading_deg: int) -> Camera:
    """Place a camera near `position`; all headings of a visit share the location, like crops of one panorama."""
    rng = np.random.default_rng(visit_seed)
    position, height_m = np.round(position + rng.uniform(-2, 2, 2), 2), rng.uniform(2.2, 2.8)
    rng = np.random.default_rng([*visit_seed, heading_deg])
    turn_deg, pitch_deg, fov_deg = rng.uniform([-8, 5, 78], [8, 11, 90])
    return Camera(position, round(height_m, 2), round(heading_deg + turn_deg, 2), round(pitch_deg, 2), fov_deg)


def photo_name(visit_seed: tuple[int, ...], camera: Camera) -> str:
    """Return the file name of a photo, by the naming convention."""
    seed, split, position, visit = visit_seed
    months = np.random.default_rng([seed, split, position]).permutation(15 * 12)
    year, month = divmod(int(months[visit]), 12)
    pano_id = base64.urlsafe_b64encode(np.random.default_rng(visit_seed).bytes(16)).decode()[:22]
    east, north = camera.position + np.array([_EASTS_M[split], _NORTH_M])
    latitude, longitude = utm.to_latlon(east, north, _ZONE, _LETTER)
    known = {
        "east": east,
        "north": north,
        "zone": _ZONE,
        "letter": _LETTER,
        "latitude": latitude,
        "longitude": longitude,
    }
    known |= {"heading": camera.heading_deg, "pitch": camera.pitch_deg, "roll": 0.0, "height": camera.height_m}
    known |= {"pano_id": pano_id, "timestamp": f"{2008 + year}{month + 1:02}"}
    return format_names(complete_fields(1, **{field: np.array([value]) for field, value in known.items()}))[0]


def render_photo(district: District, camera: Camera, *, visit_seed: tuple[int, ...], image_size: int) -> Image.Image:
    """Render a square photo.

    Args:
        visit_seed: seed, split, position and visit, which determine the light, cars and people.
        image_size: side in pixels.
    """
    size = image_size * _SUPERSAMPLING
    rng = np.random.default_rng([*visit_seed, 1])
    light = draw_light(rng)
    picture = Picture(np.zeros((size, size, 3), dtype=np.float32), *np.zeros((3, size, size), dtype=np.float32))
    picture.distance[:] = np.inf
    walls = walls_near(district, camera)
    draw_walls(picture, district, walls, camera, light, image_size / 12, int(rng.integers(256)))
    draw_ground(picture, district, walls, camera, light)
    draw_things(picture, things_present(district, camera, light, rng), camera, light)
    return _develop(picture, camera, light, rng, visit_seed=visit_seed)


def _develop(
    picture: Picture, camera: Camera, light: Light, rng: np.random.Generator, *, visit_seed: tuple[int, ...]
) -> Image.Image:
    """Apply light, haze, sky and the exposure of the visit's camera to a picture."""
    size = len(picture.color)
    color = picture.color * (light.ambient + picture.sunlit[..., None] * light.sun)
    color += picture.glow[..., None] * np.array((225, 175, 95), dtype=np.float32)
    color = light.horizon + (color - light.horizon) * np.exp(-picture.distance / light.haze_m)[..., None]
    directions, slopes = camera.rays(size)
    sky = np.flatnonzero(np.isinf(picture.distance))
    row, column = np.divmod(sky, size)
    slope = np.maximum(slopes[row], 0)
    blue = np.minimum(slope * 1.2, 1)[:, None]
    x, y = directions[:, column] / (slope + 0.15) * 40 + rng.uniform(0, 256, (2, 1)).astype(np.float32)
    cloud = np.clip(mottled(x, y) + light.clouds - 0.5, 0, 1)[:, None] * 0.8
    clear = light.horizon + (light.zenith - light.horizon) * blue
    color.reshape(-1, 3)[sky] = clear + (light.horizon * 1.1 - clear) * cloud
    color = color.reshape(size // 2, 2, size // 2, 2, 3).mean(axis=(1, 3))
    gain, gamma, saturation = np.exp(rng.normal(0, 0.18)), rng.uniform(0.85, 1.25), rng.uniform(0.6, 1.2)
    cast = rng.uniform(0.86, 1.14, 3)
    rng = np.random.default_rng([*visit_seed, round(camera.heading_deg * 100)])
    gain = gain * rng.uniform(0.9, 1.1) * (1.3 if light.night else 1)
    gray = color.mean(axis=2, keepdims=True)
    color = np.clip((gray + (color - gray) * saturation) * cast * gain / 255, 0, 1) ** gamma * 255
    color += rng.normal(0, 7 if light.night else 2.5, color.shape)
    return Image.fromarray(np.clip(color, 0, 255).astype(np.uint8))
