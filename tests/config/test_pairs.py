"""Options of a mapping on the command line."""

import pytest

from progeo.config.datasets import DatasetTableSettings
from progeo.config.parsing import parse_settings


@pytest.mark.parametrize(
    "words",
    [
        ["places.csv", "own", "--columns", "path=photo", "latitude=y=z", "--link", "true"],
        ["--columns", "path=photo", "latitude=y=z", "places.csv", "own", "--link", "true"],
        ["places.csv", "own", "--columns", "path=photo", "--link", "true", "--columns", "latitude=y=z"],
        ["--columns=path=photo", "--columns=latitude=y=z", "places.csv", "own", "--link=true"],
        ["places.csv", "own", "--link", "true", "--columns", '{"path": "photo", "latitude": "y=z"}'],
    ],
)
def test_pairs_of_names_and_values_are_one_mapping(words):
    settings = parse_settings(DatasetTableSettings, words, program="progeo dataset from-table", positional=True)
    assert (str(settings.table), str(settings.out), settings.link) == ("places.csv", "own", True)
    assert settings.columns == {"path": "photo", "latitude": "y=z"}


def test_a_template_of_paths_stays_as_it_is():
    words = ["places.csv", "own", "--path", "{key}.jpg"]
    settings = parse_settings(DatasetTableSettings, words, program="progeo dataset from-table", positional=True)
    assert settings.path == "{key}.jpg"
