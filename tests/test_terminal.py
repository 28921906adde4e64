import io
import os

import pytest
from rich.console import Console

from progeo.printable import markdown_table
from progeo.terminal import has_colors, rich_markdown, rich_table, rich_text

GREEN, BOLD, END = "\x1b[1;32m", "\x1b[1m", "\x1b[0m"


def printed(shown, *, colors=None):
    stream = io.StringIO()
    Console(file=stream, width=60, force_terminal=colors is not None, color_system=colors).print(shown)
    return stream.getvalue()


def test_texts_are_aligned_left_and_numbers_right():
    lines = printed(rich_table([["encoder", "R@1"], ["a", "7.5"], ["longer one", "100.0"]], num_texts=1)).splitlines()
    assert [line.rstrip() for line in lines if line.strip()] == [
        "  encoder        R@1",
        " " + "\u2500" * 20,
        "  a              7.5",
        "  longer one   100.0",
    ]


def test_column_names_are_bold_and_what_markdown_has_in_bold_is_green():
    shown = printed(rich_table([["encoder", "R@1"], ["a", "**7.5** ="]], num_texts=1), colors="standard")
    assert f"{BOLD}encoder{END}" in shown and f"{GREEN}7.5{END} =" in shown and "**" not in shown


def test_markdown_is_shown_as_its_tables_and_its_text():
    rows = [["encoder", "R@1", "p"], ["a|b <c> \\| d &lt;", "1.0", ""], ["", "**2.0**", "0.5"]]
    text = f"# Title [red]\n\n{markdown_table(rows, num_texts=1)}\nbest: **bold** ones"
    lines = [line.strip() for line in printed(rich_markdown(text)).splitlines()]
    assert (lines[0], lines[-1]) == ("# Title [red]", "best: bold ones")
    cells = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in lines[3:]]
    assert cells[0] == ["encoder", "R@1", "p"]
    assert cells[2:4] == [["a|b <c> \\| d &lt;", "1.0"], ["2.0", "0.5"]]


def test_what_a_terminal_would_obey_is_spelled_out():
    assert printed(rich_text("caf\udce9\x1b[2J")) == "caf\\xe9\\x1b[2J\n"


@pytest.mark.parametrize("refused", [False, True])
def test_only_a_terminal_has_colors_and_only_if_they_are_not_refused(refused, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if refused:
        monkeypatch.setenv("NO_COLOR", "")
    main, other = os.openpty()
    with os.fdopen(other, "w") as stream:
        assert has_colors(stream) is not refused
    os.close(main)
    assert not has_colors(io.StringIO())
