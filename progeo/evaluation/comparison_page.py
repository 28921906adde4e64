"""Write the page of a comparison: a table and charts of each data set, and the queries that encoders differ on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progeo.evaluation.comparison import (
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
    charts: Sequence[Chart]
    missed_header: Sequence[str]
    missed: Sequence[Sequence[str | dict[str, Any]]]
    """Of each encoder, the number of queries that it finds and each other misses; empty for a single encoder."""


def write_comparison_page(
    path: Path,
    evaluated: Sequence[Evaluated],
    table: Sequence[Compared],
    *,
    show_paths: bool = False,
    max_rows: int = MAX_ROWS,
    max_pictures: int = MAX_PICTURES,
) -> None:
    """Write the page of encoders that were evaluated on the same data sets.

    Args:
        table: what `compare_evaluated` returned.
        show_paths: show whole paths instead of the last two parts of absolute ones.
        max_rows: maximum number of queries that are listed.
        max_pictures: number of pictures after which queries are listed by name.
    """
    first_n, names = table[0].first_n, list(dict.fromkeys(row.data for row in table))
    sections = [_section(name, evaluated, table, show_paths) for name in names]
    best = [next(row for row in table if row.data == name and row.is_best) for name in names]
    differing = differing_queries(evaluated, first_n, [row.encoder for row in best])
    listed = differing[:max_rows]
    encoders = list(dict.fromkeys(each.encoder for each in evaluated))
    gallery, num_pictured = gallery_of(
        listed, encoders, first_n=first_n, show_paths=show_paths, max_pictures=max_pictures
    )
    counted = f"{len(encoders)} encoders" if len(encoders) > 1 else shown_path(encoders[0], show_paths)
    where = f"{len(names)} data sets" if len(names) > 1 else shown_path(names[0], show_paths)
    write_page(
        path,
        "compare.html",
        title=f"{counted} on {where}",
        gallery=gallery if listed else None,
        map=map_of(listed, show_paths=show_paths) if listed else None,
        show_paths=show_paths,
        measure=f"{table[0].measure}@{first_n}",
        meaning=meaning_of_marks(f"{table[0].measure}@{first_n}"),
        best=[_best_figure(row, show_paths, with_data=len(names) > 1) for row in best],
        sections=sections,
        num_encoders=len(encoders),
        num_differing=len(differing),
        num_listed=len(listed),
        num_pictured=num_pictured,
        has_sets=len(names) > 1,
    )


def _best_figure(row: Compared, show_paths: bool, *, with_data: bool) -> tuple[str, str, str]:
    """Return label, value and detail of the figure of the best encoder of a data set."""
    n, (low, high) = row.first_n, row.intervals[row.first_n]
    label = f"{row.measure}@{n}, {shortened(shown_path(row.data, show_paths))}" if with_data else f"{row.measure}@{n}"
    encoder = shortened(shown_path(row.encoder, show_paths))
    return label, f"{row.recalls[n]:.1f} %", f"{low:.1f} to {high:.1f}, {encoder}"


def _section(name: str, evaluated: Sequence[Evaluated], table: Sequence[Compared], show_paths: bool) -> _Section:
    here, rows = [each for each in evaluated if each.data == name], [row for row in table if row.data == name]
    names = {row.encoder: shown_path(row.encoder, show_paths) for row in rows}
    is_tested, first_n, measure = any(row.against_best for row in rows), rows[0].first_n, rows[0].measure
    shared = shared_queries(here)
    hits = [each.hits_of(shared, first_n) for each in here]
    missed = [
        [
            _named(names[one.encoder]),
            *(
                "" if one is other else f"{int((of_one & ~of_other).sum()):,}"
                for other, of_other in zip(here, hits, strict=True)
            ),
        ]
        for one, of_one in zip(here, hits, strict=True)
    ]
    return _Section(
        shown_path(name, show_paths),
        _counts(rows, here[0].evaluation.retrieved.criterion, len(shared)),
        [
            "encoder",
            *(f"{measure}@{n}" for n in rows[0].recalls),
            *(["to the best"] if is_tested else []),
            "dimensions",
            "ms per query",
        ],
        [_cells(row, names[row.encoder], best_recalls(rows), is_tested=is_tested) for row in rows],
        _charts(rows, names),
        ["correct by", *(shortened(names[each.encoder]) for each in here)],
        missed if len(here) > 1 else [],
    )


def _counts(rows: Sequence[Compared], criterion: str, num_shared: int) -> str:
    """Say how many queries the recalls and the tests are of."""
    counts = {row.num_queries for row in rows}
    text = f"{min(counts):,} to {max(counts):,}" if len(counts) > 1 else f"{min(counts):,}"
    paired = f" Encoders are compared on the {num_shared:,} queries that all of them count." if len(counts) > 1 else ""
    return f"{text} queries, correct {criterion}.{paired}"


def _named(name: str) -> dict[str, Any]:
    return {"text": shortened(name), "title": name}


def _cells(row: Compared, name: str, best: Mapping[tuple[str, int], float], *, is_tested: bool) -> list[dict[str, Any]]:
    """Return the cells of an encoder in the table of a data set."""
    cells = [_named(name)]
    for n, recall in row.recalls.items():
        low, high = row.intervals[n]
        mark = f" {LEVEL}" if n == row.first_n and row.is_level else ""
        is_best = recall == best[row.data, n]
        cells.append({"text": f"{recall:.1f}{mark}", "bold": is_best, "detail": f"{low:.1f} to {high:.1f}"})
    if is_tested:
        test = row.against_best
        told = (
            ("the best", "")
            if test is None
            else (f"{test.difference:+.1f}", f"{test.low:+.1f} to {test.high:+.1f}, p {test.p_adjusted:.2g}")
        )
        cells.append(dict(zip(("text", "detail"), told, strict=True)))
    search = f"{row.search_ms:.2f} of them search"
    total = "unknown" if row.total_ms is None else f"{row.total_ms:.2f}"
    return [*cells, {"text": f"{row.descriptor_dim:,}"}, {"text": total, "detail": search}]


def _charts(rows: Sequence[Compared], names: Mapping[str, str]) -> list[Chart]:
    """Draw the recall curves, and the first recall against milliseconds and dimensions."""
    has_bands = len(rows) <= _MAX_BANDS
    curves = []
    for row in rows:
        ns = sorted(row.recalls)
        low, high = ([row.intervals[n][side] for n in ns] for side in (0, 1))
        bands = {"low": low, "high": high} if has_bands else {}
        curves.append(Series(names[row.encoder], ns, [row.recalls[n] for n in ns], **bands))
    measure = f"{rows[0].measure}@{rows[0].first_n}"
    charts = [Chart(f"{rows[0].measure}@N", "N", f"{rows[0].measure}@N, %", curves, log_x=True)]
    costs: dict[str, tuple[str, list[float | None]]] = {
        "milliseconds": ("milliseconds per query, extraction and search", [row.total_ms for row in rows]),
        "dimensions": ("dimensions", [float(row.descriptor_dim) for row in rows]),
    }
    for what, (x_label, values) in costs.items():
        points = [_point(row, names[row.encoder], cost) for row, cost in zip(rows, values, strict=True)]
        charts.append(Chart(f"{measure} against {what}", x_label, f"{measure}, %", points, log_x=True))
    return charts


def _point(row: Compared, name: str, cost: float | None) -> Series:
    """Return an encoder as one point; one of unknown cost has none."""
    low, high = row.intervals[row.first_n]
    x = math.nan if cost is None else cost
    return Series(name, [x], [row.recalls[row.first_n]], [low], [high], "points", [name])
