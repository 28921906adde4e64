"""The report of an evaluation, driven in Chromium."""

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
from classifiers import classifier_of
from PIL import Image

from progeo.cli import main
from progeo.evaluation.classification import ClassScores
from progeo.evaluation.metrics import chance_recalls, recall_table
from progeo.evaluation.missed import Missed
from progeo.evaluation.protocols import load_protocol
from progeo.evaluation.report import Measured, write_report
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue
from progeo.verification.matchers import Pair

REAL = Path(__file__).parents[2].parent / "shared/data"
EAST, NORTH = 550_000, 4_180_000
NUM_QUERIES = 50


def catalogue(folder, names, east, *, heading=None):
    """Images in San Francisco with small pictures, those of long names without."""
    for name in names:
        if len(name) < 200 and not (folder / name).exists():
            Image.new("RGB", (40, 30), (200, 120, 40)).save(folder / name, "PNG")
    columns = {"east": EAST + np.asarray(east, float), "north": np.full(len(names), NORTH, float)}
    columns |= {
        "zone": np.full(len(names), 10, np.int8),
        "heading": np.zeros(len(names)) if heading is None else heading,
    }
    return Catalogue(folder, pa.table({"path": pa.array(names, pa.large_string()), **columns}))


def write(folder, found, *, title="net on city", facts=None, published=(), missed=None, ns=(1, 2), **options):
    measured = None
    if found.labeled:
        counts = np.array([len(rows) for rows in found.positives[found.criterion]])
        table = recall_table(found.predictions, found.positives, found.groups(), ns)
        measured = Measured(table, chance_recalls(counts, len(found.database), ns), published, missed)
    facts = {"encoder": "net", "folder": "city", **(facts or {})}
    write_report(folder / "report.html", found, title=title, facts=facts, measured=measured, **options)
    return folder / "report.html"


def places(folder):
    """Fifty queries, every third wrong at first, by night the first twenty; their correct images are 5 m away."""
    rows = np.arange(NUM_QUERIES)
    wrong = rows % 3 == 0
    predictions = np.stack([np.where(wrong, (rows + 7) % NUM_QUERIES, rows), (rows + 3) % NUM_QUERIES], axis=1)
    return Retrieved(
        catalogue(folder, [f"image {row:02}.png" for row in rows], 100 * rows + 5),
        catalogue(folder, [f"query {row:02}.png" for row in rows], 100 * rows, heading=rows * 2.0),
        predictions,
        {"within 25 m": [np.array([row]) for row in rows]},
        np.where(rows < 20, "night", "day"),
        np.tile([0.25, 0.5], (NUM_QUERIES, 1)),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    rows = np.arange(0, NUM_QUERIES, 3)
    missed = Missed(rows, rows, rows + 3, np.full(len(rows), 0.75))
    return write(folder, places(folder), published=load_protocol("pitts30k_test").published, missed=missed)


def opened_anew(page, fragment):
    """Leave a page and open it at a fragment of its address, without the renderer process of another page."""
    address = page.url.partition("#")[0]
    page.goto("about:blank")
    page.goto(address + fragment)
    return page


def state(page):
    return {name: values[0] for name, values in parse_qs(page.evaluate("location.hash").lstrip("#")).items()}


def keys_of(page):
    return page.locator("#rows > li").evaluate_all("rows => rows.map(row => Number(row.dataset.key))")


def count_of(page):
    return page.locator("#count").inner_text()


def test_recall_at_1_comes_first_and_failures_before_hits(written, open_page, check_accessibility):
    page = open_page(written)
    first, *others = page.locator(".figure").all()
    assert first.locator("dd").inner_text().startswith("66.0 %")
    assert "95 % interval" in first.inner_text()
    sizes = [
        each.locator("dd").evaluate("each => parseFloat(getComputedStyle(each).fontSize)") for each in (first, *others)
    ]
    assert sizes[0] > 1.5 * max(sizes[1:])
    assert "do not use them to find or follow people" in page.locator("footer").inner_text()
    assert count_of(page) == "1 to 20 of 50 queries"
    assert all(key % 3 == 0 for key in keys_of(page)[:17])
    row = page.locator("#rows > li").first
    assert row.locator("h3").all_inner_texts() == ["Predictions", "Nearest correct image, missed"]
    key = keys_of(page)[0]
    told = row.locator("section").nth(1).inner_text()
    assert "✓ correct" in told
    assert f"Rank {key + 3}" in told
    assert "5.0 m" in told
    assert "descriptor distance 0.750" in told
    assert not page.locator("details").last.evaluate("each => each.open")
    page.get_by_text("Published recalls of this protocol").click()
    assert page.get_by_role("row", name="MegaLoc").is_visible()
    check_accessibility(page)


def test_lines_join_the_matched_points_of_predictions(tmp_path, open_page, check_accessibility):
    lines = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.9, 0.9, 0.9, 0.9]], np.float32)
    pairs = {(0, 0): Pair(1500, lines), (0, 1): Pair(0, lines[:0]), (1, 0): Pair(20, lines[:1])}
    found = replace(places(tmp_path), pairs=pairs)
    of_all = replace(found, pairs={(query, 0): Pair(3, lines) for query in range(NUM_QUERIES)})
    data = re.search(r'id="gallery-data">(.*?)</script>', write(tmp_path, of_all, max_pictured=2).read_text())[1]
    assert sum(len(strips[0]) > 2 for _, _, _, _, strips, *_ in json.loads(data)["rows"]) == 2
    page = open_page(write(tmp_path, found), fragment="#query=0")
    told = page.locator("#rows > li[data-key='0'] .strips figcaption").all_inner_texts()
    assert "1,500 matched points" in told[0]
    assert "0 matched points" in told[1]
    page.locator("#rows > li[data-key='0'] .strips .photo").first.click()
    assert "lines between 3 matched points" in page.locator("#lightbox").inner_text()
    page.locator("#lightbox svg.lines line").first.wait_for(state="attached")  # drawn once the picture has loaded
    assert page.locator("#lightbox svg.lines line").count() == 2 * 3  # each with a halo
    check_accessibility(page)
    page.locator("#lightbox").get_by_role("checkbox").uncheck()
    assert not page.locator("#lightbox svg.lines line").first.is_visible()
    page.locator("#lightbox").get_by_role("button", name="Next").click()
    assert page.locator("#lightbox svg.lines").count() == 0


@pytest.mark.slow
def test_filters_pages_and_the_query_are_in_the_address(written, open_page):
    page = open_page(written)
    previous, following = (page.locator(".pager").first.get_by_role("button", name=name) for name in ("Prev", "Next"))
    assert (previous.is_disabled(), following.is_disabled()) == (True, False)
    following.click()
    assert (count_of(page), state(page)) == ("21 to 40 of 50 queries", {"page": "2"})
    assert page.locator("#rows").get_attribute("start") == "21"
    following.click()
    assert (previous.is_disabled(), following.is_disabled()) == (False, True)
    page.locator("select[name=verdict]").select_option(label="wrong")
    page.locator("select[name=condition]").select_option(label="night")
    assert count_of(page) == "1 to 7 of 7 queries"
    assert state(page) == {"verdict": "wrong", "condition": "night"}
    page.locator("select[name=heading]").select_option(label="30 to 60 degrees from a positive")
    assert sorted(keys_of(page)) == [15, 18]  # headings of 30 and 36 degrees
    again = opened_anew(page, "#verdict=correct&condition=night&order=by name")
    assert count_of(again) == "1 to 13 of 13 queries"
    assert keys_of(again)[:3] == [1, 2, 4]
    last = opened_anew(page, "#order=worst last")
    assert all(key % 3 > 0 for key in keys_of(last))
    assert keys_of(opened_anew(page, "#verdict=wrong"))[:3] == [45, 48, 0]  # 4,300 m, then 700 m
    assert keys_of(opened_anew(page, "#verdict=wrong&order=by name"))[:3] == [0, 3, 6]
    chosen = opened_anew(page, "#query=17")
    assert chosen.locator("#rows > li.chosen").get_attribute("data-key") == "17"
    assert chosen.locator("#rows > li.chosen").is_visible()
    assert "query 17.png" in chosen.locator(".map-chosen").inner_text()


@pytest.mark.slow
def test_keys_go_through_the_queries_and_photos_are_enlarged(written, open_page):
    page = open_page(written)
    page.keyboard.press("Control+j")
    assert state(page) == {}
    page.locator("input[name=contains]").press("j")
    page.locator("input[name=contains]").fill("")
    assert state(page) == {}
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    first, second = keys_of(page)[:2]
    assert state(page) == {"query": str(second)}
    page.keyboard.press("k")
    assert state(page) == {"query": str(first)}
    page.locator("#rows .strips .photo").first.click()
    assert page.locator("#lightbox figure").count() == 2
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert f"image {first:02}.png" in page.locator("#lightbox").inner_text()  # the correct one, after two predictions
    page.keyboard.press("ArrowLeft")
    assert f"image {(first + 3) % NUM_QUERIES:02}.png" in page.locator("#lightbox").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#lightbox").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#lightbox").is_visible()
    page.mouse.click(3, 3)  # beside the photos
    assert not page.locator("#lightbox").is_visible()


def test_folded_parts_are_open_in_print_only(written, open_page):
    page = open_page(written)
    count = page.locator("details").count()
    page.locator("summary").first.click()
    for event, num_open in (("beforeprint", count), ("afterprint", 1)):
        page.evaluate("name => window.dispatchEvent(new Event(name))", event)
        assert page.locator("details[open]").count() == num_open


@pytest.mark.slow
def test_a_button_of_the_enlarged_photos_can_be_pressed_again(written, open_page):
    page = open_page(written)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.locator("#lightbox").get_by_role("button", name="Next").focus()
    first = keys_of(page)[0]
    for number in (first + 7, first + 3, first):  # two predictions, then the correct image
        page.keyboard.press("Enter")
        assert f"image {number % NUM_QUERIES:02}.png" in page.locator("#lightbox .pair").inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Enlarge query query {first:02}.png"


def test_the_skip_link_changes_no_filter(written, open_page):
    page = open_page(written, fragment="#condition=night&page=2")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: not url.endswith("#main"))
    assert page.evaluate("document.activeElement.id") == "main"
    assert state(page) == {"condition": "night"}
    assert count_of(page) == "1 to 20 of 20 queries"


def test_back_and_forward_go_to_the_query_of_the_address(written, open_page):
    page = open_page(written, fragment="#query=3")
    chosen = page.locator("#rows > li.chosen")
    for go, key in ((lambda: page.goto(f"{written.as_uri()}#query=17"), 17), (page.go_back, 3), (page.go_forward, 17)):
        go()
        page.wait_for_selector(f"#rows > li.chosen[data-key='{key}']")
        assert chosen.count() == 1


@pytest.mark.slow
def test_keys_work_although_the_address_cannot_be_changed(written, open_page):
    refuse = "history.replaceState = () => { throw new DOMException('too many', 'SecurityError'); };"
    page = open_page(written, init_script=refuse)
    page.keyboard.press("j")
    first = keys_of(page)[0]
    assert f"query {first:02}.png" in page.locator(".map-chosen").inner_text()


def test_map_and_rows_choose_each_other(written, open_page):
    page = open_page(written, reduced_motion=True)
    key = keys_of(page)[3]
    page.locator("#rows > li").nth(3).get_by_role("button", name="on the map").click()
    assert page.evaluate("document.activeElement.id") == "map"
    assert f"query {key:02}.png" in page.locator(".map-chosen").inner_text()
    page.locator("select[name=condition]").select_option(label="night")
    texts = page.locator(".map-shapes").inner_text()
    assert "13 of 33" in texts
    assert "7 of 17" in texts
    page.locator("#map").click()
    assert page.locator(".leaflet-control-scale").is_visible()


def test_the_rows_are_downloaded_as_csv_with_their_numbers(written, open_page):
    page = open_page(written, fragment="#verdict=wrong&condition=night")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "queries.csv"
    with download.value.path().open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7 * 3
    missed = {int(row["number"]): row for row in rows if row["strip"].startswith("Nearest")}
    assert sorted(missed) == [0, 3, 6, 9, 12, 15, 18]
    told = {name: missed[9][name] for name in ("query", "condition", "verdict", "name", "correct", "rank")}
    assert told == {
        "query": "query 09.png",
        "condition": "night",
        "verdict": "wrong",
        "name": "image 09.png",
        "correct": "1",
        "rank": "12",
    }
    assert (float(missed[9]["distance_m"]), float(missed[9]["descriptor_distance"])) == (5, 0.75)


@pytest.mark.parametrize("is_safe", [False, True])
def test_the_downloaded_rows_have_no_formula_on_request(tmp_path, open_page, is_safe):
    names = ["=1+1.png", "@a;-b.png", "a.png"]
    images = catalogue(tmp_path, names, [0, 100, 200])
    found = Retrieved(images, images, np.array([[0], [1], [2]]), {}, np.array([""] * 3), np.array([[-0.5], [0], [1]]))
    page = open_page(write(tmp_path, found, spreadsheet_safe=is_safe))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    with download.value.path().open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["query"] for row in rows] == (["'=1+1.png", "'@a;'-b.png", "a.png"] if is_safe else names)
    assert [row["name"] for row in rows] == [row["query"] for row in rows]
    assert rows[0]["descriptor_distance"] == "-0.5"


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_phone_shows_all_of_the_page(written, open_page, check_accessibility, dark):
    page = open_page(written, width=390, touch=True, dark=dark)
    assert page.locator(".figure dd").first.is_visible()
    for summary in page.locator("summary").all():
        summary.tap()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#rows .photo").first.tap()
    assert page.locator("#lightbox").is_visible()
    page.get_by_role("button", name="Close").tap()
    check_accessibility(page)


@pytest.mark.parametrize("by_classes", [pytest.param(False, marks=pytest.mark.slow), True])
def test_hostile_texts_do_nothing(tmp_path, open_page, check_accessibility, by_classes):
    evil = "<script>document.title='bad'<script><img src=x onerror=alert(1)>\"'&"
    names = ["<b>'\".png", "\u202egnp.exe.png", f"{'n' * 300}.png", "&amp; =1+1.png"]
    predictions = np.array([[0, 1], [0, 1], [0, 2], [3, 0]])
    found = Retrieved(
        catalogue(tmp_path, [f"{row} {name}" for row, name in enumerate(names)], [0, 100, 200, 300]),
        catalogue(tmp_path, names, [0, 100, 200, 300]),
        predictions,
        {evil: [np.array([row]) for row in range(4)]},
        np.array([evil, "c" * 300, "\u202etfel", evil]),
    )
    missed = Missed(np.array([2]), np.array([2]), np.array([3]), np.array([0.5]))
    if by_classes:
        classifier = classifier_of([(EAST + 100 * row, NORTH, 0) for row in range(4)])
        scores = ClassScores(classifier, predictions, np.full((4, 2), 0.5), evil)
        found = Retrieved(
            classifier.catalogue, found.queries, predictions, found.positives, found.conditions, classes=scores
        )
    title = f"{evil} on {'t' * 300}"
    path = write(tmp_path, found, title=title, facts={evil: evil, "folder": f"/home/me/{evil}"}, missed=missed)
    page = open_page(path, width=390)
    assert "/home/me" not in path.read_text(encoding="utf-8")
    assert page.title() == title
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("main script, main b img, main img[src=x], header script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert "\u202e" not in page.locator("body").inner_text()
    page.locator("select[name=condition]").select_option(label=evil)
    assert sorted(keys_of(page)) == [0, 3]
    check_accessibility(page)


def test_cells_of_a_chosen_query_are_drawn_and_classes_have_no_picture(tmp_path, open_page, check_accessibility):
    classifier = classifier_of([(EAST + 100 * row, NORTH, 0) for row in range(4)])
    rows = np.array([[0, 1], [2, 3]])
    scores = ClassScores(classifier, rows, np.array([[0.7, 0.2], [0.6, 0.1]], np.float32), "softmax of 30 x cosine")
    found = Retrieved(
        classifier.catalogue,
        catalogue(tmp_path, ["a.png", "b.png"], [10, 110]),
        rows,
        {"within 25 m": [np.array([0]), np.array([1])]},
        np.array(["", ""]),
        classes=scores,
    )
    page = open_page(write(tmp_path, found), fragment="#query=1", reduced_motion=True)
    row = page.locator("#rows > li.chosen")
    assert "60.0 %" in row.inner_text()
    assert row.locator("img").count() == 1
    assert row.locator(".missing").count() == 0
    assert page.locator("h1 ~ dl").inner_text().startswith("LR@1")
    check_accessibility(page)


def test_queries_without_ground_truth_have_a_page(tmp_path, open_page, check_accessibility):
    names = [f"{row}.png" for row in range(3)]
    images = catalogue(tmp_path, names, [np.nan] * 3)
    rows, distances = np.array([[0], [1], [2]]), np.array([[0.5], [0.25], [0.75]])
    path = write(tmp_path, Retrieved(images, images, rows, {}, np.array([""] * 3), distances))
    page = open_page(path)
    assert keys_of(page) == [1, 0, 2]
    assert page.locator(".mark").count() == 0
    assert page.locator("#map").count() == 0
    check_accessibility(page)


@pytest.mark.slow
@pytest.mark.parametrize("sample", ["cambridge_sample", "sf_xl_sample"])
def test_real_photos_have_a_report(tmp_path, open_page, check_accessibility, sample):
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there: it holds the photos of Cambridge and San Francisco")
    for side, count in (("database", 60), ("queries", 12)):
        folder = tmp_path / sample / side
        folder.mkdir(parents=True)
        for path in sorted((REAL / sample / "val" / side).iterdir())[::5][:count]:
            shutil.copy(path, folder)
    words = ["evaluate", "thumbnail", "--folder", tmp_path / sample, "--out", tmp_path / "out", "--num_workers", 0]
    main([*map(str, words), "--descriptor_cache", str(tmp_path / "cache")])
    page = open_page(tmp_path / "out/report.html", width=390, dark=True)
    assert page.locator("h1").inner_text() == f"thumbnail on …/{tmp_path.name}/{sample}"
    assert page.locator("#rows > li").count() == 12
    assert page.locator("#rows .missing").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.get_by_role("button", name="Show streets").is_visible()  # latitudes and longitudes are known
    check_accessibility(page)
