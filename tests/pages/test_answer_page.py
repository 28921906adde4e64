"""The page of `progeo localize`, driven in Chromium."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from progeo.localization.answer_page import write_answer_page
from progeo.localization.localizations import Localization, Match
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import degrees_of

CAMBRIDGE = Path(__file__).parents[3] / "shared/data/cambridge_sample/val"
HOSTILE = "\u202e<script>alert(1)</script>\"'" + "y" * 300


def with_degrees(images):
    """Convert the images of a folder to those of an index."""
    paths = pa.array([str(images.path(row)) for row in range(len(images))], pa.large_string())
    latitude, longitude = degrees_of(images)
    columns = {name: images.table[name] for name in ("east", "north", "zone", "heading")}
    return Catalogue(images.folder, pa.table({"path": paths, **columns, "latitude": latitude, "longitude": longitude}))


def match_of(index, row, **values):
    latitude, longitude = degrees_of(index)[:, row].tolist()
    place = {"latitude": latitude, "longitude": longitude, "east_m": index.east[row], "north_m": index.north[row]}
    return Match(index.name(row), **place, distance=0.1 * row, row=row, **values)


def write(path, database, queries, *, count=3):
    """Write the page of as many photos, with 4 matches each, the last of which is unknown, and of a broken one."""
    index, photos = (with_degrees(read_catalogue(folder)) for folder in (database, queries))
    results = [
        Localization(
            photos.name(row), 0.95 - 0.3 * row, 25.0, row < 2, tuple(match_of(index, row + k) for k in range(4))
        )
        for row in range(count)
    ]
    results.append(Localization("broken.jpg", error="The image broken.jpg cannot be decoded."))
    write_answer_page(path, results, catalogue=index)
    return path


@pytest.fixture(scope="module")
def answered(city, tmp_path_factory):
    return write(tmp_path_factory.mktemp("answered") / "answer.html", city / "test/database", city / "test/queries")


def test_each_photo_has_its_position_confidence_link_and_matches(answered, open_page, check_accessibility):
    page = open_page(answered)
    assert page.locator(".figures").inner_text().split() == [*"known 2 of 4 unknown 1 of 4 error 1 of 4".split()]
    assert "do not use them to find or follow people" in page.locator("footer").inner_text()
    rows = page.locator("#rows > li")
    assert "Very likely within 25 m (95 %)" in rows.nth(0).inner_text()
    assert "Unknown: the best match is within 25 m with a probability of 35 %" in rows.nth(2).inner_text()
    assert "cannot be decoded" in rows.nth(3).inner_text()
    assert rows.nth(0).locator("img").count() == 5
    link = rows.nth(0).get_by_role("link", name="OpenStreetMap").get_attribute("href")
    assert link.startswith("https://www.openstreetmap.org/?mlat=37.7")
    page.get_by_label("answer").select_option("unknown")
    assert rows.count() == 1
    check_accessibility(page)
    page.get_by_text("Positions as a table").click()
    assert page.locator("tbody tr").count() == 4
    check_accessibility(page)


def test_the_matched_points_of_a_verified_photo_are_joined_by_lines(city, tmp_path, open_page, check_accessibility):
    index = with_degrees(read_catalogue(city / "test/database"))
    photo = str(next((city / "test/queries").iterdir()))
    lines = tuple((x / 10, 0.25, x / 10, 0.75) for x in range(1, 8))
    matches = (match_of(index, 0, inliers=1234, lines=lines), match_of(index, 1, inliers=0), match_of(index, 2))
    result = Localization(photo, 0.9, 25.0, True, matches, verified=True)
    write_answer_page(tmp_path / "answer.html", [result], catalogue=index)
    page = open_page(tmp_path / "answer.html")
    told = page.locator("#rows .strips figcaption").all_inner_texts()
    assert ["matched points" in each for each in told] == [True, True, False]
    assert "1,234 matched points" in told[0]
    page.locator("#rows .strips .photo").first.click()
    assert "lines between 7 matched points" in page.locator("#lightbox").inner_text()
    first, second = (page.locator("#lightbox img").nth(number).bounding_box() for number in range(2))
    drawn = page.locator("#lightbox svg.lines line").all()[:7]
    for x, line in zip(range(1, 8), drawn, strict=True):
        left, top, right, bottom = line.evaluate(
            """line => {
                const {x, y} = line.ownerSVGElement.getBoundingClientRect();
                return [x + line.x1.baseVal.value, y + line.y1.baseVal.value,
                        x + line.x2.baseVal.value, y + line.y2.baseVal.value];
            }"""
        )
        assert [left, top] == pytest.approx(
            [first["x"] + x / 10 * first["width"], first["y"] + first["height"] / 4], abs=2
        )
        assert [right, bottom] == pytest.approx(
            [second["x"] + x / 10 * second["width"], second["y"] + 3 / 4 * second["height"]], abs=2
        )
    check_accessibility(page)
    page.locator("#lightbox").get_by_role("button", name="Next").click()
    assert page.locator("#lightbox svg").count() == 0


@pytest.mark.parametrize(("orientation", "sides"), [("ignore", [80, 40]), ("exif", [40, 80])])
def test_rotated_photos_are_shown_by_the_orientation_of_the_index(orientation, sides, city, tmp_path, open_page):
    image = Image.new("RGB", (80, 40), "gray")
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=image.getexif())
    index = with_degrees(read_catalogue(city / "test/database"))
    result = Localization(str(tmp_path / "rotated.jpg"), 0.9, 25.0, True, (match_of(index, 0),))
    write_answer_page(tmp_path / "answer.html", [result], catalogue=index, orientation=orientation)
    shown = open_page(tmp_path / "answer.html").locator("#rows img").first
    shown.evaluate("image => image.decode()")
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == sides


def test_a_chosen_photo_shows_its_matches_on_the_map(answered, open_page):
    page = open_page(answered)
    assert page.locator(".map-shapes").inner_text().split("\n")[0].startswith("estimated position")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert "photo=1" in page.url
    assert "estimated position" in page.locator(".map-chosen").inner_text()
    page.locator("#rows > li").nth(0).get_by_role("button", name="on the map").click()
    assert "photo=0" in page.url


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(dark, answered, open_page, check_accessibility):
    page = open_page(answered, width=390, dark=dark, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#rows > li .strips .photo").first.tap()
    assert page.locator("#lightbox img").count() == 2
    page.get_by_role("button", name="Close").tap()
    page.get_by_text("Positions as a table").tap()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    check_accessibility(page)


def test_cells_of_a_sentence_or_photo_are_shown_without_a_click_and_without_pictures(tmp_path, city, open_page):
    images = with_degrees(read_catalogue(city / "test/database"))
    paths = pa.array([f"cell {row}" for row in range(len(images))], pa.large_string())
    index = Catalogue(Path(), images.table.set_column(0, "path", paths))

    def corners(row):
        latitude, longitude = degrees_of(index)[:, row]
        return tuple((longitude + east * 1e-4, latitude + north * 1e-4) for east, north in np.ndindex(2, 2))

    matches = tuple(match_of(index, row, probability=0.5 / (row + 1), corners=corners(row)) for row in range(3))
    write_answer_page(tmp_path / "a.html", [Localization("a.jpg", matches=matches)], catalogue=index, cell_side_m=20)
    page = open_page(tmp_path / "a.html")
    assert "cells by probability" in page.locator(".map-shapes").inner_text()
    assert "50.0 %" in page.locator("#rows").inner_text()
    assert "No confidence: the index is not calibrated." in page.locator("main").inner_text()
    assert page.locator("#controls:visible, .pager:visible").count() == 0  # a single row has nothing to filter


def test_hostile_names_and_errors_do_nothing(tmp_path, city, open_page):
    index = with_degrees(read_catalogue(city / "test/database"))
    hostile = Catalogue(Path(), index.table.set_column(0, "path", pa.array([HOSTILE] * len(index), pa.large_string())))
    results = [
        Localization(HOSTILE, 0.8, 25.0, True, (match_of(hostile, 0),)),
        Localization("b", error=HOSTILE),
    ]
    for name, by_text in (("photos", False), ("texts", True)):
        write_answer_page(tmp_path / f"{name}.html", results[: 2 - by_text], catalogue=hostile, by_text=by_text)
        page = open_page(tmp_path / f"{name}.html", width=390)
        assert page.locator("#rows .name").first.get_attribute("title") == HOSTILE.replace("\u202e", "\\u202e")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("script:not([type])").count() == 1


@pytest.mark.skipif(not CAMBRIDGE.is_dir(), reason=f"there are no images in {CAMBRIDGE}")
def test_real_photos_are_shown(tmp_path, open_page):
    page = open_page(write(tmp_path / "a.html", CAMBRIDGE / "database", CAMBRIDGE / "queries"))
    assert page.locator("#rows img").count() == 15
    assert page.locator("#map canvas").count() == 1
