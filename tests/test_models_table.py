"""The tables of docs/models.md are those of the protocols and of the formats that are imported."""

from pathlib import Path

from benchmarks.models import programs_table, published_table

PAGE = (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")


def test_the_page_has_the_published_recalls_of_the_protocols():
    assert published_table() in PAGE


def test_the_page_has_every_program_whose_weights_are_imported():
    assert programs_table() in PAGE
