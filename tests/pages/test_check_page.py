"""The page of `progeo dataset check`, driven in Chromium."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from progeo.cli import main
from progeo.places.filename import format_names, parse_names

CAMBRIDGE = Path(__file__).parents[3] / "shared/data/cambridge_sample/train"
HOSTILE = [
    "@500000@4000000@<script>alert(1)<b>@.jpg",
    "@500009@4000000@\"' onload='x@.jpg",
    "@500018@4000000@\u202egpj.exe@.jpg",
    f"{'x' * 150}/@500027@4000000@{'y' * 150}@.jpg",
]
HOSTILE_FOLDER = "<img src=x onerror=alert(1)>"


def spoil(folder):
    """Break and shrink an image, copy one to four others, and move two; returns the number of findings."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    broken, tiny, first, *copies, moved, far = names[:: len(names) // 9][:9]
    (folder / broken).write_bytes((folder / first).read_bytes()[:300])
    Image.new("RGB", (30, 20), (200, 30, 30)).save(folder / tiny)
    for copy in copies:
        shutil.copy(folder / first, folder / copy)
    for name, (east, north) in {moved: (400, 0), far: (200_000, 1_000_000)}.items():
        fields = parse_names([name])
        fields.east[:] += east
        fields.north[:] += north
        (folder / name).rename(folder / format_names(fields)[0])
    return 5


@pytest.fixture(scope="module")
def checked(city, tmp_path_factory):
    """The page of a training set in which something of each kind is wrong."""
    folder = tmp_path_factory.mktemp("checked")
    shutil.copytree(city / "train", folder / "train")
    spoil(folder / "train")
    cells = ["--cells.min_images_per_class", "2", "--cells.groups_per_side", "2"]
    main(["dataset", "check", str(folder / "train"), "--out", str(folder / "out"), "--min_side_px", "40", *cells])
    return folder / "out/check.html"


@pytest.fixture(scope="module")
def alone(city, tmp_path_factory):
    """The page of a database and queries, one of which has no positive."""
    folder = tmp_path_factory.mktemp("alone")
    for side in ("database", "queries"):
        shutil.copytree(city / "val" / side, folder / "val" / side)
    query = sorted((folder / "val/queries").iterdir())[0]
    fields = parse_names([query.name])
    fields.north[:] += 300
    fields.latitude[:] = fields.longitude[:] = np.nan
    query.rename(query.with_name(format_names(fields)[0]))
    main(["dataset", "check", str(folder / "val"), "--out", str(folder / "out")])
    return folder / "out/check.html"


def problems(page):
    return [
        text.split(" · ")[0] for text in page.locator("#rows .query figcaption > span:first-child").all_inner_texts()
    ]


def test_each_problem_is_shown_with_its_picture_and_filters_choose_some(checked, open_page, check_accessibility):
    page = open_page(checked)
    assert problems(page) == ["unreadable", "tiny", "duplicates", "misplaced", "misplaced"]
    assert page.locator(".figure").first.inner_text().split() == ["findings", "5"]
    rows = page.locator("#rows > li")
    assert rows.nth(0).locator(".missing").inner_text() == "cannot be opened"
    assert rows.nth(1).locator("img").count() == 1
    assert "20 x 30 pixels" in rows.nth(1).inner_text()
    assert rows.nth(2).locator(".strips img").count() == 4
    assert "from its UTM position" in rows.nth(3).inner_text()
    page.get_by_label("problem").select_option("duplicates")
    assert problems(page) == ["duplicates"]
    assert "problem=duplicates" in page.url
    page.reload()
    assert problems(page) == ["duplicates"]
    check_accessibility(page)


def test_a_misplaced_image_is_found_on_the_map_by_its_button(checked, open_page):
    page = open_page(checked)
    page.locator("#rows > li").nth(3).get_by_role("button", name="on the map").click()
    said = page.locator(".map-chosen").inner_text()
    assert "misplaced" in said and "OpenStreetMap" in said
    assert "finding=3" in page.url


def test_keys_go_through_findings_and_enter_enlarges_one(checked, open_page):
    page = open_page(checked)
    for _ in range(3):
        page.keyboard.press("j")
    assert page.locator("#rows > .chosen").get_attribute("data-key") == "2"
    page.keyboard.press("Enter")
    assert page.locator("#lightbox").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("#lightbox img").count() == 2
    page.keyboard.press("Escape")
    assert page.locator("#lightbox").is_hidden()
    page.keyboard.press("k")
    assert page.locator("#rows > .chosen").get_attribute("data-key") == "1"


def test_classes_are_in_the_key_of_the_map_and_other_cells_in_bars(checked, open_page):
    page = open_page(checked)
    assert re.search(r"classes of group 1, \d+ images:", page.locator(".map-shapes").inner_text())
    titles = page.locator(".chart figcaption").all_inner_texts()
    assert titles == ["Images of a class", "Classes with other cells", "Images of those classes"]


@pytest.mark.parametrize("dark", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(dark, checked, open_page, check_accessibility):
    page = open_page(checked, width=390, dark=dark, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#rows > li").nth(2).locator(".photo").first.tap()
    assert page.locator("#lightbox").is_visible()
    page.get_by_role("button", name="Close").tap()
    check_accessibility(page)


def test_several_sizes_of_photos_fit_on_a_phone(tmp_path, open_page):
    (tmp_path / "photos").mkdir()
    for width, height in ((1024, 768), (768, 1024), (1200, 1600), (640, 640)):
        Image.new("RGB", (width, height)).save(tmp_path / f"photos/@{width}@{height}@31@U@.jpg")
    main(["dataset", "check", str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    page = open_page(tmp_path / "out/check.html", width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert re.search(r"pixels: \d+ x \d+ \(1\), .* and 1 more", page.locator(".figures").inner_text())


def test_a_query_without_a_positive_is_beside_the_nearest_image_with_its_meters(alone, open_page):
    page = open_page(alone)
    (row,) = page.locator("#rows > li").all()
    assert "Nearest database image" in row.inner_text()
    assert re.search(r"\d\d\d\.\d m", row.inner_text())
    assert row.locator("img").count() == 2


def test_hostile_names_and_reasons_do_nothing(tmp_path, open_page):
    for number, name in enumerate(HOSTILE):
        path = tmp_path / HOSTILE_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" * (number + 1))
    main(["dataset", "check", str(tmp_path / HOSTILE_FOLDER), "--out", str(tmp_path / "out")])
    page = open_page(tmp_path / "out/check.html", width=390)
    assert problems(page) == [""] * 4
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    titles = [each.get_attribute("title") for each in page.locator("#rows .name").all()]
    assert sorted(titles) == sorted(name.replace("\u202e", "\\u202e") for name in HOSTILE)
    assert HOSTILE_FOLDER in page.locator("h1").inner_text()
    assert page.locator("b, [onload], [onerror], img").count() == 0


@pytest.mark.skipif(not CAMBRIDGE.is_dir(), reason=f"there are no images in {CAMBRIDGE}")
def test_real_images_are_checked(tmp_path, open_page):
    (tmp_path / "images").mkdir()
    for path in sorted(CAMBRIDGE.iterdir())[:90]:
        shutil.copy(path, tmp_path / "images")
    count = spoil(tmp_path / "images")
    main(["dataset", "check", str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    page = open_page(tmp_path / "out/check.html")
    assert page.locator("#rows > li").count() == count
    assert page.locator("#rows img").count() == 8  # all but that of the broken file
