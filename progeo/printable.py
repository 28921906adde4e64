"""Show text of untrusted files, paths, and errors about them, safely and on one line or in a cell of a table."""

import html
import re
from collections.abc import Sequence

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal would obey or cannot show, or that turn the order of others; not tabs and line ends."""


def counted(number: int, noun: str) -> str:
    """Write a number with a noun in the singular or plural, such as `1 part` and `1,200 parts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Replace non-printable characters by `?` in text of an untrusted file, so that it is safe to display."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def escaped(text: str) -> str:
    r"""Escape what is not safe to display, and bytes of a path that are not valid UTF-8, such as caf\xe9."""
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1].replace(r"\udc", r"\x"), text)  # undo surrogateescape


def first_line(error: BaseException, otherwise: str = "it is truncated") -> str:
    """Return the first line of an error as printable text without a period at its end; `otherwise` if it is empty."""
    return printable((str(error).strip() or otherwise).splitlines()[0].rstrip("."))


def reason_of_failure(error: BaseException) -> str:
    """Return the kind of an error in code of others and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def markdown_table(rows: Sequence[Sequence[str]], *, num_texts: int) -> str:
    """Format rows, the column names first, as a Markdown table; columns from `num_texts` on are aligned as numbers."""
    alignments = ["---"] * num_texts + ["---:"] * (len(rows[0]) - num_texts)
    texts = [[_as_cell(cell) for cell in cells] for cells in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (texts[0], alignments, *texts[1:]))


def plain_table(rows: Sequence[Sequence[str]], *, num_texts: int) -> list[str]:
    """Align the columns of rows as lines: the first `num_texts` to the left, the others, of numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < num_texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def _as_cell(text: str) -> str:
    """Escape what would end a cell of Markdown or begin HTML in it."""
    return re.sub(r"(\\*)\|", r"\1\1\\|", html.escape(" ".join(text.splitlines()), quote=False))
