"""Data of the map, its colors, and Leaflet as its makers published it."""

import hashlib
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from progeo.pages import maps
from progeo.pages.maps import MAX_DRAWN, Detail, Map, Points, Polygons, map_frame
from progeo.places.catalogue import Catalogue

PAGES = Path(maps.__file__).parent
LEAFLET = {  # SHA-256 of the files of leaflet 1.9.4 on npm
    "LICENSE": "53e8dc25862014e4324741ca18fbe3611e11d42ef69f59f86ea8c5389647d4cb",
    "leaflet.css": "a7837102824184820dfa198d1ebcd109ff6d0ff9a2672a074b9a1b4d147d04c6",
    "leaflet.js": "db49d009c841f5ca34a888c96511ae936fd9f5533e90d8b2c4d57596f4e5641a",
}
# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# severity 1: linear RGB to linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def catalogue(**columns):
    rows = len(next(iter(columns.values())))
    zone = columns.pop("zone", [0] * rows)
    known = {name: np.asarray(columns.pop(name, [np.nan] * rows), float) for name in ("east", "north", "heading")}
    return Catalogue(
        Path("images"),
        pa.table(
            {"path": pa.array([f"{row}.jpg" for row in range(rows)], pa.large_string()), **known}
            | {"zone": np.asarray(zone, np.int8)}
            | {name: np.asarray(values, float) for name, values in columns.items()}
        ),
    )


def shown(**values):
    return Map(**{"unit": "meters", "database": None, **values}).data()


def test_leaflet_is_as_published():
    folder = PAGES / "vendor/leaflet"
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == LEAFLET


def test_degrees_are_used_where_all_known_positions_have_them():
    database = catalogue(latitude=[52.2, 52.3], longitude=[0.1, 0.2], east=[1, 2], north=[3, 4])
    queries = catalogue(latitude=[52.25, np.nan], longitude=[0.15, np.nan])
    frame = map_frame(database, queries)
    assert frame.unit == "degrees"
    assert frame.positions[0].tolist() == [[52.2, 0.1], [52.3, 0.2]]
    np.testing.assert_array_equal(frame.positions[1], [[52.25, 0.15], [np.nan, np.nan]])


def test_an_image_known_in_meters_only_puts_all_into_meters_north_first():
    frame = map_frame(catalogue(east=[1, 2], north=[3, 4]), catalogue(east=[5], north=[6]))
    assert frame.unit == "meters"
    assert [each.tolist() for each in frame.positions] == [[[3, 1], [4, 2]], [[6, 5]]]


def test_great_circles_need_degrees_even_if_some_are_unknown():
    some = catalogue(latitude=[52.2, np.nan], longitude=[0.1, np.nan], east=[1, 2], north=[3, 4])
    assert [map_frame(some, great_circle=each).unit for each in (False, True)] == ["meters", "degrees"]


def test_a_set_around_the_180_degree_meridian_stays_together():
    frame = map_frame(catalogue(latitude=[1, 2, 3], longitude=[179.9, 179.8, -179.9]))
    np.testing.assert_allclose(frame.positions[0][:, 1], [179.9, 179.8, 180.1])


def test_coordinates_are_rounded_and_unknown_positions_skipped_with_all_that_belongs_to_them():
    positions = np.array([[52.12345678, 0.1], [np.nan, np.nan], [52.2, 0.30000049]])
    targets = np.array([[52.5, 0.5], [52.5, 0.5], [np.nan, np.nan]])
    points = Points("queries", "wrong", positions, keys=[7, 8, 9], labels=["a", "b", "c"], targets=targets)
    assert shown(unit="degrees", points=[points])["points"] == [
        {
            "name": "queries",
            "kind": "wrong",
            "count": 3,
            "known": 2,
            "positions": [52.123457, 0.1, 52.2, 0.3],
            "keys": [7, 9],
            "labels": ["a", "c"],
            "targets": [52.5, 0.5, None, None],
        }
    ]
    assert shown(points=[Points("queries", "wrong", np.array([[5_787_000.26, 303_000.04]]))])["points"][0][
        "positions"
    ] == [5_787_000.3, 303_000.0]


def test_polygons_keep_their_labels_and_weights_when_one_is_unknown():
    corners = np.arange(16.0).reshape(2, 4, 2)
    corners[0, 2, 1] = np.nan
    polygons = Polygons("cells", 3, corners, labels=["a", "b"], weights=[0.1, 0.54321])
    (found,) = shown(polygons=[polygons])["polygons"]
    assert found == {"name": "cells", "color": 3, "corners": list(range(8, 16)), "labels": ["b"], "weights": [0.543]}


def test_details_are_listed_by_their_row():
    detail = Detail([Points("match", "match", np.array([[1.0, 2]]))])
    found = shown(database=np.zeros((1, 2)), details={4: detail})["details"]
    assert found.keys() == {"4"}
    assert found["4"]["points"][0]["positions"] == [1, 2]


def test_above_ten_thousand_positions_are_counted_in_squares():
    north, east = np.divmod(np.arange(MAX_DRAWN + 1), 200)
    found = shown(database=np.column_stack([north, east * 6]).astype(float))["database"]
    squares = np.array(found["squares"]).reshape(-1, 3)
    assert "positions" not in found
    assert (found["count"], found["known"]) == (10_001, 10_001)
    assert found["sides"] == [9.95, 9.95]  # 199 * 6 m in 120 squares
    assert squares[:, 2].sum() == 10_001
    assert squares[:, :2].max(axis=0).tolist() == [5, 120]
    assert squares[0].tolist() == [0, 0, 10 * 2]  # 0 to 9 m north, 0 and 6 m east


def test_positions_at_one_place_are_counted_in_a_square_of_a_meter():
    found = shown(database=np.full((MAX_DRAWN + 1, 2), 5.0))["database"]
    assert (found["side_m"], found["squares"]) == (1.0, [0, 0, 10_001])


def test_up_to_ten_thousand_positions_are_drawn_one_by_one():
    found = shown(database=np.zeros((MAX_DRAWN, 2)))["database"]
    assert len(found["positions"]) == 2 * MAX_DRAWN


def test_squares_of_degrees_are_square_on_the_ground():
    latitude, longitude = np.divmod(np.arange(20_000), 200)
    found = shown(unit="degrees", database=np.column_stack([60 + latitude / 1000, longitude / 1000]))["database"]
    north, east = found["sides"]
    assert east / north == pytest.approx(2, rel=0.01)  # 1 / cos 60 degrees
    assert found["side_m"] == pytest.approx(north * 111_200, abs=0.1)


def test_points_are_sampled_evenly_but_for_those_with_a_detail():
    def points(count, kind, first):
        return Points(kind, kind, np.zeros((count, 2)), keys=range(first, first + count))

    found = shown(points=[points(20_000, "correct", 0), points(4_000, "wrong", 20_000)], details={1: Detail()})
    correct, wrong = (each["keys"] for each in found["points"])
    assert correct == [0, 1, *range(3, 20_000, 3)]
    assert wrong == list(range(20_000, 24_000, 3))
    assert [each["count"] for each in found["points"]] == [20_000, 4_000]


def test_a_few_positions_far_away_do_not_shrink_the_rest():
    places = np.array([[52.2 + row / 1000, 0.1] for row in range(100)] + [[0.0, 0.0]])
    found = shown(unit="degrees", database=places)
    assert (found["bounds"], found["outside"]) == ([52.2, 0.1, 52.299, 0.1], 1)
    assert len(found["database"]["positions"]) == 2 * 101


def test_a_map_without_any_known_position_has_no_bounds():
    assert shown(database=np.full((3, 2), np.nan))["bounds"] is None
    assert shown()["bounds"] is None


def test_only_degrees_have_street_tiles():
    assert shown()["tiles"] is None
    assert shown(unit="degrees", tiles=None)["tiles"] is None
    assert shown(unit="degrees")["tiles"] == {
        "url": "https://tile.openstreetmap.de/{z}/{x}/{y}.png",
        "attribution": "© OpenStreetMap contributors",
        "at_once": False,
    }


def test_texts_that_turn_the_order_of_others_are_escaped():
    turned = Points("a\u202eb", "query", np.zeros((1, 2)), labels=["c\u202ed"])
    text = json.dumps(shown(points=[turned], database=np.zeros((1, 2)), database_name="e\u202ef"), ensure_ascii=False)
    assert "\u202e" not in text
    assert text.count(r"\\u202e") == 3


def css_colors(is_dark):
    """Return the variables of the page and of the map by name."""
    found = {}
    for name in ("page.css", "map.css"):
        text = (PAGES / "templates" / name).read_text()
        light, dark = (text.split("(prefers-color-scheme: dark)", 1)[part].split("}")[0] for part in (0, 1))
        for part in (light, dark) if is_dark else (light,):
            found |= dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", part))
    return found


def linear_rgb(color):
    values = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(linear):
    """Convert linear RGB to CIELAB for D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    scaled = to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(*colors):
    """Compute the contrast of WCAG 2.1."""
    dark, light = sorted(float(linear_rgb(color) @ [0.2126, 0.7152, 0.0722]) for color in colors)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("vision", VISIONS)
def test_readers_of_any_color_vision_tell_correct_wrong_and_queries_apart(vision, is_dark):
    colors = css_colors(is_dark)
    seen = {name: lab(VISIONS[vision] @ linear_rgb(colors[name])) for name in ("--correct", "--wrong", "--map-query")}
    apart = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(seen, 2)}
    assert min(apart.values()) > 25, apart  # about 2 is just noticeable


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("name", ["--correct", "--wrong", "--map-query", "--map-database", "--s2", "--text"])
def test_shapes_stand_out_from_the_map(name, is_dark):
    colors = css_colors(is_dark)
    assert contrast(colors[name], colors["--panel"]) >= 3
