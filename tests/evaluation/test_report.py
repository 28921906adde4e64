import base64
import io
import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of
from PIL import ExifTags, Image

from progeo.evaluation.classification import ClassScores
from progeo.evaluation.metrics import recall_table
from progeo.evaluation.report import write_report
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue


class Page(HTMLParser):
    """The rows of a report, its texts and the addresses it refers to."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.figures, self.addresses, self.texts = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        classes = (attributes.get("class") or "").split()
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href")]
        if tag == "li" and "row" in classes:
            self.rows.append(classes[1])
        if tag == "figure":
            self.figures.append((classes or [None])[0])

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def catalogue(folder, names, east):
    north, zone = np.full(len(names), 7.0), np.zeros(len(names), np.int8)
    return Catalogue(folder, pa.table({"path": names, "east": east, "north": north, "zone": zone}))


def report(folder, *, max_queries=240, num_shown=5, ns=(1, 2), **changes):
    """Three queries, four database images: correct at rank 1; wrong by 90 m; wrong by 4,000 m but correct at rank 2."""
    names = [f"@{index}@<b>&'.png" for index in range(7)]
    for index, name in enumerate(names):
        Image.new("RGB", (300, 200), (index * 30, 0, 0)).save(folder / name)
    content = {
        "database": catalogue(folder, names[3:], [3.0, 90, 116, 3975]),
        "queries": catalogue(folder, names[:3], [0.0, 0, 4000]),
        "predictions": np.array([[0, 1], [1, 2], [0, 3]]),
        "positives": {"within 25 m": [np.array([0]), np.array([0]), np.array([3])]},
        "conditions": np.array(["night", "day", "night"]),
        **changes,
    }
    retrieved = Retrieved(**content)
    recalls = {"within 25 m": recall_table(retrieved.predictions, retrieved.positives, {"all": np.arange(3)}, ns)}
    facts = {"encoder": "<script>alert(1)</script>", "folder": "test"}
    shown = {"max_queries": max_queries, "num_shown": num_shown}
    write_report(folder / "report.html", retrieved, title="R & <D>", facts=facts, recalls=recalls, **shown)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_query_is_a_row_with_its_predictions_the_worst_first(tmp_path):
    page = Page(report(tmp_path))
    assert page.rows == ["wrong", "wrong", "correct"]
    assert page.figures == ["query", "wrong", "correct", "query", "wrong", "wrong", "query", "correct", "wrong"]
    gallery = page.text.partition("Queries and their predictions")[2]
    assert gallery.index("3,997.0 m") < gallery.index("90.0 m") < gallery.index("3.0 m")
    assert gallery.count("✓ correct") == 2
    assert gallery.count("✗ wrong") == 4


def test_recalls_and_counts_are_printed(tmp_path):
    text = Page(report(tmp_path)).text
    assert "R@1 R@2 within 25 m 3 33.3 0.0 to 100.0 66.7" in text
    assert "All 3 queries shown, worst first." in text
    assert "wrong (2)" in text
    assert "correct (1)" in text


def test_no_more_queries_are_shown_than_asked_for_and_the_page_says_so(tmp_path):
    page = Page(report(tmp_path, max_queries=2))
    assert page.rows == ["wrong", "wrong"]
    assert Page(report(tmp_path, max_queries=2, predictions=np.array([[0], [0], [0]]))).rows == ["wrong", "correct"]
    assert "2 of 3 queries shown, worst first, and some that are correct." in page.text


def test_no_more_predictions_are_shown_than_asked_for_nor_than_there_are(tmp_path):
    assert Page(report(tmp_path, num_shown=1)).figures.count("query") == 3
    assert len(Page(report(tmp_path, num_shown=1)).figures) == 6
    assert len(Page(report(tmp_path, num_shown=9)).figures) == 9


def test_the_page_stands_alone_and_shows_names_as_text(tmp_path):
    html = report(tmp_path)
    page = Page(html)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert len(page.addresses) == 9
    assert not re.search(r"https?://", html)
    assert html.count("<script") == 1
    assert "<b>&'" not in html
    assert "R & <D>" in page.text


EVIL = """</script><script>alert(1)</script><img src=x onerror=alert(1)>"' onload='alert(1)"""


class Tags(HTMLParser):
    """The names of all tags and attributes of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes = [], set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}


@pytest.mark.parametrize("evil", [EVIL, "{{ 7 * 7 }}"])
@pytest.mark.parametrize("by_classes", [False, True])
def test_no_text_becomes_a_part_of_the_page(tmp_path, evil, by_classes):
    def written(text):
        names = [f"{text}{index}.png" for index in range(5)]
        queries, database = catalogue(tmp_path, names[:3], [0.0, 0, 4000]), catalogue(tmp_path, names[3:], [3.0, 90])
        rows, scores = np.tile([0, 1], (3, 1)), None
        if by_classes:
            classifier = classifier_of([(0, 0, 0), (20, 0, 0)], 2)
            database = classifier.catalogue
            scores = ClassScores(classifier, rows, np.full((3, 2), 0.5), text)
        positives = {text: [np.array([0]), np.array([1]), np.array([], np.int64)]}
        retrieved = Retrieved(database, queries, rows, positives, np.array([text, "", text]), classes=scores)
        recalls = {text: recall_table(rows, positives, {text: np.arange(3)}, (1, 2))}
        facts = {text: text, "encoder": text, "folder": text}
        write_report(tmp_path / "report.html", retrieved, title=text, facts=facts, recalls=recalls)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    plain, found = written("plain"), written(evil)
    assert Tags(found).tags == Tags(plain).tags
    assert Tags(found).attributes == Tags(plain).attributes
    assert unescape(found).count(evil) > 10  # as it is, unless it is a path of which only the name is shown


def test_thumbnails_are_bounded(tmp_path):
    for address in Page(report(tmp_path)).addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            assert max(image.size) == 128


def test_photos_are_shown_upright_and_those_of_16_bits_in_all_their_grays(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (300, 200)).save(tmp_path / "lying.jpg", exif=exif)
    Image.fromarray(np.full((200, 300), 128 * 256, np.uint16)).save(tmp_path / "deep.png")
    queries = catalogue(tmp_path, ["lying.jpg", "deep.png", "deep.png"], [0.0, 0, 0])
    shown = {}
    for address in Page(report(tmp_path, queries=queries, num_shown=0)).addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            shown[image.size] = image.getpixel((40, 40))
    assert shown == {(85, 128): (0, 0, 0), (128, 85): (128, 128, 128)}


def test_an_image_that_cannot_be_opened_leaves_a_placeholder(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")
    page = Page(report(tmp_path, queries=catalogue(tmp_path, ["broken.jpg", "gone.jpg", "gone too.jpg"], [0.0, 0, 0])))
    assert page.text.count("image cannot be opened") == 3
    assert len(page.rows) == 3


def test_a_single_recall_still_makes_a_page(tmp_path):
    assert len(Page(report(tmp_path, ns=(1,))).rows) == 3


def test_the_curve_rises_from_recall_at_1_on_a_logarithmic_axis(tmp_path):
    points = re.search(r'<polyline points="([^"]*)"', report(tmp_path, ns=(1, 2)))[1].split()
    assert points == ["36.0,92.0", "308.0,52.0"]  # 33.3 and 66.7 % of 120 pixels above 132


def test_recalls_stand_under_their_n_in_any_order(tmp_path):
    assert "R@2 R@1 within 25 m 3 66.7 0.0 to 100.0 33.3" in Page(report(tmp_path, ns=(2, 1))).text


def test_images_without_a_place_give_a_page_without_a_map(tmp_path):
    nowhere = catalogue(tmp_path, [f"@{index}@<b>&'.png" for index in range(3)], np.full(3, np.nan))
    html = report(tmp_path, queries=nowhere, predictions=np.array([[0, -1], [1, -1], [2, -1]]))
    assert "<h2>Map" not in html
    assert "on the map" not in html
    assert Page(html).figures.count("query") == 3
    assert len(Page(html).figures) == 6


def test_the_map_puts_north_up_and_draws_failures_above_hits(tmp_path):
    queries = catalogue(tmp_path, [f"@{index}@<b>&'.png" for index in range(3)], [0.0, 0, 4000])
    table = queries.table.set_column(2, "north", pa.array([7.0, 107, 7]))
    html = report(tmp_path, queries=Catalogue(tmp_path, table))
    dots = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)" data-query="(\d)"', html)
    assert dots == [
        ("correct", "0.0", "100.0", "0"),
        ("wrong", "0.0", "0.0", "1"),
        ("wrong", "4000.0", "100.0", "2"),
    ]


def test_queries_without_labels_are_shown_the_nearest_descriptors_first_and_nothing_is_called_correct(tmp_path):
    names = [f"{index}.jpg" for index in range(7)]
    for name in names:
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    retrieved = Retrieved(
        catalogue(tmp_path, names[3:], [3.0, 90, 116, 3975]),
        catalogue(tmp_path, names[:3], [0.0, 0, 4000]),
        predictions=np.array([[0, 1], [1, 2], [0, -1]]),
        positives={},
        conditions=np.array(["", "night", ""]),
        distances=np.array([[0.5, 0.75], [0.25, 1.5], [1.125, np.nan]]),
    )
    write_report(tmp_path / "report.html", retrieved, title="t", facts={"encoder": "e"}, recalls={})
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.rows == ["found"] * 3
    assert re.findall('data-name="([^"]*)"', html) == ["1.jpg", "0.jpg", "2.jpg"]
    assert page.figures == ["query", "found", "found", "query", "found", "found", "query", "found"]
    shown = page.text.partition("Queries and their predictions")[2].partition('"use strict"')[0]
    assert re.findall(r"\d\.\d{3}", shown) == ["0.250", "1.500", "0.500", "0.750", "1.125"]
    assert "All 3 queries shown, those with the nearest descriptors first." in shown
    for word in ("Recall in", "<svg", "on the map", "✓", "✗", "At rank 1"):
        assert word not in html


ACTIONS = """
const seen = {errors: []};
window.addEventListener("error", event => seen.errors.push(event.message));
const shown = () => [...document.querySelectorAll(".row")].filter(row => !row.hidden).map(row => row.dataset.query);
const set = (name, value) => {
  document.querySelector("form")[name].value = value;
  document.querySelector("form").dispatchEvent(new Event("change", {bubbles: true}));
};
window.addEventListener("load", () => {
  const map = document.querySelector("svg.map"), view = () => map.getAttribute("viewBox").split(" ").map(Number);
  const press = key => map.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  seen.all = shown();
  document.querySelector("input[value=wrong]").click();
  seen.wrong = shown();
  set("condition", "night");
  seen.wrong_at_night = shown();
  seen.dots = [...map.querySelectorAll("circle")].filter(dot => !dot.classList.contains("hidden")).length;
  set("condition", "");
  document.querySelector("input[value='']").click();
  set("order", "last");
  seen.last = shown();
  set("order", "name");
  seen.by_name = shown();
  const before = view();
  press("+");
  seen.zoomed = view()[2] / before[2];
  press("ArrowRight");
  seen.moved = view()[0] > before[0];
  map.dispatchEvent(new WheelEvent("wheel", {deltaY: 100, clientX: 300, clientY: 300, cancelable: true}));
  press("0");
  seen.whole = view().every((value, index) => value === before[index]);
  map.querySelector("circle[data-query='2']").dispatchEvent(new MouseEvent("click", {bubbles: true}));
  seen.chosen = [...document.querySelectorAll(".chosen")].map(item => item.dataset.query);
  seen.told = document.getElementById("chosen").textContent;
  document.querySelector(".row[data-query='1'] button").click();
  seen.focused = document.activeElement === map;
  seen.scale = document.getElementById("scale").textContent;
  document.title = JSON.stringify(seen);
});
"""


def shown_by_chromium(page):
    """The page as it is after its scripts ran."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    command = ["chromium", *flags, page.as_uri()]
    home = {name: str(page.parent) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    env = {**os.environ, **home}  # it keeps files there
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=env).stdout


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_filters_order_and_map_work_in_a_browser(tmp_path):
    html = report(tmp_path)
    page, policy = tmp_path / "tried.html", re.search(r"script-src '[^']+'", html)[0]
    html = html.replace(policy, "script-src 'unsafe-inline'")
    page.write_text(html.replace("<script>", f"<script>{ACTIONS}</script><script>"))
    seen = json.loads(unescape(re.search(r"<title>(\{.*\})</title>", shown_by_chromium(page))[1]))
    assert seen["errors"] == []
    assert (seen["all"], seen["wrong"], seen["wrong_at_night"], seen["dots"]) == (["2", "1", "0"], ["2", "1"], ["2"], 1)
    assert (seen["last"], seen["by_name"]) == (["0", "1", "2"], ["0", "1", "2"])
    assert (seen["zoomed"], seen["moved"], seen["whole"], seen["focused"]) == (pytest.approx(0.8), True, True, True)
    assert set(seen["chosen"]) == {"2"}
    assert seen["told"] == "@2@<b>&'.png: wrong, 3,997.0 m off"
    assert re.fullmatch(r"\d+ k?m", seen["scale"])


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_script_is_the_one_that_the_page_allows(tmp_path):
    assert 'style="--dot:' not in report(tmp_path)
    assert 'style="--dot:' in shown_by_chromium(tmp_path / "report.html")
