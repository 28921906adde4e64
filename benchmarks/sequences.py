"""Measure what smoothing a sequence gains: drives through a rendered city, each frame alone and as a sequence.

Run `python -m benchmarks.sequences ENCODER`, for example with the encoder that `progeo demo` trains, demo/encoder. The
index has photos of four headings every 12 m along all streets of another district than the encoder was trained in. Each
drive passes all streets that run north, at 10 m/s with a frame per second, in one weather; one more drive calibrates
the index. A frame counts as correct within 25 m.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from progeo.commands.index import build_index, calibrate_index
from progeo.features.options import CacheOptions, WorkOptions
from progeo.localization.frames import smoothed
from progeo.localization.localizations import Localization
from progeo.localization.place_index import open_index
from progeo.places.filename import parse_names
from progeo.toy_city.district import District, build_district
from progeo.toy_city.render import photo_name, render_photo
from progeo.toy_city.scene import Camera

SPLIT, NUM_POSITIONS, RADIUS_M = 2, 240, 25.0
DATABASE_STEP_M, FRAME_STEP_M, MAX_SPEED_MPS = 12.0, 10.0, 15.0


def main() -> None:
    """Print a line for every drive, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="folder of an encoder")
    parser.add_argument("--drives", type=int, default=5)
    parser.add_argument("--image_size", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drives = render(folder, num_drives=options.drives + 1, image_size=options.image_size)
        cache = CacheOptions(descriptor_cache=folder / "cache")
        build_index(options.encoder, folder=folder / "database", out=folder / "index", cache=cache)
        calibrate_index(folder / "index", folder=drives[-1][0].parent, work=WorkOptions(), cache=cache)
        print(f"{'':8}{'in top 50, %':>14}{' each frame alone: ':-^44}{' as a sequence: ':-^44}{'ms a frame':>12}")
        columns = ("correct, %", "known, %", "of them, %", "off by") * 2
        print(f"{'':22}{''.join(f'{column:>11}' for column in columns)}")
        rows = [measure(folder / "index", photos) for photos in drives[:-1]]
        titles = [*(f"drive {number}" for number in range(len(rows))), "mean"]
        for title, (hits, *values, milliseconds) in zip(titles, [*rows, np.mean(rows, axis=0)], strict=True):
            print(f"{title:8}{hits:14.1f}{''.join(f'{value:11.1f}' for value in values)}{milliseconds:12.2f}")


def render(folder: Path, *, num_drives: int, image_size: int) -> list[list[Path]]:
    """Render the images of the index and the drives; returns the photos of each drive in order."""
    district = build_district(0, SPLIT, NUM_POSITIONS)
    for number, (position, heading_deg) in enumerate(views(district)):
        camera = Camera(np.array(position), 2.5, heading_deg, 8.0, 84.0)
        save(folder / "database", district, camera, visit_seed=(0, SPLIT, number // 4, 0), image_size=image_size)
    drives = []
    for drive in range(num_drives):
        rng, photos = np.random.default_rng(drive), []
        for position, heading_deg in route(district):
            turn_deg, pitch_deg, fov_deg = rng.uniform([-6, 6, 80], [6, 10, 88])
            camera = Camera(position + rng.uniform(-2, 2, 2), 2.4, (heading_deg + turn_deg) % 360, pitch_deg, fov_deg)
            seed = (0, SPLIT, NUM_POSITIONS + drive, 1)
            photos.append(save(folder / f"drive{drive}", district, camera, visit_seed=seed, image_size=image_size))
        drives.append(photos)
    return drives


def save(folder: Path, district: District, camera: Camera, *, visit_seed: tuple[int, ...], image_size: int) -> Path:
    """Render and save a photo; returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / photo_name(visit_seed, camera)
    render_photo(district, camera, visit_seed=visit_seed, image_size=image_size).save(path, quality=90)
    return path


def views(district: District) -> Iterator[tuple[tuple[float, float], float]]:
    """Yield position and heading of the images of the index."""
    for axis in range(2):
        across = district.centers[1 - axis]
        along = np.arange(across[1], across[-2] + 1, DATABASE_STEP_M)
        for street, place in itertools.product(district.centers[axis][1:-1].tolist(), along.tolist()):
            for heading_deg in (0.0, 90.0, 180.0, 270.0):
                yield (street, place) if axis == 0 else (place, street), heading_deg


def route(district: District) -> Iterator[tuple[np.ndarray, float]]:
    """Yield position and heading of the frames of a drive: north along one street, south along the next."""
    easts, norths = (line[1:-1].tolist() for line in district.centers)
    corners = []
    for street, east in enumerate(easts):
        ends = (norths[0], norths[-1])
        corners += [(east, north) for north in (ends if street % 2 == 0 else reversed(ends))]
    for start, end in itertools.pairwise(np.array(corners)):
        east_m, north_m = end - start
        heading_deg = float(np.degrees(np.arctan2(east_m, north_m))) % 360
        for share in np.arange(0, 1, FRAME_STEP_M / np.hypot(east_m, north_m)):
            yield start + share * (end - start), heading_deg


def measure(index: Path, photos: list[Path]) -> tuple[float, ...]:
    """Localize a drive; returns the values of the columns."""
    opened = open_index(index)
    names = parse_names([photo.name for photo in photos])
    true_m = np.stack([names.east, names.north], axis=1)
    alone = opened.localize(photos, top=50)
    seconds = np.arange(len(photos), dtype=float)
    start = time.perf_counter()
    results = smoothed(opened, alone, seconds, max_speed_mps=MAX_SPEED_MPS, threshold=0.5, top=1)
    milliseconds = 1000 * (time.perf_counter() - start) / len(photos)
    hits = 100 * correct(alone, true_m).any(axis=1).mean()
    return hits, *quality(alone, true_m), *quality(results, true_m), milliseconds


def quality(results: list[Localization], true_m: np.ndarray) -> tuple[float, ...]:
    """Return percentages: of correct frames, of known ones, of correct ones among them; and the calibration error."""
    hits = correct(results, true_m)[:, 0]
    known = np.array([result.known for result in results])
    confidences = np.array([result.confidence for result in results])
    fractions = hits.mean(), known.mean(), hits[known].mean(), calibration_error(confidences, hits)
    return tuple(100 * float(fraction) for fraction in fractions)


def correct(results: list[Localization], true_m: np.ndarray) -> np.ndarray:
    """Return which matches are within the radius, bool (T, K)."""
    found_m = np.array([[(match.east_m, match.north_m) for match in result.matches] for result in results])
    return np.linalg.norm(found_m - true_m[:, None], axis=2) <= RADIUS_M


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean gap between confidence and accuracy over ten bins of confidence, 0 to 1."""
    bins = np.minimum((confidences * 10).astype(int), 9)
    return sum(abs(confidences[bins == each].sum() - correct[bins == each].sum()) for each in range(10)) / len(correct)


if __name__ == "__main__":
    main()
