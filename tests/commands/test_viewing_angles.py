"""Positives that must look the same way, in every command that counts them."""

import csv
import json

import pytest

from progeo.cli import main
from progeo.commands.dataset_check import check_dataset
from progeo.config.datasets import CheckSettings
from progeo.places.catalogue import read_catalogue
from progeo.places.positives import find_positives


@pytest.fixture
def evaluation(city, tmp_path):
    return [
        *("evaluate", "--encoder", "thumbnail", "--folder", str(city / "test"), "--out", str(tmp_path)),
        *("--descriptor_cache", str(tmp_path / "cache"), "--num_workers", "0", "--positive_angle_deg"),
    ]


def test_an_evaluation_counts_and_names_the_viewing_angle(city, evaluation, tmp_path):
    main([*evaluation, "5", "--radii_m", "[100]", "--recall_ns", "[1]"])
    summary = json.loads((tmp_path / "recalls.json").read_text())
    assert summary["criterion"] == "within 25 m and 5 degrees"
    with (tmp_path / "recalls.csv").open() as stream:
        assert {row["criterion"] for row in csv.DictReader(stream)} == {
            "within 25 m and 5 degrees",
            "within 100 m and 5 degrees",
        }
    database, queries = (read_catalogue(city / "test" / side) for side in ("database", "queries"))
    positives = find_positives(database, queries, 25, angle_deg=5)
    expected = {queries.name(row): {database.name(each) for each in rows} for row, rows in enumerate(positives)}
    assert 0 < sum(map(len, expected.values())) < sum(map(len, find_positives(database, queries, 25)))
    with (tmp_path / "predictions.csv").open() as stream:
        for row in csv.DictReader(stream):
            assert (row["correct"] == "1") == (row["database"] in expected[row["query"]])


def test_a_protocol_and_a_viewing_angle_are_refused(evaluation):
    with pytest.raises(SystemExit, match=r"--protocol msls_val ignores headings.*omit one of them"):
        main([*evaluation, "20", "--protocol", "msls_val"])


def test_a_training_looks_at_the_viewing_angle_of_its_validation(config, tmp_path):
    words = ["train", "encoder", "--config", str(config), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"--validation\.positive_angle_deg must be above 0 and at most 180, got 200"):
        main([*words, "--validation.positive_angle_deg", "200"])


def test_a_check_lists_queries_that_no_image_near_them_looks_like(tmp_path):
    for side, heading in (("database", 90), ("queries", 180)):
        (tmp_path / side).mkdir()
        (tmp_path / side / f"@0@0@@@@@@@{heading}@@@@@@.jpg").touch()
    missing = [
        len(check_dataset(tmp_path, settings=CheckSettings(positive_angle_deg=angle))["queries_without_positive"])
        for angle in (None, 89, 90)
    ]
    assert missing == [0, 1, 0]
