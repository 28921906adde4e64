"""Write the page of a comparison: a table and charts of each data set, and the queries that encoders differ on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.evaluation.comparison import (
    ALL,
    LEVEL,
    Compared,
    Evaluated,
    best_recalls,
    meaning_of_marks,
    shared_queries,
)
from progeo.evaluation.comparison_gallery import MAX_PICTURES, MAX_ROWS, differing_queries, gallery_of
from progeo.evaluation.comparison_map import map_of
from progeo.pages.charts import Chart, Series
from progeo.pages.page import shortened, shown_path, write_page

_MAX_BANDS = 3
"""Number of curves up to which their intervals are drawn."""


@dataclass(frozen=True)
class _Section:
    """What the page shows of one data set."""

    name: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[dict[str, Any]]]
    conditions: Sequence[Sequence[dict[str, Any]]]
    """Rows of the conditions of the queries, each with the condition before the cells of the header."""
    charts: Sequence[Chart]
    missed_header: Sequence[str]
    missed: Sequence[Sequence[str | dict[str, Any]]]
    """Of each encoder, the number of queries that it finds and each other misses; empty for a single encoder."""
    has_unknown: bool
    """Whether the duration of an extraction is unknown."""


def write_comparison_page(
    path: Path,
    evaluated: Sequence[Evaluated],
    table: Sequence[Compared],
    *,
    conditions: Sequence[Compared] = (),
    show_paths: bool = False,
    spreadsheet_safe: bool = False,
    max_rows: int = MAX_ROWS,
    max_pictures: int = MAX_PICTURES,
) -> None:
    """Write the page of encoders that were evaluated on the same data sets.

    Args:
        table: what `compare_evaluated` returned.
        conditions: what `compare_by_condition` returned.
        show_paths: show whole paths instead of the last two parts of absolute ones.
        spreadsheet_safe: see `write_page`.
        max_rows: maximum number of queries that are listed.
        max_pictures: number of pictures after which queries are listed by name.
    """
    first_n = table[0].first_n
    sets, encoders = (
        shown_names(names, show_paths) for names in ([row.data for row in table], [row.encoder for row in table])
    )
    sections = [_section(name, evaluated, [*table, *conditions], sets, encoders) for name in sets]
    best = [next(row for row in table if row.data == name and row.is_best) for name in sets]
    differing = differing_queries(evaluated, first_n, [row.encoder for row in best])
    listed = differing[:max_rows]
    gallery, num_pictured = gallery_of(
        listed, encoders, sets, first_n=first_n, show_paths=show_paths, max_pictures=max_pictures
    )
    what, where = (
        f"{len(names)} {plural}" if len(names) > 1 else next(iter(names.values()))
        for names, plural in ((encoders, "encoders"), (sets, "data sets"))
    )
    write_page(
        path,
        "compare.html",
        title=f"{what} on {where}",
        gallery=gallery if listed else None,
        map=map_of(listed, encoders, show_paths=show_paths) if listed else None,
        show_paths=show_paths,
        spreadsheet_safe=spreadsheet_safe,
        measure=f"{table[0].measure}@{first_n}",
        meaning=meaning_of_marks(f"{table[0].measure}@{first_n}", has_conditions=bool(conditions)),
        best=[_best_figure(row, encoders[row.encoder], sets[row.data] if len(sets) > 1 else "") for row in best],
        sections=sections,
        num_encoders=len(encoders),
        num_differing=len(differing),
        num_listed=len(listed),
        num_pictured=num_pictured,
        has_sets=len(sets) > 1,
    )


def shown_names(names: Sequence[str], show_paths: bool) -> dict[str, str]:
    """Return names as the page shows them, by name; names that look alike without their paths are numbered."""
    shown = {name: shown_path(name, show_paths) for name in names}
    texts = list(shown.values())
    return {
        name: text if texts.count(text) == 1 else f"{text} ({number})"
        for number, (name, text) in enumerate(shown.items(), start=1)
    }


def _best_figure(row: Compared, encoder: str, data: str) -> tuple[str, str, str]:
    """Return label, value and detail of the figure of the best encoder of a data set."""
    n, (low, high) = row.first_n, row.intervals[row.first_n]
    label = ", ".join(filter(None, [f"{row.measure}@{n}", shortened(data)]))
    return label, f"{row.recalls[n]:.1f} %", f"{low:.1f} to {high:.1f}, {shortened(encoder)}"


def _section(
    name: str,
    evaluated: Sequence[Evaluated],
    table: Sequence[Compared],
    sets: Mapping[str, str],
    encoders: Mapping[str, str],
) -> _Section:
    here = [each for each in evaluated if each.data == name]
    rows = [row for row in table if row.group == (name, ALL)]
    conditions = [row for row in table if row.data == name and row.condition != ALL]
    best = best_recalls([*rows, *conditions])
    is_tested, first_n, measure = any(row.against_best for row in rows), rows[0].first_n, rows[0].measure
    shared = shared_queries(here)
    hits = [each.hits_of(shared, first_n) for each in here]
    missed = [_missed_by(found, hits, encoders[each.encoder]) for each, found in zip(here, hits, strict=True)]
    return _Section(
        sets[name],
        _counts(rows, here[0].evaluation.retrieved.criterion, len(shared)),
        [
            "encoder",
            *(f"{measure}@{n}" for n in rows[0].recalls),
            *(["difference to the best", "p"] if is_tested else []),
            "dimensions",
            "ms per query",
        ],
        [_cells(row, encoders[row.encoder], best, is_tested=is_tested) for row in rows],
        [_of_condition(row, encoders[row.encoder], best, is_tested=is_tested) for row in conditions],
        _charts(rows, encoders),
        ["found by", *(shortened(encoders[each.encoder]) for each in here)],
        missed if len(here) > 1 else [],
        any(row.total_ms is None for row in rows),
    )


def _missed_by(found: np.ndarray, hits: Sequence[np.ndarray], name: str) -> list[str | dict[str, Any]]:
    """Return a row of the table of how many queries an encoder finds and each of all encoders misses."""
    return [_named(name), *("" if each is found else f"{int((found & ~each).sum()):,}" for each in hits)]


def _counts(rows: Sequence[Compared], criterion: str, num_shared: int) -> str:
    """Say how many queries the recalls and the tests are of."""
    counts = {row.num_queries for row in rows}
    text = f"{min(counts):,} to {max(counts):,}" if len(counts) > 1 else f"{min(counts):,}"
    paired = f" Encoders are compared on the {num_shared:,} queries that all of them count." if len(counts) > 1 else ""
    return f"{text} queries, correct {criterion}.{paired}"


def _named(name: str) -> dict[str, Any]:
    return {"text": shortened(name), "title": name}


def _cells(
    row: Compared, name: str, best: Mapping[tuple[tuple[str, str], int], float], *, is_tested: bool
) -> list[dict[str, Any]]:
    """Return the cells of an encoder in the table of a data set."""
    cells = [_named(name)]
    for n, recall in row.recalls.items():
        low, high = row.intervals[n]
        mark = f" {LEVEL}" if n == row.first_n and row.is_level else ""
        is_best = recall == best[row.group, n]
        cells.append({"text": f"{recall:.1f}{mark}", "bold": is_best, "detail": f"{low:.1f} to {high:.1f}"})
    if is_tested and row.against_best is not None:
        test = row.against_best
        difference = {"text": f"{test.difference:+.1f}", "detail": f"{test.low:+.1f} to {test.high:+.1f}"}
        cells += [difference, {"text": f"{test.p_adjusted:.2g}"}]
    elif is_tested:
        cells += [{"text": "the best"}, {"text": ""}]
    search = f"{row.search_ms:.2f} for search"
    total = "unknown" if row.total_ms is None else f"{row.total_ms:.2f}"
    return [*cells, {"text": f"{row.descriptor_dim:,}"}, {"text": total, "detail": search}]


def _of_condition(
    row: Compared, name: str, best: Mapping[tuple[tuple[str, str], int], float], *, is_tested: bool
) -> list[dict[str, Any]]:
    """Return the cells of an encoder in the table of conditions."""
    condition = {"text": row.condition, "detail": f"{row.num_queries:,} queries"}
    return [condition, *_cells(row, name, best, is_tested=is_tested)]


def _charts(rows: Sequence[Compared], names: Mapping[str, str]) -> list[Chart]:
    """Draw the recall curves, and the first recall against milliseconds and dimensions."""
    ns, has_bands = sorted(rows[0].recalls), len(rows) <= _MAX_BANDS
    curves = []
    for row in rows:
        low, high = ([row.intervals[n][side] for n in ns] if has_bands else None for side in (0, 1))
        curves.append(Series(names[row.encoder], ns, [row.recalls[n] for n in ns], low, high))
    measure = f"{rows[0].measure}@{rows[0].first_n}"
    charts = [Chart(f"{rows[0].measure}@N", "N", f"{rows[0].measure}@N, %", curves, log_x=True)]
    costs: dict[str, tuple[str, list[float | None]]] = {
        "milliseconds": ("milliseconds per query, extraction and search", [row.total_ms for row in rows]),
        "dimensions": ("dimensions", [float(row.descriptor_dim) for row in rows]),
    }
    for what, (x_label, values) in costs.items():
        points = [_point(row, names[row.encoder], value) for row, value in zip(rows, values, strict=True)]
        if any(value is not None for value in values):
            charts.append(Chart(f"{measure} against {what}", x_label, f"{measure}, %", points, log_x=True))
    return charts


def _point(row: Compared, name: str, cost: float | None) -> Series:
    """Return an encoder as one point, or as none if its cost is unknown, in the color of its curve."""
    low, high = row.intervals[row.first_n]
    x = math.nan if cost is None else cost
    return Series(name, [x], [row.recalls[row.first_n]], [low], [high], "points", [name])
