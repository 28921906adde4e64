"""Evaluations that search near rough positions of the queries, of descriptors that are known."""

import csv
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from progeo.cli import main
from progeo.commands.evaluate import check_fit
from progeo.evaluation.options import RankingOptions
from progeo.evaluation.priors import build_regions
from progeo.evaluation.search import nearest_neighbors
from progeo.features.store import ShardedRows
from progeo.places.catalogue import Catalogue
from progeo.places.nearby import HeadingRange, Near, OwnPosition, haversine_m, parse_near, parse_prior

LATITUDE, LONGITUDE = 37.0462225, -123.0
"""Of the first image; the others lie 100 m to the north of each other."""
METERS_PER_DEGREE = math.radians(1) * 6_371_008.8


def name(row, *, meters, heading=""):
    return f"@{500000 + row}@{4100000 + meters}@10@S@@@{row}@@{heading}@@@@@@.jpg"


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """Six database images 100 m apart that look north, east, ..., and two queries at the third and the last but one.

    By descriptors the images are 3, 0, 1, 2, 5, 4 for both.
    """
    folder = tmp_path_factory.mktemp("city")
    for side, places in (("database", range(6)), ("queries", (2, 4))):
        (folder / side).mkdir()
        for row, place in enumerate(places):
            heading = 90 * place % 360 if side == "database" else 180
            (folder / side / name(row, meters=100 * place, heading=heading)).touch()
    np.save(folder / "database_descriptors.npy", np.float32([[2], [3], [4], [1], [6], [5]]))
    np.save(folder / "queries_descriptors.npy", np.zeros((2, 1), np.float32))
    return folder


def evaluated(city, out, *words):
    main(["evaluate", str(city), "--folder", str(city), "--out", str(out), "--recall_ns", "[1,5]", *words])
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    order = sorted(path.name for path in (city / "database").iterdir())
    names = sorted(path.name for path in (city / "queries").iterdir())
    found = [[order.index(row["database"]) for row in rows if row["query"] == query] for query in names]
    return found, json.loads((out / "recalls.json").read_text())


def test_each_query_is_searched_near_its_own_position_and_every_file_says_so(city, tmp_path):
    plain, before = evaluated(city, tmp_path / "plain")
    found, after = evaluated(city, tmp_path / "near", "--near", "150")
    assert plain == [[3, 0, 1, 2, 5]] * 2
    assert found == [[3, 1, 2], [3, 5, 4]]
    assert before["recalls"] == {"R@1": 0, "R@5": 50} and after["recalls"] == {"R@1": 0, "R@5": 100}
    assert before["chance"] == pytest.approx({"R@1": 100 / 6, "R@5": 500 / 6})
    assert after["chance"] == pytest.approx({"R@1": 100 / 3, "R@5": 100})
    how = "within 150 m of the position of each query"
    assert after["prior"] == how and "prior" not in before
    assert after["images searched"] == "3.0 of 6 per query, 50.00 %"
    assert after["queries without an image in their region"] == "0 of 2, without predictions"
    for file in ("recalls.md", "report.html"):
        assert how in (tmp_path / "near" / file).read_text()
    assert f"Searched among images {how}." in (tmp_path / "near/report.html").read_text()
    with (tmp_path / "near/recalls.csv").open() as stream:
        assert {row["prior"] for row in csv.DictReader(stream)} == {how}


def test_queries_with_nothing_in_their_region_are_missed_and_counted(city, tmp_path):
    near = f"{LATITUDE},{LONGITUDE},250"
    found, after = evaluated(city, tmp_path, "--near", near, "--heading", "30")
    assert found == [[2], [2]]
    assert after["recalls"] == {"R@1": 50, "R@5": 50}
    assert after["prior"] == f"within 250 m of {LATITUDE}, {LONGITUDE}; heading within 30 degrees of that of each query"
    found, after = evaluated(city, tmp_path, "--near", "150", "--heading", "100")
    assert found == [[3, 1, 2], [3, 5]]
    assert after["chance"] == pytest.approx({"R@1": 100 / 6, "R@5": 50})
    found, after = evaluated(city, tmp_path, "--near", f"{LATITUDE + 1},{LONGITUDE},250")
    assert found == [[], []]
    assert after["recalls"] == after["chance"] == {"R@1": 0, "R@5": 0}
    assert after["queries without an image in their region"] == "2 of 2, without predictions"


def test_the_error_of_the_top_prediction_says_how_many_queries_have_one(city, tmp_path):
    evaluated(city, tmp_path / "one", "--near", "40,50")
    evaluated(city, tmp_path / "all", "--near", "500")
    assert "median" in (tmp_path / "all/report.html").read_text()
    assert "queries with a prediction" not in (tmp_path / "all/report.html").read_text()
    assert ", of the 1 queries with a prediction" in (tmp_path / "one/report.html").read_text()


def test_a_comparison_near_positions_says_so(city, tmp_path):
    words = [str(city), "--folder", str(city), "--out", str(tmp_path), "--recall_ns", "[1,5]"]
    main(["compare", *words, "--near", "150,3", "--heading", "45"])
    (row,) = json.loads((tmp_path / "compare.json").read_text())
    assert row["encoder"] == f"{city}, near 150,3, heading within 45 degrees"


def test_positions_are_displaced_by_the_error_and_always_the_same():
    names = [f"{number}.jpg" for number in range(2000)]
    circles = [OwnPosition(500, 30).of(each, 60.0, 179.9999) for each in names]
    assert circles[:3] == [OwnPosition(500, 30).of(each, 60.0, 179.9999) for each in names[:3]]
    assert {circle.radius_m for circle in circles} == {500}
    north = (np.array([circle.latitude for circle in circles]) - 60) * METERS_PER_DEGREE
    turned = (np.array([circle.longitude for circle in circles]) - 179.9999 + 180) % 360 - 180
    for meters in (north, turned * METERS_PER_DEGREE / 2):  # cos 60 degrees
        assert meters.mean() == pytest.approx(0, abs=3)
        assert meters.std() == pytest.approx(30, rel=0.05)
    assert np.corrcoef(north, turned)[0, 1] == pytest.approx(0, abs=0.07)
    assert OwnPosition(500).of("a", 10.0, 20.0) == Near(10.0, 20.0, 500)


def test_regions_search_as_a_plain_filter_does_also_unreadable_images_and_crops(tmp_path):
    rng, count = np.random.default_rng(0), 300
    latitude, longitude = 37 + rng.random(count) / 100, -122 + rng.random(count) / 100
    heading = np.where(rng.random(count) < 0.1, np.nan, rng.random(count) * 360)
    table = {"path": pa.array(map(str, range(count)), pa.large_string()), "latitude": latitude, "longitude": longitude}
    database = Catalogue(tmp_path, pa.table({**table, "heading": heading}))
    queries = database.take(np.arange(20))
    vectors = rng.normal(size=(count, 4)).astype(np.float32)
    np.save(tmp_path / "rows_00000.npy", vectors)
    missing = np.array([3, 50, 120])
    rows = ShardedRows(tmp_path, num_rows=count, width=4, shard_size=count, dtype="float32").without(missing)
    regions = build_regions(database, queries, OwnPosition(150, 80), 30.0)
    crops = rng.normal(size=(20, 2, 4)).astype(np.float32)
    found = regions.neighbors(rows, crops, 5)
    all_rows = rows.all_rows(found.rows).reshape(20, 2, 5)
    sizes = set()
    for query, (circle, directions) in enumerate(zip(regions.circles, regions.ranges, strict=True)):
        within = haversine_m(latitude, longitude, circle.latitude, circle.longitude) <= 150
        turn = 0 if directions is None else np.abs((heading - directions.heading_deg + 180) % 360 - 180)
        among = np.setdiff1d(np.flatnonzero(within & ~(turn > 30)), missing)
        assert directions == (None if np.isnan(heading[query]) else HeadingRange(heading[query], 30))
        assert regions.rows(query).tolist() == np.flatnonzero(within & ~(turn > 30)).tolist()
        sizes.add(min(len(among), 5))
        expected = nearest_neighbors([vectors[among]], crops[query], min(len(among), 5)).rows
        for crop in range(2):
            assert all_rows[query, crop].tolist() == [*among[expected[crop]], *[-1] * (5 - len(expected[crop]))]
    assert len(sizes) > 2
    kept = regions.without_queries(np.array([0, 1]))
    assert len(kept) == 18 and kept.rows(0).tolist() == regions.rows(2).tolist()


@pytest.mark.parametrize(
    ("text", "prior"),
    [
        ("500", OwnPosition(500)),
        ("500,20.5", OwnPosition(500, 20.5)),
        ("37.5,-122,500", Near(37.5, -122, 500)),
        (None, None),
    ],
)
def test_three_numbers_are_one_position_and_fewer_one_of_each_query(text, prior):
    assert parse_prior(text) == prior


@pytest.mark.parametrize("near", [Near(37.5, -122, 500), Near(-0.1, 1 / 3, 1234567.8)])
def test_a_position_as_text_is_the_same_position(near):
    assert parse_near(str(near)) == near


@pytest.mark.parametrize("text", ["", "a", "0", "-5", "500,-1", "nan", "500,inf", "1,2,3,4", "500,x"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"^`near` .* Use for example 500 or 500,50 or 37.78,-122.41,500"):
        parse_prior(text)


@pytest.mark.parametrize(
    ("options", "faiss", "message"),
    [
        ({"near": "500", "by": "classes"}, None, "`near` restricts database images, which `by` classes has none of"),
        ({"heading": 45, "by": "classes"}, None, "`heading` restricts database images"),
        ({"near": "500"}, "IVF4,Flat", "`near` searches exactly, and `faiss` IVF4,Flat does not"),
        ({"heading": 45, "rerank": "k_reciprocal"}, None, "`heading` searches parts of the database"),
        ({"heading": 181}, None, "`heading` must be degrees above 0 and at most 180, got 181"),
        ({"near": "5,5,5,5"}, None, "`near` must be RADIUS_M"),
    ],
)
def test_options_that_cannot_be_used_together_are_refused(options, faiss, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_fit(RankingOptions(**options), faiss)


def test_unknown_positions_and_headings_are_refused(tmp_path):
    def images(**columns):
        known = {"latitude": [1.0, 2.0], "longitude": [1.0, 2.0], "heading": [0.0, 90.0], **columns}
        return Catalogue(tmp_path, pa.table({"path": pa.array(["a", "b"], pa.large_string()), **known}))

    nowhere = {"latitude": [1.0, np.nan]}
    with pytest.raises(ValueError, match=r"`near` 50 needs .* and 1 of 2 have none, such as b: give LAT,LON,RADIUS_M"):
        build_regions(images(), images(**nowhere), OwnPosition(50), None)
    with pytest.raises(ValueError, match="`near` cannot be used: no latitude and longitude is known"):
        build_regions(images(latitude=[np.nan, np.nan]), images(), Near(1, 1, 50), None)
    blind = images(heading=[np.nan, np.nan])
    for sides in ((blind, images()), (images(), blind)):
        with pytest.raises(ValueError, match=r"`heading` cannot be used: no heading is known in"):
            build_regions(*sides, None, 45)
    assert build_regions(images(), images(), None, None) is None


def test_positions_that_are_not_to_be_read_are_refused(city, tmp_path):
    with pytest.raises(SystemExit, match="--near and --heading need known positions: omit --no_labels or them"):
        evaluated(city, tmp_path, "--near", "50", "--no_labels", "true")
