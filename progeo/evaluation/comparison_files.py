"""Write the table of encoders that were compared, as JSON, CSV and Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.engine.log import LOGGER
from progeo.evaluation.comparison import LEVEL, Compared, best_recalls, meaning_of_marks
from progeo.files import write_csv, write_json, write_text
from progeo.printable import markdown_table
from progeo.terminal import rich_markdown

if TYPE_CHECKING:
    from rich.console import Group


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


def write_comparison(out: Path, table: Sequence[Compared], *, spreadsheet_safe: bool = False) -> Comparison:
    """Write compare.json, compare.csv (see `write_csv`) and compare.md to a folder."""
    has_data = len({row.data for row in table}) > 1
    write_json(out / "compare.json", [_as_json(row) for row in table])
    columns = [_columns(row, has_data=has_data) for row in table]
    write_csv(
        out / "compare.csv", [[*columns[0]], *([*each.values()] for each in columns)], spreadsheet_safe=spreadsheet_safe
    )
    text = _as_markdown(table, has_data=has_data)
    write_text(out / "compare.md", text)
    LOGGER.info("table: %s, with a page beside it: compare.html", out / "compare.md")
    return Comparison(tuple(table), text)


def _as_json(row: Compared) -> dict[str, Any]:
    return {**asdict(row), "total_ms": row.total_ms}


def _speeds(row: Compared) -> dict[str, str]:
    """Return the first columns of numbers, with their names."""
    total = row.total_ms
    return {
        "dimensions": str(row.descriptor_dim),
        "images/s": "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
        "search, ms per query": f"{row.search_ms:.2f}",
        "total, ms per query": "" if total is None else f"{total:.2f}",
    }


def _columns(row: Compared, *, has_data: bool) -> dict[str, str]:
    """Return the cells of a row of compare.csv by the names of their columns."""
    recalls = {f"{row.measure}@{n}": f"{recall:.1f}" for n, recall in row.recalls.items()}
    bounds = {
        f"{row.measure}@{n} {side}": f"{bound:.1f}"
        for n, interval in row.intervals.items()
        for side, bound in zip(("low", "high"), interval, strict=True)
    }
    test, names = row.against_best, ("difference", "difference low", "difference high", "p", "p adjusted")
    tested = [] if test is None else [f"{test.difference:.1f}", f"{test.low:.1f}", f"{test.high:.1f}"]
    tested += ["", "", "", "", ""] if test is None else [f"{test.p:.3g}", f"{test.p_adjusted:.3g}"]
    return {
        **({"data": row.data} if has_data else {}),
        "encoder": row.encoder,
        **_speeds(row),
        **recalls,
        "queries": str(row.num_queries),
        **bounds,
        **dict(zip(names, tested, strict=True)),
    }


def _as_markdown(table: Sequence[Compared], *, has_data: bool) -> str:
    """Format the table, the best recalls in bold, and what its marks mean."""
    best, first_n = best_recalls(table), table[0].first_n
    is_tested = any(row.against_best is not None for row in table)
    lines = []
    for row in table:
        cells = {**({"data": row.data} if has_data else {}), "encoder": row.encoder, **_speeds(row)}
        for n, recall in row.recalls.items():
            is_best = recall == best[row.data, n]
            mark = f" {LEVEL}" if n == first_n and row.is_level else ""
            cells[f"{row.measure}@{n}"] = (f"**{recall:.1f}**" if is_best else f"{recall:.1f}") + mark
            if n == first_n:
                low, high = row.intervals[n]
                cells[f"95 % of {row.measure}@{n}"] = f"{low:.1f} to {high:.1f}"
        if is_tested:
            test = row.against_best
            cells["to the best"] = (
                "" if test is None else f"{test.difference:+.1f} ({test.low:+.1f} to {test.high:+.1f})"
            )
            cells["p"] = "" if test is None else f"{test.p_adjusted:.2g}"
        lines.append(cells)
    text = markdown_table([[*lines[0]], *([*cells.values()] for cells in lines)], num_texts=2 if has_data else 1)
    return f"{text}\n{meaning_of_marks(f'{table[0].measure}@{first_n}')}\n" if is_tested else text
