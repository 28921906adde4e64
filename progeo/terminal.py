"""Tables of results for terminals with colors: results with a method `__rich__` give rich what it prints there."""

import html
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from progeo.printable import escaped

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text


def has_colors(stream: TextIO) -> bool:
    """Return whether a stream is a terminal whose user did not refuse colors by NO_COLOR."""
    return stream.isatty() and "NO_COLOR" not in os.environ


def rich_table(rows: Sequence[Sequence[str]], *, num_texts: int) -> "Table":
    """Build a table of rows, the column names first; columns from `num_texts` on are aligned as numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for number, name in enumerate(rows[0]):
        table.add_column(rich_text(name), justify="left" if number < num_texts else "right")
    for row in rows[1:]:
        table.add_row(*map(rich_text, row))
    return table


def rich_markdown(text: str) -> "Group":
    """Build what is shown of Markdown with tables, as `markdown_table` writes them."""
    from rich.console import Group

    return Group(*_blocks(text))


def _blocks(text: str) -> "Iterator[RenderableType]":
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("| ")):
        if not is_table:
            yield from map(rich_text, lines)
            continue
        names, alignments, *rows = ([_unescaped(cell) for cell in line[2:-2].split(" | ")] for line in lines)
        yield rich_table([names, *rows], num_texts=alignments.count("---"))


def _unescaped(cell: str) -> str:
    """Undo the escaping of a cell of Markdown."""
    return html.unescape(re.sub(r"(\\*)\1\\\|", r"\1|", cell))


def rich_text(text: str) -> "Text":
    """Show Markdown's bold text, such as the best of some numbers, in green."""
    from rich.text import Text

    pieces = re.split(r"\*\*(.+?)\*\*", escaped(text))
    return Text.assemble(*((piece, "bold green" if number % 2 else "") for number, piece in enumerate(pieces)))
