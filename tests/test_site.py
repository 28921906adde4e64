"""The site of docs/: every page is in the navigation, and every link and anchor between Markdown files exists."""

import ast
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import progeo
import progeo.losses

ROOT = Path(__file__).parents[1]
PROJECT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md")
FILES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.md"))}
FILES |= {f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
NAVIGATION = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
WRITTEN = ("help.md", "notebook.md")
"""Pages that docs/site/hook.py writes."""


def without_code(text):
    """Remove fenced and indented blocks of code."""
    return re.sub(r"^(?:```.*?^```|    .*?)$", "", text, flags=re.M | re.S)


def anchors(text):
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", title).lower()).replace(" ", "-") for title in titles}


def test_the_navigation_has_every_page_once():
    own = [name.removeprefix("docs/") for name in FILES if name.startswith("docs/")]
    assert sorted(NAVIGATION) == sorted([*own, *PROJECT_PAGES, *WRITTEN])


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=FILES)
def test_every_link_between_files_leads_to_a_file_and_a_heading(name, text):
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", without_code(text)):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(FILES[target.relative_to(ROOT).as_posix()]), link
        if name in PROJECT_PAGES or name.startswith("docs/"):  # which lie on the site, other files do not
            assert target.parent == ROOT / "docs" or target.name in PROJECT_PAGES, link


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=FILES)
def test_lists_and_tables_begin_after_an_empty_line_or_a_heading(name, text):
    lines = without_code(text).splitlines()
    for before, line in pairwise(lines):
        for block in (r"- |\d+\. ", r"\|"):
            if re.match(block, line) and before:
                assert re.match(rf"{block}|  |#", before), line


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=FILES)
def test_text_after_a_block_of_code_is_a_paragraph_of_its_own(name, text):
    fences = re.findall(r"^```.*\n(?:.*\n)*?```\n(.*)", text, flags=re.M)
    assert not [line for line in fences if line]


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=FILES)
def test_python_code_can_be_parsed(name, text):
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        ast.parse(code)


def test_the_page_of_python_shows_all_that_may_be_imported():
    shown = re.findall(r"^::: (\S+)$", FILES["docs/api.md"], flags=re.M)
    for name in shown:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name
    assert {name for name in shown if name.count(".") == 1} == {
        f"progeo.{name}" for name in progeo.__all__ if name != "__version__"
    }
    assert {name for name in shown if name.startswith("progeo.losses.")} == {
        f"progeo.losses.{name}" for name in progeo.losses.__all__
    }
