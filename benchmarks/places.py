"""Benchmark classes and groups of a city: columns compared with the plain loop that CosPlace and ProGEO publish.

Both read the same list of synthetic names and cut it into the published cells, headings and groups; ours does it from
the list, from the list while writing the index that later runs memory-map, and from that index. Each job runs in a
process of its own, whose peak memory counts. The loop runs on a part of the names, and its results are scaled.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progeo.places.catalogue import read_catalogue
from progeo.places.cells import build_partition
from progeo.places.scanning import index_catalogue

CELL_SIDE_M, HEADING_BIN_DEG, GROUPS_PER_SIDE, GROUPS_PER_HEADING, NUM_GROUPS = 10, 30, 5, 2, 8
MIN_IMAGES_PER_CLASS, IMAGES_PER_CLASS = 10, 12
CITY_SIDE_M = 40_000
LOOP_NAMES = 500_000
ROWS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Cost:
    """Time and memory of a job."""

    seconds: float
    bytes: float


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=5_600_000, help="how many; all of SF-XL has 41,200,000")
    with tempfile.TemporaryDirectory() as folder:
        print(compare(Path(folder), parser.parse_args().names))


def compare(folder: Path, num_names: int) -> str:
    """Format seconds and memory of the loop and of ours, and the ratios."""
    num_in_loop = min(LOOP_NAMES, num_names)
    whole, part = folder / "whole", folder / "part"
    write_names(whole, num_names)
    write_names(part, num_in_loop)
    in_loop = cost_of(loop, part)
    plain = Cost(in_loop.seconds * num_names / num_in_loop, in_loop.bytes * num_names / num_in_loop)
    jobs = {
        "from the list": cut,
        "from the list, writing the index": index_and_cut,
        "from the index": cut,
        "one group, from the index": open_group,
    }
    rows = {f"loop, scaled from {num_in_loop:,}": plain, **{name: cost_of(job, whole) for name, job in jobs.items()}}
    return "\n".join(
        [
            f"{f'{num_names:,} names':36}{'seconds':>10}{'GB':>10}{'times less':>20}",
            *(
                f"{name:36}{cost.seconds:10.1f}{cost.bytes / 1e9:10.2f}"
                f"{plain.seconds / cost.seconds:10.1f}{plain.bytes / cost.bytes:10.1f}"
                for name, cost in rows.items()
            ),
        ]
    )


def write_names(folder: Path, count: int) -> None:
    """Write the list of a folder's images; only the first of the images exists."""
    rng = np.random.default_rng(0)
    num_classes = count // IMAGES_PER_CLASS
    cells = CITY_SIDE_M // CELL_SIDE_M
    classes = rng.choice(cells * cells * 12, num_classes, replace=False)
    with folder.with_name(f"{folder.name}_images_paths.txt").open("w", encoding="utf-8") as stream:
        for start in range(0, count, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, count))
            place = classes[rows % num_classes]
            east = 540_000 + (place // 12 % cells + 0.99 * rng.random(len(rows))) * CELL_SIDE_M
            north = 4_170_000 + (place // 12 // cells + 0.99 * rng.random(len(rows))) * CELL_SIDE_M
            columns = (rows.tolist(), east.tolist(), north.tolist(), (place % 12 * 30).tolist())
            stream.writelines(
                f"{row % 1000:03}/@{e:010.2f}@{n:010.2f}@10@S@037.77493@-122.41942@pano{row:018}@@{h}@@@@201805@@.jpg\n"
                for row, e, n, h in zip(*columns, strict=True)
            )
    first = folder / folder.with_name(f"{folder.name}_images_paths.txt").open(encoding="utf-8").readline().strip()
    first.parent.mkdir(parents=True)
    first.touch()


def cost_of(job: Callable[[Path], object], city: Path) -> Cost:
    """Measure a job in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (job, city))


def measured(job: Callable[[Path], object], city: Path) -> Cost:
    """Measure a job, keeping its result until the memory is read."""
    start = time.perf_counter()
    kept = job(city)
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    del kept
    return Cost(seconds, 1024 * int(status["VmHWM"].split()[0]))


def loop(city: Path) -> object:
    """Parse all names, compute class and group of each image, and collect dicts of lists of paths and of sets."""
    paths = city.with_name(f"{city.name}_images_paths.txt").read_text(encoding="utf-8").splitlines()
    fields = [path.split("@") for path in paths]
    numbers = np.array([(field[1], field[2], field[9]) for field in fields]).astype(float)
    ids = [class_and_group(*row) for row in numbers]
    images_of_class = defaultdict(list)
    for path, (class_id, _) in zip(paths, ids, strict=True):
        images_of_class[class_id].append(path)
    images_of_class = {key: images for key, images in images_of_class.items() if len(images) >= MIN_IMAGES_PER_CLASS}
    classes_of_group = defaultdict(set)
    for class_id, group_id in ids:
        if class_id in images_of_class:
            classes_of_group[group_id].add(class_id)
    return fields, ids, images_of_class, {key: list(classes) for key, classes in classes_of_group.items()}


def class_and_group(east: float, north: float, heading: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the class id and the group id of one image."""
    class_id = (
        int(east // CELL_SIDE_M * CELL_SIDE_M),
        int(north // CELL_SIDE_M * CELL_SIDE_M),
        int(heading // HEADING_BIN_DEG * HEADING_BIN_DEG),
    )
    group_id = (
        class_id[0] % (CELL_SIDE_M * GROUPS_PER_SIDE) // CELL_SIDE_M,
        class_id[1] % (CELL_SIDE_M * GROUPS_PER_SIDE) // CELL_SIDE_M,
        class_id[2] % (HEADING_BIN_DEG * GROUPS_PER_HEADING) // HEADING_BIN_DEG,
    )
    return class_id, group_id


def index_and_cut(city: Path) -> object:
    """Write the index, then cut."""
    index_catalogue(city)
    return cut(city)


def cut(city: Path, num_groups: int = NUM_GROUPS) -> object:
    """Memory-map the index and cut it into groups."""
    catalogue = read_catalogue(city)
    partition = build_partition(
        catalogue,
        cell_side_m=CELL_SIDE_M,
        heading_bin_deg=HEADING_BIN_DEG,
        groups_per_side=GROUPS_PER_SIDE,
        groups_per_heading=GROUPS_PER_HEADING,
        min_images_per_class=MIN_IMAGES_PER_CLASS,
        num_groups=num_groups,
    )
    return catalogue, partition


def open_group(city: Path) -> object:
    """Memory-map the index and open its first group."""
    return cut(city, num_groups=1)


if __name__ == "__main__":
    main()
