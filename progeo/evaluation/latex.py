"""Format tables for papers in LaTeX, with the package booktabs."""

import re
from collections.abc import Mapping, Sequence

PREAMBLE = r"% \usepackage{booktabs}"
_ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: f"\\{letter}" for letter in "{}$&#%_"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "…": r"\dots{}",
        "≈": r"$\approx$",
        "±": r"$\pm$",
        **{letter: f"{{{letter}}}" for letter in "[]*"},  # which would belong to a command before them
    }
)


def as_latex(text: str) -> str:
    """Escape what LaTeX would take for a command."""
    return re.sub("-(?=-)", "-{}", " ".join(text.split()).translate(_ESCAPED))  # two would become a longer dash


def latex_table(
    label: str,
    caption: str,
    first: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    lines: Sequence[Sequence[str]],
) -> str:
    """Format a table whose columns stand in groups, with a heading and a rule above each.

    Args:
        label: name of the table in references, after `tab:`.
        caption: caption in LaTeX.
        first: titles of the columns before the groups.
        groups: titles of the columns of each group, by its heading.
        lines: cells of each line in LaTeX.
    """
    widths = [len(titles) for titles in groups.values()]
    starts = [1 + len(first) + sum(widths[:number]) for number in range(len(widths))]
    headings = (rf"\multicolumn{{{len(titles)}}}{{c}}{{{as_latex(name)}}}" for name, titles in groups.items())
    rules = (rf"\cmidrule(lr){{{start}-{start + width - 1}}}" for start, width in zip(starts, widths, strict=True))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{'l' * len(first)}{'c' * sum(widths)}}}",
            r"\toprule",
            _line([*([""] * len(first)), *headings]),
            " ".join(rules),
            _line([as_latex(title) for title in (*first, *(title for titles in groups.values() for title in titles))]),
            r"\midrule",
            *map(_line, lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cells)} \\"
