"""Hook of MkDocs: pages of the project from outside docs/, the help of every command, and the notebook of the tour."""

import json
import logging
import os
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
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
PROJECT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md")
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
_PICTURES = {"image/jpeg": ".jpg", "image/png": ".png"}
"""Kind of a picture in the notebook -> suffix of its file."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for name in PROJECT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "help.md", content=help_of_every_command()))
    pictures: dict[str, bytes] = {}
    blocks = [*blocks_of_notebook(pictures), "The notebook itself: [tour.ipynb](./tour.ipynb)."]
    files.append(File.generated(config, "notebook.md", content="\n\n".join(blocks)))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between pages in docs/, pages of the project and the notebook lead to where these lie on the site."""
    if page.file.src_uri in LESS_SEARCHED:
        page.meta["search"] = {"boost": 0.2}
    return re.sub(r"(?<=\]\()(?:\.\./|docs/)", "", markdown).replace("](tour.ipynb)", "](notebook.md)")


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Name the dialog of the search, for those who hear the page."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def on_env(env: Environment, *, config: MkDocsConfig, files: Files) -> None:
    """List the links to other hosts, which are not fetched."""
    content = "".join(file.page.content or "" for file in files.documentation_pages() if file.page)
    links = sorted(set(re.findall(r'href="(https?://[^"]+)"', content)))
    LOGGER.info("%d links to other hosts, which are not fetched:\n%s", len(links), "\n".join(links))


def blocks_of_notebook(pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield the Markdown of the notebook's cells and of what they printed, and add their pictures by file name."""
    for cell in json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", []):
            if text := "".join(output.get("text", "")).strip("\n"):
                yield f"```text\n{text}\n```"
            for kind in _PICTURES.keys() & output.get("data", {}).keys():
                name = f"notebook_{len(pictures) + 1}{_PICTURES[kind]}"
                pictures[name] = b64decode("".join(output["data"][kind]))
                yield f"![Picture {len(pictures)} of the notebook]({name})"


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
