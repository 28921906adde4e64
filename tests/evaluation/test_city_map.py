import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of
from PIL import Image

from progeo.evaluation.city_map import city_map
from progeo.evaluation.classification import ClassScores
from progeo.evaluation.report import write_report
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue

EAST, NORTH = 550_000, 4_180_000


def retrieved(folder=Path(), *, labeled=True, **cells):
    """Two queries, four classes in three cells of 20 m: one at the west, two at the middle, one at the north east."""
    ids = [[EAST, NORTH, 0], [EAST + 100, NORTH, 0], [EAST + 100, NORTH, 180], [EAST + 200, NORTH + 60, 0]]
    classifier = classifier_of(ids, groups_per_side=1, heading_bin_deg=180, **cells)
    rows = np.array([[1, 3, 2, -1], [0, 3, 1, 2]])
    probabilities = np.array([[0.5, 0.25, 0.125, 0], [0.9, 0.06, 0.02, 0.01]], np.float32)
    columns = {"east": [EAST + 110.0, np.nan], "north": [NORTH - 10.0, np.nan], "zone": pa.array([10, 10], pa.int8())}
    queries = Catalogue(folder, pa.table({"path": ["a.png", "b.png"], **columns}))
    return Retrieved(
        classifier.catalogue,
        queries,
        rows[:, :3],
        {"within 25 m": [np.array([1, 2]), np.array([], int)]} if labeled else {},
        np.array(["", ""]),
        classes=ClassScores(classifier, rows, probabilities, "softmax of 100 x cosine"),
    )


def test_cells_are_squares_with_the_sum_of_their_classes_and_the_query_is_marked():
    found = retrieved()
    drawn = city_map(found, found.classes, np.array([0, 1]))
    assert sorted(re.findall(r"M(\S+) (\S+)h20v20h-20z", drawn.outline)) == [
        ("-10", "50"),
        ("190", "-10"),
        ("90", "50"),
    ]
    first, second = drawn.queries[0], drawn.queries[1]
    assert [(square.x, square.y, square.probability) for square in first.squares] == [
        (190, -10, 0.25),
        (90, 50, 0.625),  # two headings of one cell; the most probable is drawn last
    ]
    assert {square.side for square in first.squares} == {20}
    assert first.position == (100, 80)
    assert first.total == 0.875
    assert second.position is None
    assert second.total == pytest.approx(0.99)
    left, top, width, height = map(float, first.view_box.split())
    assert width == height == pytest.approx(160 * first.pixel, abs=0.1)
    assert left < -20 < 220 < left + width
    assert top < -20 < 100 < top + height


def test_cells_of_a_large_city_are_drawn_large_enough_to_be_seen_around_their_centers():
    found = retrieved(cell_side_m=1)
    square = city_map(found, found.classes, np.array([0])).queries[0].squares[-1]
    pixel = city_map(found, found.classes, np.array([0])).queries[0].pixel
    assert square.side == pytest.approx(6 * pixel)
    assert square.x + square.side / 2 == pytest.approx(100)


def test_queries_are_grouped_by_their_distance_to_the_nearest_class():
    found = retrieved()
    east = pa.array([EAST + 110.0, EAST + 210.0])
    table = found.queries.table.set_column(1, "east", east).set_column(2, "north", pa.array([NORTH - 10.0, NORTH + 73]))
    groups = replace(found, queries=Catalogue(Path(), table)).groups()
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "all": [0, 1],
        "0 to 5 m from the nearest class": [1],
        "10 to 25 m from the nearest class": [0],
    }


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    return tmp_path


def test_classes_are_tiles_with_their_probability_beside_a_map_of_each_query(folder):
    write_report(folder / "report.html", retrieved(folder), title="t", facts={"encoder": "e"}, recalls={})
    html = (folder / "report.html").read_text()
    assert html.count('class="cell"') == 6
    assert html.count('<figure class="city">') == html.count('<use href="#city"') == 2
    assert html.count('class="cross"') == 1  # the position of one query is unknown
    assert re.findall(r'fill-opacity="([\d.]+)"', html.partition("<main>")[2])[-2:] == ["0.250", "0.625"]
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert "550,110 E 4,180,010 N" in text
    assert "20.0 m · 50.0 %" in text
    assert "Percentages are probabilities: softmax of 100 x cosine." in text
    assert "A prediction is correct when the center of its cell lies within 25 m of the query." in text
    assert "88 % in 2 cells" in text
    assert 'transform="rotate(270.0)"' in html  # the middle of the heading bin
    assert "image cannot be opened" not in html
    assert not re.search(r'(src|href)="(?!data:|#city)', html)


def test_queries_without_positions_are_ordered_by_probability(folder):
    found = retrieved(folder, labeled=False)
    write_report(folder / "report.html", found, title="t", facts={"encoder": "e"}, recalls={})
    html = (folder / "report.html").read_text()
    assert re.findall('data-name="([^"]*)"', html) == ["b.png", "a.png"]
    assert "a cross where" not in html
