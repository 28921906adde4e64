"""Hook of MkDocs: pages of the project from outside docs/, and the help of every command as `progeo` prints it."""

import logging
import os
import re
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from jinja2 import Environment
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from progeo.cli import COMMANDS, main

LOGGER = logging.getLogger("mkdocs.hooks.progeo")
ROOT = Path(__file__).parents[2]
PROJECT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages beside docs/; they link to `docs/NAME`, and pages in docs/ to `../NAME`. On the site all are in one folder."""
GROUPS = {
    "train": "Train",
    "prompts": "Train",
    "runs": "Train",
    "evaluate": "Evaluate",
    "compare": "Evaluate",
    "extract": "Evaluate",
    "pca": "Evaluate",
    "classes": "Evaluate",
    "index": "Localize and serve",
    "localize": "Localize and serve",
    "serve": "Localize and serve",
    "export": "Take away",
    "import": "Take away",
    "dataset": "Data",
}
"""First word of a command -> its group on the page of help; of other commands, "More"."""
LESS_SEARCHED = ("CHANGELOG.md", "api.md")
"""Pages with every word, which a search shows after the others."""
_COLUMNS = 78


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for name in PROJECT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "help.md", content=help_of_every_command()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between pages in docs/ and pages of the project lead to where these lie on the site."""
    if page.file.src_uri in LESS_SEARCHED:
        page.meta["search"] = {"boost": 0.2}
    return re.sub(r"(?<=\]\()(?:\.\./|docs/)", "", markdown)


def on_env(env: Environment, *, config: MkDocsConfig, files: Files) -> None:
    """List the links to other hosts, which are not fetched."""
    content = "".join(file.page.content or "" for file in files.documentation_pages() if file.page)
    links = sorted(set(re.findall(r'href="(https?://[^"]+)"', content)))
    LOGGER.info("%d links to other hosts, which are not fetched:\n%s", len(links), "\n".join(links))


def help_of_every_command() -> str:
    """Write a page with what `progeo COMMAND --help` prints for every command, in groups."""
    groups = defaultdict(list)
    for name in COMMANDS:
        groups[GROUPS.get(name.partition(" ")[0], "More")].append(name)
    lines = ["# Help of every command", "", "This is what `progeo COMMAND --help` prints."]
    for group, names in groups.items():
        lines += ["", f"## {group}"]
        for name in names:
            lines += ["", f"### progeo {name}", "", "```text", printed_help(name), "```"]
    return "\n".join(lines)


def printed_help(command: str) -> str:
    """Return what `--help` of a command prints."""
    os.environ["COLUMNS"] = str(_COLUMNS)  # the width of lines
    with redirect_stdout(StringIO()) as printed:
        main([*command.split(), "--help"])
    return printed.getvalue().strip()
