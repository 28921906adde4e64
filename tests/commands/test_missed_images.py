"""What evaluations tell beside recalls: chance, descriptor distances, and the nearest correct image that was missed."""

import csv
import json
import re

import numpy as np
import pytest

from progeo.cli import main
from progeo.evaluation.metrics import first_of_each_panorama
from progeo.places.catalogue import read_catalogue
from progeo.places.positives import find_positives

RADIUS_M = 40


@pytest.fixture(scope="module")
def sides(city):
    return [read_catalogue(city / "val" / side) for side in ("database", "queries")]


@pytest.fixture(scope="module")
def described(sides, tmp_path_factory):
    """A folder of random descriptors."""
    folder, random = tmp_path_factory.mktemp("described"), np.random.default_rng(5)
    for side, images in zip(("database", "queries"), sides, strict=True):
        np.save(folder / f"{side}_descriptors.npy", random.normal(size=(len(images), 3)).astype(np.float32))
    return folder


def evaluated(city, described, out, *words):
    common = ["--folder", str(city / "val"), "--out", str(out), "--recall_ns", "[1,2]", "--num_workers", "0"]
    main(["evaluate", str(described), *common, "--positive_radius_m", str(RADIUS_M), *words])
    html = (out / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="gallery-data">(.*?)</script>', html, re.DOTALL)[1])


def missed_in(data):
    """For each query of the report with a strip of its own for it, the missed image, its rank and its distances."""
    names = [name for name, *_ in data["photos"]]
    return {
        key: (names[items[0][0]], *items[0][2:])
        for key, *_, strips, _ in data["rows"]
        for title, items in strips
        if data["titles"][title].startswith("Nearest correct image")
    }


def expected_of(sides, described, *, panoramas=None, shown=2):
    """The same by sorting all distances; without those that are the top prediction, or among the shown ones."""
    database, queries = (np.load(described / f"{side}_descriptors.npy") for side in ("database", "queries"))
    distances = np.linalg.norm(queries[:, None] - database, axis=2)
    ranking = np.argsort(distances, axis=1)
    if panoramas is not None:
        ranking = first_of_each_panorama(ranking, panoramas, len(database))
    expected = {}
    for query, positives in enumerate(find_positives(*sides, RADIUS_M)):
        ranks = [rank for rank, row in enumerate(ranking[query].tolist(), start=1) if row in positives]
        if ranks and ranks[0] > shown:
            row = int(ranking[query, ranks[0] - 1])
            east, north = (getattr(sides[0], each)[row] - getattr(sides[1], each)[query] for each in ("east", "north"))
            told = (np.hypot(east, north), distances[query, row])
            expected[query] = (sides[0].name(row), ranks[0], *(pytest.approx(each, rel=1e-3) for each in told))
    return expected


def test_the_nearest_correct_image_is_ranked_among_all_images(city, sides, described, tmp_path):
    expected = expected_of(sides, described)
    assert missed_in(evaluated(city, described, tmp_path)) == expected
    assert len(expected) >= 2


def test_with_one_prediction_of_a_panorama_the_rank_is_that_among_panoramas(city, sides, described, tmp_path):
    expected = expected_of(sides, described, panoramas=sides[0].panoramas)
    assert missed_in(evaluated(city, described, tmp_path, "--one_per_panorama", "true")) == expected
    assert expected


def test_with_an_index_or_re_ranking_the_rank_is_that_by_descriptors(city, sides, described, tmp_path):
    expected = expected_of(sides, described)
    found = missed_in(evaluated(city, described, tmp_path, "--rerank", "k_reciprocal", "--rerank_k1", "4"))
    assert found
    assert {query: told for query, told in found.items() if query in expected} == {
        query: told for query, told in expected.items() if query in found
    }


def test_chance_and_descriptor_distances_are_written(city, sides, described, tmp_path):
    evaluated(city, described, tmp_path)
    count, positives = len(sides[0]), [len(rows) for rows in find_positives(*sides, RADIUS_M)]
    one = np.mean([p / count for p in positives])
    two = np.mean([1 - (count - p) * (count - p - 1) / count / (count - 1) for p in positives])
    assert json.loads((tmp_path / "recalls.json").read_text())["chance"] == {
        "R@1": pytest.approx(100 * one),
        "R@2": pytest.approx(100 * two),
    }
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["query", "rank", "database", "distance_m", "correct", "descriptor_distance"]
    database, queries = (np.load(described / f"{side}_descriptors.npy") for side in ("database", "queries"))
    nearest = np.linalg.norm(queries[:, None] - database, axis=2).min(axis=1)
    found = [float(row["descriptor_distance"]) for row in rows if row["rank"] == "1"]
    assert found == pytest.approx(nearest.tolist(), abs=1e-4)
