"""Write the table of encoders that were compared, as JSON, CSV and Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.engine.log import LOGGER
from progeo.evaluation.comparison import LEVEL, Compared, ComparedPair, best_recalls, meaning_of_marks
from progeo.evaluation.significance import PairedTest
from progeo.files import write_csv, write_json, write_text
from progeo.printable import markdown_table
from progeo.terminal import rich_markdown

if TYPE_CHECKING:
    from rich.console import Group

_TESTED = ("difference", "difference low", "difference high", "p", "p adjusted")
"""Columns of a paired test."""


@dataclass(frozen=True)
class Comparison:
    """The table of all encoders and data sets."""

    rows: tuple[Compared, ...]
    text: str
    """The table in Markdown."""

    def __str__(self) -> str:
        return self.text.rstrip("\n")

    def __rich__(self) -> "Group":
        return rich_markdown(str(self))


def write_comparison(
    out: Path,
    table: Sequence[Compared],
    *,
    conditions: Sequence[Compared] = (),
    pairs: Sequence[ComparedPair] = (),
    spreadsheet_safe: bool = False,
) -> Comparison:
    """Write compare.json, compare.csv (see `write_csv`), compare.md and, of several encoders, compare_pairs.csv.

    Args:
        table: what `compare_evaluated` returned.
        conditions: what `compare_by_condition` returned.
        pairs: what `compare_pairs` returned.
    """
    names = dict.fromkeys(row.data for row in table)
    rows = [row for name in names for row in (*table, *conditions) if row.data == name]
    shows = {"data": len(names) > 1, "condition": bool(conditions)}
    write_json(out / "compare.json", [_as_json(row) for row in rows])
    write_csv(out / "compare.csv", _as_rows([_columns(row, shows) for row in rows]), spreadsheet_safe=spreadsheet_safe)
    if pairs:
        cells = [_pair_columns(pair) for pair in pairs]
        write_csv(out / "compare_pairs.csv", _as_rows(cells), spreadsheet_safe=spreadsheet_safe)
    text = _as_markdown(table, conditions, shows)
    write_text(out / "compare.md", text)
    LOGGER.info("table: %s, with a page beside it: compare.html", out / "compare.md")
    return Comparison((*table, *conditions), text)


def _as_rows(columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return the names of the columns, and the cells of each row."""
    return [[*columns[0]], *([*each.values()] for each in columns)]


def _as_json(row: Compared) -> dict[str, Any]:
    tested = None if row.against_best is None else asdict(row.against_best)
    return {**asdict(row), "against_best": tested, "total_ms": row.total_ms}


def _group(row: Compared, shows: Mapping[str, bool]) -> dict[str, str]:
    """Return the cells that say which queries a row is of, as far as the table shows them."""
    return {name: text for name, text in zip(("data", "condition"), row.group, strict=True) if shows[name]}


def _speeds(row: Compared) -> dict[str, str]:
    """Return the first columns of numbers, with their names."""
    total = row.total_ms
    return {
        "dimensions": str(row.descriptor_dim),
        "images/s": "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
        "search, ms per query": f"{row.search_ms:.2f}",
        "total, ms per query": "" if total is None else f"{total:.2f}",
    }


def _columns(row: Compared, shows: Mapping[str, bool]) -> dict[str, str]:
    """Return the cells of a row of compare.csv by the names of their columns."""
    recalls = {f"{row.measure}@{n}": f"{recall:.1f}" for n, recall in row.recalls.items()}
    bounds = {
        f"{row.measure}@{n} {side}": f"{bound:.1f}"
        for n, interval in row.intervals.items()
        for side, bound in zip(("low", "high"), interval, strict=True)
    }
    tested = [""] * len(_TESTED) if row.against_best is None else _test_columns(row.against_best)
    return {
        **_group(row, shows),
        "encoder": row.encoder,
        **_speeds(row),
        **recalls,
        "queries": str(row.num_queries),
        **bounds,
        **dict(zip(_TESTED, tested, strict=True)),
    }


def _test_columns(test: PairedTest) -> list[str]:
    """Return the cells of `_TESTED`."""
    points = [f"{value:.1f}" for value in (test.difference, test.low, test.high)]
    return [*points, f"{test.p:.3g}", f"{test.p_adjusted:.3g}"]


def _pair_columns(pair: ComparedPair) -> dict[str, str]:
    """Return the cells of a row of compare_pairs.csv by the names of their columns."""
    return {
        "data": pair.data,
        "condition": pair.condition,
        "measure": pair.measure,
        "encoder": pair.encoder,
        "other": pair.other,
        "queries": str(pair.test.num_queries),
        "only encoder": str(pair.test.only_one),
        "only other": str(pair.test.only_other),
        **dict(zip(_TESTED, _test_columns(pair.test), strict=True)),
    }


def _as_markdown(table: Sequence[Compared], conditions: Sequence[Compared], shows: Mapping[str, bool]) -> str:
    """Format a table of all queries, one of conditions if there are any, and what the marks in them mean."""
    is_tested, best = any(row.tests for row in table), best_recalls([*table, *conditions])

    def as_table(
        rows: Sequence[Compared], shows: Mapping[str, bool], facts: Callable[[Compared], dict[str, str]]
    ) -> str:
        cells = [
            {**_group(row, shows), "encoder": row.encoder, **facts(row), **_results(row, best, is_tested=is_tested)}
            for row in rows
        ]
        return markdown_table(_as_rows(cells), num_texts=1 + sum(shows.values()))

    parts = [as_table(table, {**shows, "condition": False}, _speeds)]
    if conditions:
        parts.append(as_table(conditions, shows, lambda row: {"queries": f"{row.num_queries:,}"}))
    if is_tested:
        measure = f"{table[0].measure}@{table[0].first_n}"
        parts.append(f"{meaning_of_marks(measure, has_conditions=bool(conditions))}\n")
    return "\n".join(parts)


def _results(row: Compared, best: Mapping[tuple[tuple[str, str], int], float], *, is_tested: bool) -> dict[str, str]:
    """Return the cells of recalls, the best in bold, and of the test against the best encoder."""
    cells = {}
    for n, recall in row.recalls.items():
        mark = f" {LEVEL}" if n == row.first_n and row.is_level else ""
        cells[f"{row.measure}@{n}"] = (f"**{recall:.1f}**" if recall == best[row.group, n] else f"{recall:.1f}") + mark
        if n == row.first_n:
            low, high = row.intervals[n]
            cells[f"95 % of {row.measure}@{n}"] = f"{low:.1f} to {high:.1f}"
    if is_tested:
        test = row.against_best
        difference = "" if test is None else f"{test.difference:+.1f} ({test.low:+.1f} to {test.high:+.1f})"
        cells |= {"to the best": difference, "p": "" if test is None else f"{test.p_adjusted:.2g}"}
    return cells
