"""Write the HTML page of a data set check: problems found, a map, and a histogram of class sizes.

The page is one file that opens offline, with a bounded size whatever the number of images.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from progeo.evaluation.pages import read_part
from progeo.files import replacing

KINDS = ("unreadable", "tiny", "duplicates", "misplaced")
_SHOWN = 100
_MAP_SIDE, _MAP_SQUARES = 720, 120
_MAX_QUERIES = 5_000
_MAX_BARS, _WIDEST_BAR = 40, 36


def write_dataset_page(path: Path, report: Mapping[str, Any], positions_m: Mapping[str, np.ndarray]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        report: the content of `check.json`.
        positions_m: east and north of the images of each set (N, 2); the second set holds the queries.
    """
    page = Template(read_part("dataset_page.html")).substitute(
        style=read_part("page.css"),
        title=f"Images of {escape(report['folder'])}",
        rows=_table(report),
        details="\n".join(_details(report)),
        map=_centers(report) + _map(list(positions_m.items())),
        classes=_classes(report.get("classes")),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def in_words(item: Any) -> str:
    """Format one finding: a path, a path and its reason, or paths with the same content."""
    return item if isinstance(item, str) else ": ".join(item) if isinstance(item, tuple) else " = ".join(item)


def in_settings(cells: Mapping[str, Any]) -> str:
    """Format cells as command-line options."""
    return (
        f"--cells.cell_side_m {cells['cell_side_m']} --cells.heading_bin_deg {cells['heading_bin_deg']} "
        f"--cells.groups_per_heading 1"
    )


def _table(report: Mapping[str, Any]) -> str:
    """Build the table of how many problems of each kind every set has."""
    rows: list[tuple[str, ...]] = [("", "images", *KINDS, "sizes in pixels")]
    for name, found in report["sets"].items():
        sizes = [f"{size} ({count:,})" for size, count in list(found["sizes"].items())[:3]]
        more = len(found["sizes"]) - len(sizes)
        counts = [len(found[kind]) for kind in KINDS]
        marked = [f'<span class="bad">{count:,}</span>' if count else "0" for count in counts]
        rows.append(
            (escape(name), f"{found['images']:,}", *marked, ", ".join(sizes) + (f" and {more} more" if more else ""))
        )
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    if "queries_without_positive" in report:
        count = len(report["queries_without_positive"])
        lines.append(f'<tr><th colspan="2">queries without a positive</th><td colspan="5">{count:,}</td></tr>')
    return "\n".join(lines)


def _details(report: Mapping[str, Any]) -> list[str]:
    """Build collapsed lists of the first findings of each kind."""
    lists = [
        (f"{name}: {kind}", list(found[kind].items() if isinstance(found[kind], Mapping) else found[kind]))
        for name, found in report["sets"].items()
        for kind in KINDS
    ]
    lists.append(("queries without a positive", report.get("queries_without_positive", [])))
    return [
        f"<details><summary>{escape(title)} ({len(items):,}"
        + (f", the first {_SHOWN}" if len(items) > _SHOWN else "")
        + ")</summary><ul>"
        + "".join(f"<li>{escape(in_words(item))}</li>" for item in items[:_SHOWN])
        + "</ul></details>"
        for title, items in lists
        if items
    ]


def _centers(report: Mapping[str, Any]) -> str:
    """Write the center of each set, with a link to a street map."""
    return "".join(
        f"<p>{escape(name)}: {escape(found['where'])}"
        + (f', <a href="{escape(found["map_link"])}">map</a>' if found["map_link"] else "")
        + "</p>"
        for name, found in report["sets"].items()
        if found.get("where")
    )


def _map(sets: Sequence[tuple[str, np.ndarray]]) -> str:
    """Draw the map, north up: squares for images, darker where there are more, and dots for queries."""
    known = [(name, places[np.isfinite(places).all(axis=1)]) for name, places in sets]
    everywhere = np.concatenate([places for _, places in known])
    if not len(everywhere):
        return "<p>These images have no coordinates.</p>"
    low, high = everywhere.min(axis=0), everywhere.max(axis=0)
    square_m = max(float((high - low).max()) / _MAP_SQUARES, 1.0)
    columns, rows = (np.floor((high - low) / square_m).astype(int) + 1).tolist()
    pixels = _MAP_SIDE / max(columns, rows)
    width, height = columns * pixels, rows * pixels
    cells = np.floor((known[0][1] - low) / square_m).astype(int)
    squares, counts = np.unique(cells, axis=0, return_counts=True)
    opacities = 0.25 + 0.75 * np.log1p(counts) / math.log1p(counts.max())
    shapes = [
        f'<rect class="place" x="{column * pixels:.1f}" y="{height - (row + 1) * pixels:.1f}" width="{pixels:.1f}" '
        f'height="{pixels:.1f}" opacity="{opacity:.2f}"><title>{count:,} images</title></rect>'
        for (column, row), count, opacity in zip(squares.tolist(), counts.tolist(), opacities.tolist(), strict=True)
    ]
    for _, places in known[1:]:
        steps = -(-len(places) // _MAX_QUERIES)
        for east, north in ((places[::steps] - low) / square_m * pixels).tolist():
            shapes.append(f'<circle class="query" cx="{east:.1f}" cy="{height - north:.1f}" r="3"/>')
    wide = max(width, _MAP_SIDE / 2)  # room for the scale below a narrow city
    bar_m = _round_length(wide / pixels * square_m / 3)
    left, right = (width + turn * bar_m / square_m * pixels for turn in (-1, 1))
    shapes.append(
        f'<line class="scale" x1="{left / 2:.1f}" x2="{right / 2:.1f}" y1="{height + 18:.1f}" y2="{height + 18:.1f}"/>'
    )
    names = [
        f"squares of {square_m:,.0f} m: {escape(known[0][0])}",
        *(f"dots: {escape(name)}" for name, _ in known[1:]),
        f"line: {bar_m:,.0f} m; north is up",
    ]
    return (
        f'<svg class="map" viewBox="{(width - wide) / 2 - 12:.0f} -12 {wide + 24:.0f} {height + 42:.0f}" role="img" '
        f'aria-label="Map of the images">{"".join(shapes)}</svg>{_key(names)}'
    )


def _key(names: Sequence[str]) -> str:
    """Build the legend below a drawing: text inside the drawing would be too small on a phone."""
    return f'<div class="key">{"".join(f"<span>{name}</span>" for name in names)}</div>'


def _round_length(length: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)


def _classes(classes: Mapping[str, Any] | None) -> str:
    if classes is None:
        return ""
    cells = f"cells of {classes['cell_side_m']} m and {classes['heading_bin_deg']} degrees"
    title = f"<h2>Classes</h2><p>{classes['classes']:,} classes of {classes['images']:,} images, {cells}."
    if "classes_per_group" in classes:
        title += f" {len(classes['classes_per_group'])} groups, of {min(classes['classes_per_group']):,} to "
        title += f"{max(classes['classes_per_group']):,} classes."
    if "refused" in classes:
        title += f" {escape(classes['refused'])}"
    if "suggested" in classes:
        title += f" Few; most of them with <code>{in_settings(classes['suggested'])}</code>."
    return title + "</p>" + _histogram(classes) + _other_cells(classes.get("with_other_cells", []))


def _histogram(classes: Mapping[str, Any]) -> str:
    """Draw the histogram of how many classes have each number of images."""
    counts = {int(size): count for size, count in classes.get("classes_with_so_many_images", {}).items()}
    if not counts:
        return ""
    first = min(counts)
    bars = [0] * min(_MAX_BARS, max(counts) - first + 1)
    for size, count in counts.items():
        bars[min(size - first, len(bars) - 1)] += count
    step, height = min(_MAP_SIDE / len(bars), _WIDEST_BAR), 160
    shapes = []
    for index, count in enumerate(bars):
        tall = height * count / max(bars)
        shapes.append(
            f'<rect class="bar" x="{index * step + 1:.1f}" y="{height - tall:.1f}" width="{step - 2:.1f}" '
            f'height="{tall:.1f}"><title>{count:,} classes of {first + index} images</title></rect>'
        )
    last = f"{first + len(bars) - 1}{' or more' if max(counts) > first + len(bars) - 1 else ''}"
    names = [f"from left to right: classes of {first} to {last} images", f"highest: {max(bars):,} classes"]
    return (
        f'<svg class="map" viewBox="-12 -12 {_MAP_SIDE + 24} {height + 24}" role="img" aria-label="Images of a class">'
        f"{''.join(shapes)}</svg>{_key(names)}"
    )


def _other_cells(others: Sequence[Mapping[str, Any]]) -> str:
    if not others:
        return ""
    rows = "".join(
        f"<tr><td>{each['cell_side_m']} m</td><td>{each['heading_bin_deg']} degrees</td><td>{each['classes']:,}</td>"
        f"<td>{each['images']:,}</td></tr>"
        for each in others
    )
    head = "<tr><th>cells.cell_side_m</th><th>cells.heading_bin_deg</th><th>classes</th><th>images</th></tr>"
    return f"<h2>What other cells would give</h2><table>{head}{rows}</table>"
