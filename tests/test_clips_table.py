"""The table of CLIPs in docs/clips.md is what the installed open_clip gives."""

import re
from pathlib import Path

import open_clip
import pytest

from benchmarks.clips import row_of, text_cells

PAGE = (Path(__file__).parents[1] / "docs/clips.md").read_text()
TABLE = {
    name.strip(): tuple(cell.strip() for cell in cells)
    for name, *cells in (line.strip("| ").split("|") for line in PAGE.splitlines() if line.startswith("| "))
    if name.strip() != "architecture"
}
INSTALLED = [name for name in open_clip.list_models() if name in TABLE]


def test_the_table_has_every_architecture_and_counts_those_that_are_accepted():
    accepted, total, version = re.search(r"(\d+) of (\d+) architectures of open_clip (\S+) are", PAGE).groups()
    assert len(TABLE) == int(total) >= 144
    refused = [name for name, cells in TABLE.items() if any("refused" in cell for cell in cells)]
    assert len(TABLE) - len(refused) == int(accepted) >= 120
    assert len(INSTALLED) > 100
    if open_clip.__version__ == version:
        folder = Path(open_clip.__file__).parent / "model_configs"
        assert {path.stem for path in folder.glob("*.json")} == set(TABLE)


@pytest.mark.parametrize("name", INSTALLED)
def test_prompts_are_encoded_as_the_table_says(name):
    assert TABLE[name][4:] == text_cells(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_a_tower_is_a_backbone_as_the_table_says(name):
    assert (name, *TABLE[name]) == row_of(name)
