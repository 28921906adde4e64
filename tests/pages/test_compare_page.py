"""The page of a comparison, driven in Chromium."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from progeo.cli import main
from progeo.evaluation.comparison import Evaluated, compare_by_condition, compare_evaluated
from progeo.evaluation.comparison_page import write_comparison_page
from progeo.evaluation.evaluate import Evaluation
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue

REAL = Path(__file__).parents[2].parent / "shared/data"
NUM_QUERIES = 30


def catalogue(folder, names, east, *, zone=30):
    north = np.full(len(names), 5787000.0)
    columns = {"east": np.asarray(east, float), "north": north, "zone": np.full(len(names), zone, np.int8)}
    return Catalogue(folder, pa.table({"path": names, **columns, "heading": np.full(len(names), np.nan)}))


def evaluated(folder, found, *, encoder, data, names=None, conditions=None, east=300000.0):
    """An encoder whose first prediction is the image at the place of the query if `found`, else a far one."""
    count = len(found)
    names = [f"photo {row:02d}.jpg" for row in range(count)] if names is None else names
    for name in names:
        if not (folder / name).exists():
            Image.new("RGB", (64, 48), (200, 120, 40)).save(folder / name, format="JPEG")
    rows = np.arange(count)
    places = catalogue(folder, names, east + 100 * rows)
    predictions = np.stack([np.where(found, rows, (rows + 9) % count), rows], axis=1)
    positives = {"within 25 m": [np.array([row]) for row in rows]}
    conditions = np.full(count, "") if conditions is None else np.array(conditions)
    retrieved = Retrieved(places, places, predictions, positives, conditions)
    recalls = {1: 100 * float(np.mean(found)), 2: 100.0}
    return Evaluated(data, encoder, Evaluation(recalls, 512, 1.0, retrieved, rows), 50.0)


ONE = np.arange(NUM_QUERIES) % 3 > 0
OTHER = np.arange(NUM_QUERIES) % 5 > 0
BOTH = "Cambridge"


def write(folder, evaluations, **options):
    path = folder / "compare.html"
    conditions = compare_by_condition(evaluations)
    write_comparison_page(path, evaluations, compare_evaluated(evaluations), conditions=conditions, **options)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of two encoders on two data sets: 20 and 24 of 30 found in one city, 15 and 30 of 30 in the other."""
    cities = {BOTH: (ONE, OTHER, 300000.0), "London": (np.arange(30) < 15, np.ones(30, bool), 700000.0)}
    folder = tmp_path_factory.mktemp("written")
    evaluations = [
        evaluated(folder, found[number], encoder=encoder, data=data, east=found[2])
        for number, encoder in enumerate(("first net", "second net"))
        for data, found in cities.items()
    ]
    return write(folder, evaluations)


def test_recalls_by_condition_have_a_table_of_their_own(tmp_path):
    light = ["day"] * 12 + ["night"] * 18
    nets = [
        evaluated(tmp_path, found, encoder=f"{found.sum()} of 30", data=BOTH, conditions=light)
        for found in (ONE, OTHER)
    ]
    text = write(tmp_path, nets).read_text(encoding="utf-8")
    rows = text.split("<h3>By condition</h3>")[1].split("</table>")[0].split("<tr")[2:]
    assert [re.search("<th.*?<bdi>(.*?)</bdi> <small>(.*?)</small>", row).groups() for row in rows] == [
        *([("day", "12 queries")] * 2),
        *([("night", "18 queries")] * 2),
    ]
    first = [re.search(r'data-label="R@1">(?:<b>|<bdi>)([\d.]+)', row)[1] for row in rows]
    assert first == ["66.7", "75.0", "66.7", "83.3"]  # 8 and 9 of 12, 12 and 15 of 18
    assert text.count("compared with the best of a data set and condition") == 1


@pytest.mark.parametrize("is_safe", [False, True])
def test_the_rows_to_download_have_no_formula_on_request(tmp_path, is_safe):
    nets = [evaluated(tmp_path, found, encoder=f"={found.sum()}", data=BOTH) for found in (ONE, OTHER)]
    path = write(tmp_path, nets, spreadsheet_safe=is_safe)
    assert f'"spreadsheet_safe": {str(is_safe).lower()}' in path.read_text(encoding="utf-8")


def state(page):
    return {name: values[0] for name, values in parse_qs(page.evaluate("location.hash").lstrip("#")).items()}


def count_of(page):
    return page.locator("#count").inner_text()


def test_filters_show_the_queries_that_one_encoder_finds_and_another_misses(written, open_page, check_accessibility):
    page = open_page(written)
    # of rows 0 to 29, multiples of 3 but not of 5 are found by the second only: 3, 6, 9, 12, 18, 21, 24, 27
    assert count_of(page) == "1 to 20 of 27 queries"
    page.get_by_label("data set").select_option(label=BOTH)
    assert count_of(page) == "1 to 12 of 12 queries"
    page.get_by_label("found by").select_option(label="second net")
    page.get_by_label("missed by").select_option(label="first net")
    assert count_of(page) == "1 to 8 of 8 queries"
    assert state(page) == {"data set": BOTH, "found by": "second net", "missed by": "first net"}
    assert {*page.locator("#rows h3").all_inner_texts()} == {"first net: missed", "second net: found"}
    page.reload()
    assert count_of(page) == "1 to 8 of 8 queries"
    page.get_by_label("missed by").select_option(label="second net")
    assert count_of(page) == "0 queries"
    check_accessibility(page)


def test_the_table_and_the_charts_of_each_data_set(written, open_page):
    page = open_page(written)
    assert page.locator("h2").all_inner_texts() == [BOTH, "London", "Queries that encoders differ on"]
    table = page.locator("table").first
    assert table.locator("thead th").all_inner_texts() == [
        *("encoder", "R@1", "R@2", "difference to the best", "p", "dimensions", "ms per query")
    ]
    recalls = table.locator("tbody td:nth-child(2)").all_inner_texts()
    assert [text.split("\n")[0] for text in recalls] == ["66.7 ≈", "80.0"]
    assert table.locator("b").all_inner_texts() == ["100.0", "80.0", "100.0"]
    assert (
        page.locator(".chart figcaption").all_inner_texts()
        == [*("R@N", "R@1 against milliseconds", "R@1 against dimensions")] * 2
    )
    labels = page.locator(".chart").nth(1).locator("svg[role=img] .series text").all_text_contents()
    assert labels == ["first net", "second net"]
    page.locator("summary").first.click()
    cells = page.locator("details table").first.locator("tbody td").all_inner_texts()
    assert cells == ["", "4", "8", ""]


@pytest.mark.slow
def test_keys_go_through_the_queries_and_the_lightbox_through_predictions(written, open_page):
    page = open_page(written)
    page.keyboard.press("j")
    page.keyboard.press("j")
    key = page.locator("#rows > li").nth(1).get_attribute("data-key")
    assert state(page) == {"query": key}
    page.keyboard.press("Enter")
    assert page.locator("#lightbox").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("#lightbox figure").count() == 2
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    assert state(page) == {"query": page.locator("#rows > li").first.get_attribute("data-key")}
    opened = open_page(written, fragment=f"#query={key}")
    assert opened.locator("#rows > li.chosen").get_attribute("data-key") == key


def test_a_query_is_on_the_map_where_its_city_is(written, open_page):
    page = open_page(written, reduced_motion=True)
    scale = page.locator(".leaflet-control-scale-line")
    assert scale.inner_text().endswith(" km")  # both cities are in view
    page.get_by_label("data set").select_option(label="London")
    assert scale.inner_text() in ("100 m", "200 m", "300 m")
    assert "15 of " in page.locator(".map-key").inner_text()
    page.locator("#rows").get_by_role("button", name="on the map").first.click()
    assert "photo" in page.locator(".map-chosen").inner_text()


def test_the_rows_are_downloaded_as_a_table(written, open_page):
    page = open_page(written)
    page.get_by_label("data set").select_option(label="London")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    with download.value.path().open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 15 * 4
    assert {(row["found by"], row["missed by"]) for row in rows} == {("second net", "first net")}
    assert {row["strip"] for row in rows} == {"first net: missed", "second net: found"}


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_phone_shows_all_of_the_page(written, open_page, check_accessibility, dark):
    page = open_page(written, width=390, touch=True, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_label("found by").select_option(label="first net")
    page.locator("#rows .photo").first.tap()
    assert page.locator("#lightbox").is_visible()
    page.get_by_role("button", name="Close").tap()
    assert not page.locator("#lightbox").is_visible()
    check_accessibility(page)


def test_hostile_names_do_nothing(tmp_path, open_page, check_accessibility):
    evil = "<script>document.title='bad'<script><img src=x onerror=alert(1)>\"'&"
    long = "\u202e" + "very-long-name-" * 20
    names = ["<b>'\".jpg", "\u202egpj.exe.jpg", f"{'n' * 240}.jpg", "&amp;.jpg"]
    found = np.array([True, False, True, False])
    evaluations = [
        evaluated(
            tmp_path, hits, encoder=encoder, data=f"/home/me/{evil}", names=names, conditions=[evil, "night", "", ""]
        )
        for encoder, hits in ((f"/home/me/a/{evil}", found), (f"/home/me/b/{evil}", ~found), (long, found))
    ]
    path = write(tmp_path, evaluations)
    page = open_page(path, width=390)
    assert "/home/me" not in path.read_text(encoding="utf-8")
    assert page.title().startswith("3 encoders on …/me/<script>")
    assert page.locator("main script, main b img, main img[src=x]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#rows > li").count() == 4
    page.get_by_label("condition").select_option(label="night")
    assert page.locator("#rows > li").count() == 1
    check_accessibility(page)
    assert "/home/me/a" in write(tmp_path, evaluations, show_paths=True).read_text(encoding="utf-8")


def test_encoders_that_look_alike_without_their_paths_are_numbered(tmp_path, open_page):
    runs = ["/runs/a/stage2/best", "/runs/b/stage2/best"]
    pair = [evaluated(tmp_path, hits, encoder=run, data="x") for run, hits in zip(runs, (ONE, OTHER), strict=True)]
    page = open_page(write(tmp_path, pair))
    page.get_by_label("found by").select_option(label="…/stage2/best (2)")
    assert count_of(page) == "1 to 8 of 8 queries"


def test_rows_and_pictures_are_bounded_and_the_page_says_so(tmp_path, open_page):
    pair = [evaluated(tmp_path, hits, encoder=name, data="x") for name, hits in (("a", ONE), ("b", OTHER))]
    path = write(tmp_path, pair, max_rows=6, max_pictures=3)
    page = open_page(path)
    said = page.locator("h2:has-text('differ') + p").inner_text()
    assert said == (
        "12 queries are found by one encoder and missed by another. 6 of them are listed, taken in turn from each set "
        "of encoders that find them. The first 2 have pictures."
    )
    assert count_of(page) == "1 to 6 of 6 queries"
    # Each of the first two queries lies at the place of a photo, and its far prediction is another: two pictures each.
    data = json.loads(page.locator("#gallery-data").text_content())
    assert sum(picture is not None for _, picture in data["photos"]) == 4
    assert page.locator("#rows > li").nth(1).locator(".missing").count() == 0
    assert page.locator("#rows > li").nth(2).locator("img").count() == 0
    assert {*page.locator("#rows h3").all_inner_texts()} == {"a: found", "a: missed", "b: found", "b: missed"}


def test_descriptors_of_another_program_have_no_milliseconds(tmp_path, open_page):
    pair = [evaluated(tmp_path, hits, encoder=name, data="x") for name, hits in (("a", ONE), ("b", OTHER))]
    foreign = [replace(each, images_per_second=None) for each in pair]
    page = open_page(write(tmp_path, [pair[0], foreign[1]]))
    by_ms, by_dimensions = (page.locator(".chart").nth(number).locator(".series text") for number in (1, 2))
    assert (by_ms.all_text_contents(), by_dimensions.all_text_contents()) == (["a"], ["a", "b"])
    assert "so these have no point" in page.locator("main").inner_text()
    page = open_page(write(tmp_path, foreign))
    assert page.locator(".chart figcaption").all_inner_texts() == ["R@N", "R@1 against dimensions"]


def test_encoders_that_find_the_same_queries_have_no_rows(tmp_path, open_page, check_accessibility):
    page = open_page(write(tmp_path, [evaluated(tmp_path, ONE, encoder=name, data="x") for name in ("a", "b")]))
    assert "All encoders find the same queries." in page.locator("main").inner_text()
    assert page.locator("#map, #gallery").count() == 0
    check_accessibility(page)


@pytest.mark.slow
def test_the_command_writes_it_of_real_photos(tmp_path, open_page, check_accessibility):
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there: it holds the photos of Cambridge and San Francisco")
    sets = []
    for name in ("cambridge_sample", "sf_xl_sample"):
        for side, count in (("database", 40), ("queries", 8)):
            folder = tmp_path / name / side
            folder.mkdir(parents=True)
            for path in sorted((REAL / name / "val" / side).iterdir())[::5][:count]:
                shutil.copy(path, folder)
        sets.append(tmp_path / name)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for side, count in (("database", 40), ("queries", 8)):
        np.save(
            foreign / f"{side}_descriptors.npy", np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
        )
    words = ["compare", "thumbnail", foreign, "--folder", *sets, "--out", tmp_path / "out", "--num_workers", 0]
    main([*map(str, words), "--descriptor_cache", str(tmp_path / "cache")])
    page = open_page(tmp_path / "out/compare.html")
    assert page.locator("h1").inner_text() == "2 encoders on 2 data sets"
    assert page.locator("#rows .photo img").count() > 0
    assert page.locator("#rows .missing").count() == 0
    check_accessibility(page)
