"""Write the tables of encoders that were compared for a paper: bold best recalls, intervals, and paired tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from progeo.evaluation.comparison import Compared, best_recalls
from progeo.evaluation.comparison_page import shown_names
from progeo.evaluation.latex import PREAMBLE, as_latex, latex_table
from progeo.evaluation.significance import SIGNIFICANCE
from progeo.files import write_text

_DAGGER = r"$^\dagger$"
_Columns = Mapping[str, Sequence[tuple[str, Sequence[Compared], int]]]
"""Columns by the heading of their group: each with its title, the rows of all encoders, and N."""


def write_comparison_latex(
    path: Path, table: Sequence[Compared], conditions: Sequence[Compared], *, show_paths: bool = False
) -> None:
    """Write a table of all data sets, and one of the conditions of their queries if there are any.

    Args:
        table: what `compare_evaluated` returned.
        conditions: what `compare_by_condition` returned.
        show_paths: write whole paths in the names of encoders and data sets.
    """
    encoders = shown_names([row.encoder for row in table], show_paths)
    sets = shown_names([row.data for row in table], show_paths)
    first_n, measure = table[0].first_n, table[0].measure
    of_sets: dict[str, list[tuple[str, Sequence[Compared], int]]] = {}
    for data, name in sets.items():
        rows = [row for row in table if row.data == data]
        of_sets[f"{name}, {_count(rows)} queries"] = [(f"{measure}@{n}", rows, n) for n in rows[0].recalls]
    texts = [PREAMBLE, _table("compare", f"{measure}@N in percent.", of_sets, encoders)]
    if conditions:
        caption = f"{measure}@{first_n} in percent, by condition (number of queries)."
        texts.append(_table("conditions", caption, _by_condition(conditions, sets, first_n), encoders))
    write_text(path, "\n".join(texts))


def _by_condition(conditions: Sequence[Compared], sets: Mapping[str, str], n: int) -> _Columns:
    """Return a column for each condition of each data set, at one N."""
    groups: dict[tuple[str, str], list[Compared]] = {}
    for row in conditions:
        groups.setdefault(row.group, []).append(row)
    found: dict[str, list[tuple[str, Sequence[Compared], int]]] = {}
    for (data, condition), rows in groups.items():
        found.setdefault(sets[data], []).append((f"{condition} ({_count(rows)})", rows, n))
    return found


def _count(rows: Sequence[Compared]) -> str:
    """Format the number of queries, which can differ between encoders."""
    low, high = (function(row.num_queries for row in rows) for function in (min, max))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(label: str, caption: str, groups: _Columns, encoders: Mapping[str, str]) -> str:
    """Format a table with two lines for each encoder: its recalls, and their intervals."""
    columns = [({row.encoder: row for row in rows}, n) for group in groups.values() for _, rows, n in group]
    everything = [row for by_encoder, _ in columns for row in by_encoder.values()]
    best = best_recalls(everything)
    lines = []
    for encoder, name in encoders.items():
        cells = [(by_encoder[encoder], n) for by_encoder, n in columns]
        dim = f"{cells[0][0].descriptor_dim:,}"
        lines.append([as_latex(name), dim, *(_recall(row, n, best[row.group, n]) for row, n in cells)])
        lines.append(["", "", *(_interval(row, n) for row, n in cells)])
    titles = {heading: [title for title, _, _ in group] for heading, group in groups.items()}
    return latex_table(label, f"{caption} {_meaning(everything)}", ("Encoder", "Dim."), titles, lines)


def _recall(row: Compared, n: int, best: float) -> str:
    text = f"{row.recalls[n]:.1f}"
    test = row.tests.get(n)
    is_worse = test is not None and test.is_significant and test.difference < 0
    return (rf"\textbf{{{text}}}" if row.recalls[n] == best else text) + (_DAGGER if is_worse else "")


def _interval(row: Compared, n: int) -> str:
    low, high = row.intervals[n]
    return rf"{{\scriptsize {low:.1f}--{high:.1f}}}"


def _meaning(rows: Sequence[Compared]) -> str:
    """Explain in LaTeX what the numbers and marks of a table mean."""
    criteria = dict.fromkeys(row.criterion for row in rows)
    tested = (
        rf" {_DAGGER}: significantly below the best of the column (exact McNemar test on the same queries, "
        rf"$p < {SIGNIFICANCE}$ with Holm's correction for the encoders of the column)."
    )
    return (
        rf"A prediction is correct {as_latex(' or '.join(criteria))}. Below each recall: 95\,\% interval by "
        rf"Wilson's score. Bold: the best of the column."
        rf"{tested if any(row.tests for row in rows) else ''}"
    )
