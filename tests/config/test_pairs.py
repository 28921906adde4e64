"""Options of a mapping, of several numbers and switches on the command line."""

import pytest

from progeo.config.datasets import DatasetTableSettings
from progeo.config.encoders import ImportSettings
from progeo.config.evaluation import EvaluateSettings
from progeo.config.parsing import parse_settings
from progeo.config.training import Settings


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


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--radii_m 5,25.5", "radii_m", (5, 25.5)),
        ("--radii_m=5,25", "radii_m", (5, 25)),
        ("--radii_m 1e1", "radii_m", (10,)),
        ("--radii_m [5,25]", "radii_m", (5, 25)),
        ("--recall_ns 1", "recall_ns", (1,)),
        ("--image_size 64,96", "image_size", (64, 96)),
        ("--image_size 64", "image_size", 64),
        ("--image_size null", "image_size", None),
        ("--index OPQ32,IVF1024,PQ32", "index", "OPQ32,IVF1024,PQ32"),
        ("--database 1,2", "database", "1,2"),
        ("--no_labels", "no_labels", True),
        ("--no_labels --one_per_panorama", "no_labels", True),
        ("--no_labels --queries x", "queries", "x"),
        ("--no_labels false", "no_labels", False),
        ("--no_labels=false", "no_labels", False),
    ],
)
def test_a_switch_may_stand_alone_and_numbers_need_no_brackets(words, name, value):
    needed = ["--encoder", "e", "--folder", "f", "--out", "o"]
    for order in ([*needed, *words.split()], [*words.split(), *needed]):
        settings = parse_settings(EvaluateSettings, order, program="progeo evaluate")
        assert getattr(settings, name) == value


def test_a_switch_of_three_values_or_in_a_section_may_stand_alone():
    settings = parse_settings(ImportSettings, ["file", "--quickgelu"], program="progeo import", positional=True)
    assert settings.quickgelu is True
    words = ["--run=r", "--data.train_folder=t", "--data.val_folder=v", "--training.compile", "--model.mean=.5,.5,.5"]
    settings = parse_settings(Settings, words, program="progeo stage2")
    assert (settings.training.compile, settings.model.mean) == (True, (0.5, 0.5, 0.5))


@pytest.mark.parametrize("frozen", ["--model.frozen conv1,1", "--model.frozen=conv1,1", '--model.frozen ["conv1","1"]'])
@pytest.mark.parametrize("trackers", ["--trackers tensorboard", "--trackers [tensorboard]"])
def test_names_need_no_brackets(frozen, trackers):
    words = ["--run=r", "--data.train_folder=t", "--data.val_folder=v", *frozen.split(), *trackers.split()]
    settings = parse_settings(Settings, words, program="progeo stage2")
    assert (settings.model.frozen, settings.trackers) == (("conv1", "1"), ("tensorboard",))
