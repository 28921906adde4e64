"""The map, driven in Chromium. Shapes are found on its canvas by their color."""

import base64
import re

import numpy as np
import pytest

from progeo.pages.gallery import Gallery, Photos, Row
from progeo.pages.maps import TILE_HOST, Detail, Map, Points, Polygons
from progeo.pages.page import write_page

TEMPLATE = """
{% extends "base.html" %}
{% from "parts.html" import gallery_section, map_section %}
{% block main %}{{ map_section("Map of the queries") }}{{ gallery_section(gallery) }}{% endblock %}
"""
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CORRECT, WRONG = [52.2000, 0.1000], [52.2040, 0.1060]
FOUND = """name => {
    const canvas = document.querySelector("#map canvas"), box = canvas.getBoundingClientRect();
    const color = getComputedStyle(document.body).getPropertyValue(name).trim();
    const wanted = [1, 3, 5].map(start => parseInt(color.slice(start, start + 2), 16));
    const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const scale = box.width / canvas.width;
    let x = 0, y = 0, count = 0;
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] < 255 || wanted.some((value, channel) => data[at + channel] !== value)) continue;
        x += (at / 4) % canvas.width;
        y += Math.floor(at / 4 / canvas.width);
        count++;
    }
    const top = document.querySelector("#map").getBoundingClientRect().y;
    x = box.x + scale * (x / count + 0.5);
    y = box.y + scale * (y / count + 0.5);
    return { count, x, y, below: y - top };
}"""
COUNT_SHAPES = """
window.numFilled = 0;
const { fill, scale } = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.fill = function (...values) {
    if (values[0] instanceof Path2D) window.numFilled++;
    return fill.apply(this, values);
};
CanvasRenderingContext2D.prototype.scale = function (...values) {
    window.radius = values[0];
    return scale.apply(this, values);
};
"""


@pytest.fixture
def write_map(use_template, tmp_path):
    """Write a page of two queries, a correct one and a wrong one, or of other ones, and a row for each."""
    use_template("map.html", TEMPLATE)

    def write(**changes):
        points = [
            Points("correct", "correct", np.array([CORRECT]), keys=[0], labels=["first.jpg"]),
            Points("wrong", "wrong", np.array([WRONG]), [1], ["second.jpg"], targets=np.array([[52.2010, 0.1050]])),
        ]
        database = np.array([[52.2001, 0.1001], [52.2010, 0.1050], [52.2030, 0.1020]])
        detail = Detail([Points("match", "match", np.array([[52.2010, 0.1050]]))])
        values = {"unit": "degrees", "database": database, "points": points, "details": {1: detail}, **changes}
        photos = Photos()
        names = {0: "first.jpg", 1: "second.jpg"} | {key: f"{key:02d}.jpg" for key in range(2, 40)}
        rows = [
            Row(key, photos.add(name, None), facets={"verdict": "correct" if key == 0 else "wrong"})
            for key, name in names.items()
        ]
        gallery = Gallery(photos, rows, filters={"verdict": ["correct", "wrong"]})
        path = tmp_path / "page.html"
        write_page(path, "map.html", title="queries", map=Map(**values), gallery=gallery)
        return path

    return write


def wait_two_frames(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def found(page, color):
    """Return number of pixels and middle of all that is drawn in a color of the page; `below` the top of the map."""
    wait_two_frames(page)
    return page.evaluate(FOUND, color)


def click(page, color):
    place = found(page, color)
    page.mouse.click(place["x"], place["y"])


def scale(page):
    return page.locator(".leaflet-control-scale-line").text_content()


def scroll(page):
    return page.evaluate("scrollY")


def wait_for_another_scale(page, before):
    page.wait_for_function(
        "before => document.querySelector('.leaflet-control-scale-line').textContent !== before", arg=before
    )


def chosen(page):
    return page.locator(".map-chosen").text_content()


@pytest.mark.parametrize(("width", "is_dark"), [pytest.param(1280, False, marks=pytest.mark.slow), (390, True)])
def test_a_map_shows_all_shapes_and_counts_them_in_its_key(write_map, open_page, check_accessibility, width, is_dark):
    page = open_page(write_map(), width=width, dark=is_dark)
    assert page.locator(".map-shapes li").all_text_contents() == ["correct1", "wrong1", "database3"]
    correct, wrong = found(page, "--correct"), found(page, "--wrong")
    assert 40 < correct["count"] < 64  # a circle of radius 4.5 covers 64 pixels, those of its edge in part
    assert wrong["count"] > 20
    assert correct["x"] < wrong["x"] - 50  # west, and south
    assert correct["y"] > wrong["y"] + 50
    assert page.evaluate("document.documentElement.scrollWidth") == width
    check_accessibility(page)


def test_a_click_on_a_point_chooses_its_row_and_leaves_the_map_where_it_is(write_map, open_page):
    page = open_page(write_map())
    before = found(page, "--correct")
    click(page, "--correct")
    page.wait_for_url(re.compile("query=0"))
    assert chosen(page) == "first.jpg (correct): 52.200000, 0.100000 OpenStreetMap"
    assert page.locator(".map-chosen a").get_attribute("href") == (
        "https://www.openstreetmap.org/?mlat=52.200000&mlon=0.100000#map=18/52.200000/0.100000"
    )
    page.evaluate("scrollTo(0, 0)")
    after = found(page, "--correct")
    assert (after["x"], after["y"]) == pytest.approx((before["x"], before["y"]), abs=1)


@pytest.mark.slow
def test_further_clicks_take_the_next_point_at_the_same_position(write_map, open_page):
    places = np.array([CORRECT, CORRECT])
    page = open_page(
        write_map(points=[Points("views", "correct", places, keys=[0, 1], labels=["first.jpg", "second.jpg"])])
    )
    names = []
    for _ in range(3):
        page.evaluate("scrollTo(0, 0)")
        click(page, "--correct")
        names.append(chosen(page))
    assert all("one of 2 here" in name for name in names)
    assert [name.split(" ")[0] for name in names] == ["first.jpg", "second.jpg", "first.jpg"]


def test_a_correct_and_a_wrong_point_at_one_position_are_both_seen(write_map, open_page):
    kinds = ("correct", "wrong")
    page = open_page(write_map(points=[Points(kind, kind, np.array([CORRECT])) for kind in kinds]))
    counts = [found(page, f"--{kind}")["count"] for kind in kinds]
    assert counts[0] > 40
    assert counts[1] > 20


def test_a_chosen_row_is_ringed_with_an_arrow_to_its_target_and_its_details(write_map, open_page):
    page = open_page(write_map())
    page.get_by_label("lines").uncheck()
    assert found(page, "--text")["count"] == found(page, "--s2")["count"] == 0
    page.locator("#rows > li").nth(1).get_by_role("button", name="map").click()
    page.wait_for_function("() => document.querySelector('.map-chosen').textContent.startsWith('second.jpg (wrong)')")
    page.wait_for_timeout(400)  # the flight to it
    assert found(page, "--text")["count"] > 200
    assert found(page, "--s2")["count"] > 0
    page.locator("#rows > li").nth(0).get_by_role("button", name="map").click()
    page.wait_for_timeout(400)
    assert found(page, "--s2")["count"] == 0


@pytest.mark.slow
def test_the_wheel_scrolls_the_page_unless_ctrl_is_held_or_the_map_was_clicked(write_map, open_page):
    page = open_page(write_map())
    opened, box = scale(page), page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => scrollY === 100")
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => scrollY === 0")
    assert scale(page) == opened
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    wait_for_another_scale(page, opened)
    page.mouse.click(box["x"] + 300, box["y"] + 200)
    closer = scale(page)
    page.mouse.wheel(0, 300)
    wait_for_another_scale(page, closer)
    assert scroll(page) == 0
    page.mouse.move(box["x"] + 300, box["y"] - 20)
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => scrollY === 100")


@pytest.mark.slow
def test_keys_move_and_zoom_the_map(write_map, open_page):
    page = open_page(write_map(), reduced_motion=True)
    page.locator("#map").focus()
    before, opened = found(page, "--correct"), scale(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    assert found(page, "--correct")["x"] == pytest.approx(before["x"] - 80, abs=1)
    page.keyboard.press("+")
    page.keyboard.press("+")
    wait_for_another_scale(page, opened)
    page.get_by_role("button", name="Show all").click()
    after = found(page, "--correct")
    assert (after["x"], after["y"]) == pytest.approx((before["x"], before["y"]), abs=1)


@pytest.mark.slow
def test_two_fingers_zoom_and_one_scrolls_the_page(write_map, open_page, touch, pinch, check_accessibility):
    page = open_page(write_map(), width=390, touch=True, reduced_motion=True)
    check_accessibility(page)
    opened = scale(page)
    pinch(page, "#map", factor=3)
    wait_for_another_scale(page, opened)
    page.get_by_role("button", name="Show all").click()
    before = found(page, "--correct")
    touch(page, "#map", down_px=-200)
    page.wait_for_function("() => scrollY > 100")
    assert scale(page) == opened
    assert found(page, "--correct")["below"] == pytest.approx(before["below"], abs=1)


def test_a_filter_of_the_rows_hides_points_and_their_lines(write_map, open_page):
    page = open_page(write_map(), reduced_motion=True)
    page.get_by_label("verdict").select_option("correct")
    assert page.locator(".map-shapes li").all_text_contents() == ["correct1", "wrong0 of 1", "database3"]
    page.get_by_role("button", name="Show all").click()
    assert found(page, "--wrong")["count"] == found(page, "--text")["count"] == 0
    assert found(page, "--correct")["count"] > 0
    page.get_by_label("verdict").select_option("all")
    assert found(page, "--wrong")["count"] > 0


def test_lines_are_drawn_at_first_only_if_they_are_few(write_map, open_page):
    page = open_page(write_map())
    assert page.get_by_label("lines").is_checked()
    assert found(page, "--text")["count"] > 10
    places = np.linspace(CORRECT, WRONG, 201)
    page = open_page(write_map(points=[Points("queries", "query", places, targets=places + 0.001)]))
    assert not page.get_by_label("lines").is_checked()
    assert found(page, "--text")["count"] == 0
    page.get_by_label("lines").check()
    assert found(page, "--text")["count"] > 100


def test_streets_come_from_a_host_only_after_a_click(write_map, open_page):
    page = open_page(write_map(), ignored=[TILE_HOST])
    asked = []
    page.route(f"{TILE_HOST}/**", lambda route: (asked.append(route.request.url), route.fulfill(body=PNG)))
    assert page.locator("#map a[href*=copyright]").count() == 0
    page.get_by_role("button", name="Show streets from tile.openstreetmap.de").click()
    page.locator(".leaflet-tile-loaded").first.wait_for()
    assert all(re.fullmatch(TILE_HOST + r"/\d+/\d+/\d+\.png", url) for url in asked)
    assert "OpenStreetMap contributors" in page.locator(".leaflet-control-attribution").text_content()
    page.get_by_role("button", name="Hide streets").click()
    assert page.locator(".leaflet-tile, .leaflet-control-attribution").count() == 0


@pytest.mark.slow
def test_a_host_that_refuses_streets_is_said_and_the_map_stays(write_map, open_page):
    page = open_page(write_map(), ignored=[TILE_HOST, "403"])
    page.route(f"{TILE_HOST}/**", lambda route: route.fulfill(status=403, body="no"))
    page.get_by_role("button", name="Show streets").click()
    page.get_by_text("tile.openstreetmap.de gave no streets").wait_for()
    assert page.locator(".leaflet-tile").count() == 0
    assert found(page, "--correct")["count"] > 0
    assert page.get_by_role("button", name="Show streets").count() == 1


def test_the_map_follows_the_color_scheme_of_the_reader(write_map, open_page):
    page = open_page(write_map())
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--correct').trim()") == "#63b3f5"
    assert found(page, "--correct")["count"] > 40
    assert found(page, "--text")["count"] > 10


@pytest.mark.parametrize("is_still", [False, True])
def test_nothing_is_animated_for_readers_who_do_not_want_it(write_map, open_page, is_still):
    page = open_page(write_map(), reduced_motion=is_still)
    opened = found(page, "--correct")["x"]
    page.locator("#map").press("ArrowRight")
    moved = page.evaluate(FOUND, "--correct")["x"]
    assert (moved == pytest.approx(opened - 80, abs=1)) == is_still
    assert page.locator("#map.leaflet-fade-anim").count() == (not is_still)


def test_hostile_texts_are_text(write_map, open_page):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' \u202egpj.exe" + "x" * 300
    shown = evil.replace("\u202e", r"\u202e")
    points = [Points(evil, "correct", np.array([CORRECT]), keys=[0], labels=[evil])]
    polygons = [Polygons(evil, 1, np.array([[WRONG, WRONG, WRONG, WRONG]]), labels=[evil])]
    page = open_page(write_map(points=points, polygons=polygons, database_name=evil), width=390)
    place = found(page, "--correct")
    page.mouse.move(place["x"], place["y"])
    page.locator(".leaflet-tooltip").wait_for()
    assert page.locator(".leaflet-tooltip").text_content() == shown
    page.mouse.click(place["x"], place["y"])
    assert page.locator(".map-chosen bdi").get_attribute("title") == shown
    assert [each.get_attribute("title") for each in page.locator(".map-shapes bdi").all()] == [shown] * 3
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#map img, .map-key img").count() == 0


def test_a_map_in_meters_has_a_scale_and_neither_streets_nor_links(write_map, open_page):
    places = np.array([[5_787_000.0, 303_000.0], [5_787_400.0, 303_300.0]])
    page = open_page(write_map(unit="meters", database=places, points=[Points("q", "query", places[:1], labels=["a"])]))
    assert re.fullmatch(r"\d+ m", scale(page))
    assert page.get_by_role("button", name="Show streets").count() == 0
    click(page, "--map-query")
    assert chosen(page) == "a (q): 5787000.0 m north, 303000.0 m east"
    assert page.locator(".map-chosen a").count() == 0


@pytest.mark.slow
def test_fifty_thousand_positions_are_squares_and_ten_thousand_queries_shapes(write_map, open_page):
    rng = np.random.default_rng(0)
    database = np.array(CORRECT) + rng.uniform(0, 0.01, (50_000, 2))
    points = [Points("queries", "correct", np.array(CORRECT) + rng.uniform(0, 0.01, (10_000, 2)))]
    page = open_page(write_map(database=database, points=points), init_script=COUNT_SHAPES, reduced_motion=True)
    key = page.locator(".map-shapes").text_content()
    assert re.search(r"database50,000, counted in squares of [\d.]+ m", key)
    found(page, "--correct")
    assert page.evaluate("numFilled") >= 10_000
    assert page.evaluate("radius") == pytest.approx(0.4 * 4.5)  # in a crowd
    page.evaluate("numFilled = 0")
    page.locator("#map").press("ArrowRight")
    page.wait_for_function("() => numFilled > 5000")
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
        page.wait_for_timeout(100)
    found(page, "--correct")
    assert page.evaluate("radius") == 4.5


def test_a_window_without_an_area_does_not_lose_the_view(write_map, open_page):
    page = open_page(write_map(), reduced_motion=True)
    for size in ({"width": 1, "height": 1}, {"width": 1280, "height": 800}):
        page.set_viewport_size(size)
        wait_two_frames(page)
    assert found(page, "--correct")["count"] > 20
    assert found(page, "--wrong")["count"] > 20


def test_a_map_without_positions_says_so(write_map, open_page):
    page = open_page(write_map(database=np.full((2, 2), np.nan), points=[], details={}))
    assert page.get_by_text("No position is known").is_visible()
    assert not page.locator("#map").is_visible()
