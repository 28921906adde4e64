"""Write the HTML page of a data set check: problems found, a map, and a histogram of class sizes.

The page has a bounded size whatever the number of images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.evaluation.pages import write_page

KINDS = ("unreadable", "tiny", "duplicates", "misplaced")
_NUM_SHOWN = 100
_MAP_SIDE, _MAP_SQUARES = 720, 120
_MAX_QUERIES = 5_000
_MAX_BARS, _MAX_BAR_WIDTH = 40, 36


def write_dataset_page(path: Path, report: Mapping[str, Any], positions_m: Mapping[str, np.ndarray]) -> None:
    """Write the page.

    Args:
        report: the content of `check.json`.
        positions_m: east and north of the images of each set (N, 2); the second set holds the queries.
    """
    findings = {f"{name}: {kind}": found[kind] for name, found in report["sets"].items() for kind in KINDS}
    findings["queries without a positive"] = report.get("queries_without_positive", [])
    write_page(
        path,
        "dataset.html",
        title=f"Images of {report['folder']}",
        report=report,
        kinds=KINDS,
        findings={name: list(each.items() if isinstance(each, Mapping) else each) for name, each in findings.items()},
        num_shown=_NUM_SHOWN,
        format_finding=format_finding,
        format_cells=format_cells,
        map=_map(list(positions_m.values())),
        histogram=_histogram(report.get("classes") or {}),
    )


def format_finding(item: Any) -> str:
    """Format one finding: a path, a path and its reason, or paths with the same content."""
    return item if isinstance(item, str) else ": ".join(item) if isinstance(item, tuple) else " = ".join(item)


def format_cells(cells: Mapping[str, Any]) -> str:
    """Format cells as command-line options."""
    return (
        f"--cells.cell_side_m {cells['cell_side_m']} --cells.heading_bin_deg {cells['heading_bin_deg']} "
        f"--cells.groups_per_heading 1"
    )


@dataclass(frozen=True)
class _Square:
    """A square of the map, in pixels from its upper left corner."""

    x: float
    y: float
    opacity: float
    count: int
    """Number of images in the square."""


@dataclass(frozen=True)
class _Map:
    """Squares for images, darker where there are more, and dots for queries, in pixels; north is up."""

    view_box: str
    side: float
    """Side of a square in pixels."""
    square_m: float
    """Side of a square in meters."""
    squares: list[_Square]
    dots: list[tuple[float, float]]
    scale_m: float
    """Length of the scale in meters."""
    scale_x: tuple[float, float]
    scale_y: float


def _map(sets: Sequence[np.ndarray]) -> _Map | None:
    """Lay out the map of east and north of each set (N, 2); None without any position."""
    images, *queries = [positions[np.isfinite(positions).all(axis=1)] for positions in sets]
    everywhere = np.concatenate([images, *queries])
    if not len(everywhere):
        return None
    low, high = everywhere.min(axis=0), everywhere.max(axis=0)
    square_m = max(float((high - low).max()) / _MAP_SQUARES, 1.0)
    columns, rows = (np.floor((high - low) / square_m).astype(int) + 1).tolist()
    side = _MAP_SIDE / max(columns, rows)
    width, height = columns * side, rows * side
    squares, counts = np.unique(np.floor((images - low) / square_m).astype(int), axis=0, return_counts=True)
    opacities = 0.25 + 0.75 * np.log1p(counts) / math.log1p(counts.max(initial=1))
    dots = np.concatenate([np.empty((0, 2)), *(each[:: -(-len(each) // _MAX_QUERIES) or 1] for each in queries)])
    dots = (dots - low) / square_m * side
    view_width = max(width, _MAP_SIDE / 2)  # room for the scale below a narrow city
    scale_m = _round_length(view_width / side * square_m / 3)
    half_scale = scale_m / square_m * side / 2
    return _Map(
        view_box=f"{(width - view_width) / 2 - 12:.0f} -12 {view_width + 24:.0f} {height + 42:.0f}",
        side=side,
        square_m=square_m,
        squares=[
            _Square(column * side, height - (row + 1) * side, opacity, count)
            for (column, row), opacity, count in zip(squares.tolist(), opacities.tolist(), counts.tolist(), strict=True)
        ],
        dots=[(east, height - north) for east, north in dots.tolist()],
        scale_m=scale_m,
        scale_x=(width / 2 - half_scale, width / 2 + half_scale),
        scale_y=height + 18,
    )


def _round_length(length: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)


@dataclass(frozen=True)
class _Histogram:
    """How many classes have each number of images."""

    first: int
    """Number of images of the classes of the first bar; each further bar is for one image more."""
    counts: list[int]
    """Number of classes of each bar."""
    has_more: bool
    """Whether the last bar also counts classes with more images."""
    step: float
    """Distance between bars in pixels."""

    @property
    def last(self) -> int:
        """Number of images of the classes of the last bar."""
        return self.first + len(self.counts) - 1


def _histogram(classes: Mapping[str, Any]) -> _Histogram | None:
    by_size = {int(size): count for size, count in classes.get("classes_with_so_many_images", {}).items()}
    if not by_size:
        return None
    first, last = min(by_size), max(by_size)
    counts = [0] * min(_MAX_BARS, last - first + 1)
    for size, count in by_size.items():
        counts[min(size - first, len(counts) - 1)] += count
    step = min(_MAP_SIDE / len(counts), _MAX_BAR_WIDTH)
    return _Histogram(first, counts, last - first >= len(counts), step)
