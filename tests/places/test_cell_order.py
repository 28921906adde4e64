"""Rows within a radius are those of a plain filter by the haversine, wherever on Earth."""

import math

import numpy as np
import pyarrow as pa
import pytest
import utm
from hypothesis import given, settings
from hypothesis import strategies as st

from progeo.places.cell_order import build_cell_order, cell_order, cell_range, reaches
from progeo.places.nearby import HeadingRange, Near, haversine_m, looks_toward

RADIUS_M = 6_371_008.8


def columns_of(latitude, longitude, chunks=1):
    columns = (np.array_split(np.asarray(each, float), chunks) for each in (latitude, longitude))
    return [pa.chunked_array([pa.array(part) for part in column]) for column in columns]


def ordered(latitude, longitude, chunks=1):
    return build_cell_order(*columns_of(latitude, longitude, chunks))


def plainly_within(latitude, longitude, near):
    """The formula of the haversine, one position after the other."""
    rows = []
    for row, (north, east) in enumerate(zip(latitude, longitude, strict=True)):
        phi, psi = math.radians(north), math.radians(near.latitude)
        half = math.sin((phi - psi) / 2) ** 2
        half += math.cos(phi) * math.cos(psi) * math.sin(math.radians(east - near.longitude) / 2) ** 2
        if 2 * RADIUS_M * math.asin(math.sqrt(min(half, 1))) <= near.radius_m:
            rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("here", "there", "meters"),
    [
        ((0, 0), (0, 90), math.pi / 2 * RADIUS_M),
        ((90, 0), (-90, 50), math.pi * RADIUS_M),
        ((0, 179.5), (0, -179.5), math.radians(1) * RADIUS_M),
        ((89, 0), (89, 180), math.radians(2) * RADIUS_M),
        ((45, 10), (45, 10), 0),
        ((37.78, -122.41), (37.79, -122.41), math.radians(0.01) * RADIUS_M),
        ((math.nan, 0), (0, 0), math.nan),
    ],
)
def test_distances_follow_great_circles(here, there, meters):
    (found,) = haversine_m(np.array([here[0]]), np.array([here[1]]), *there)
    assert found == pytest.approx(meters, rel=1e-9, nan_ok=True)


@st.composite
def _circles(draw):
    """A circle anywhere, also around a pole or a point of the 180 degree meridian, and positions around it."""
    latitude = draw(st.sampled_from([90.0, -90.0, 89.9995, 0.0, 37.7784, -33.0]) | st.floats(-90, 90))
    longitude = draw(st.sampled_from([180.0, -180.0, 179.9996, 0.0]) | st.floats(-180, 180))
    radius_m = draw(st.sampled_from([1.0, 40.0, 500.0, 30_000.0, 3e6, 1.2e7, 1.99e7, 2.1e7]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = np.degrees(radius_m / RADIUS_M) * rng.uniform(0, 1.3, 300)
    turn = rng.uniform(0, 2 * np.pi, 300)
    north = np.clip(latitude + spread * np.cos(turn), -90, 90)
    east = longitude + spread * np.sin(turn) / np.maximum(np.cos(np.radians(north)), 1e-6)
    east = (east + 180) % 360 - 180
    north[:20], east[:20] = rng.uniform(-90, 90, 20), rng.uniform(-180, 180, 20)
    north[20:24] = np.nan
    return Near(latitude, longitude, radius_m), north, east


@settings(max_examples=30, deadline=None)
@given(_circles(), st.integers(1, 4), st.booleans())
def test_rows_within_a_radius_are_those_of_a_plain_filter(circle, chunks, is_sorted):
    near, latitude, longitude = circle
    if is_sorted:
        order = cell_order(*columns_of(latitude, longitude))
        latitude, longitude = latitude[order], longitude[order]
    found = ordered(latitude, longitude, chunks)
    assert found.order is None or not is_sorted
    assert found.rows_within(near).tolist() == plainly_within(latitude, longitude, near)


def test_the_radius_is_inclusive_and_the_nearest_number_below_is_not_enough():
    latitude, longitude = np.array([10.0, 10.003]), np.array([20.0, 20.0])
    (_, far) = haversine_m(latitude, longitude, 10.0, 20.0)
    found = ordered(latitude, longitude)
    assert found.rows_within(Near(10, 20, far)).tolist() == [0, 1]
    assert found.rows_within(Near(10, 20, np.nextafter(far, 0))).tolist() == [0]


def test_a_radius_crosses_the_border_of_two_utm_zones():
    """Zones 30 and 31 meet at 0 degrees; on both sides of it easts are 600 km apart."""
    longitude = np.linspace(-0.01, 0.01, 41)
    latitude = np.full(41, 52.2)
    zones = {utm.from_latlon(north, east)[2] for north, east in zip(latitude, longitude, strict=True)}
    near = Near(52.2, 0.001, 300)
    found = ordered(latitude, longitude).rows_within(near)
    assert zones == {30, 31}
    assert found.tolist() == plainly_within(latitude, longitude, near)
    assert longitude[found].min() < 0 < longitude[found].max()


def test_positions_of_a_cell_are_neighbors_in_their_order_and_unknown_ones_come_last():
    latitude = np.array([50.0, np.nan, 10.0004, 10.0, 50.0, 10.0])
    longitude = np.array([8.0, 8.0, 5.0, 5.0, 8.0, 9.0])
    assert cell_order(*columns_of(latitude, longitude, 2)).tolist() == [2, 3, 5, 0, 4, 1]


def test_a_radius_in_sorted_rows_is_one_range_for_each_band_of_latitude():
    north, east = np.meshgrid(np.arange(37.70, 37.80, 0.0005), np.arange(-122.5, -122.4, 0.0005))
    latitude, longitude = north.ravel(), east.ravel()
    order = cell_order(*columns_of(latitude, longitude))
    rows = ordered(latitude[order], longitude[order]).rows_within(Near(37.75, -122.45, 500))
    assert len(rows) > 200
    cells_of_others = np.diff(rows) > 40  # more than the rows of a band that the circle's edge cuts off
    assert cells_of_others.sum() <= 2 * 500 / 111 + 1


@pytest.mark.parametrize(
    ("heading", "tolerance", "stay"),
    [
        (0, 30, [True, True, False, True, True]),
        (350, 20, [True, True, False, False, True]),
        (370, 19.5, [False, True, False, True, True]),
        (-45, 180, [True] * 5),
    ],
)
def test_headings_are_compared_across_north_and_unknown_ones_stay(heading, tolerance, stay):
    headings = np.array([330.0, 360.0, 180.0, 29.0, np.nan])
    assert looks_toward(headings, HeadingRange(heading, tolerance)).tolist() == stay


def test_no_row_lies_within_a_radius_of_a_set_without_known_positions():
    nothing = np.full(3, np.nan)
    assert ordered(nothing, nothing).rows_within(Near(0, 0, 1e8)).tolist() == []
    assert ordered([], []).rows_within(Near(0, 0, 1e8)).tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(1, 2e6), st.integers(0, 2**32))
def test_a_circle_reaches_the_range_of_cells_of_every_position_in_it(latitude, longitude, radius_m, seed):
    rng, near = np.random.default_rng(seed), Near(latitude, longitude, radius_m)
    turned = rng.uniform(-2, 2, (2, 50)) * math.degrees(radius_m / RADIUS_M)
    north = np.clip(latitude + turned[0], -90, 90)
    east = (longitude + turned[1] + 180) % 360 - 180
    for row in plainly_within(north, east, near):
        one = [pa.chunked_array([pa.array(each[row : row + 1])]) for each in (north, east)]
        assert reaches(near, cell_range(*one))


def test_cells_far_away_are_not_reached_and_unknown_positions_have_none():
    columns = [
        pa.chunked_array([[37.0, 37.01, math.nan], [37.02]]),
        pa.chunked_array([[-122.0, -122.0, 5.0], [-122.1]]),
    ]
    cells = cell_range(*columns)
    assert cells == (min(cell_range(columns[0][:1], columns[1][:1])), max(cell_range(columns[0][3:], columns[1][3:])))
    assert reaches(Near(37.015, -122.0, 600), cells) and not reaches(Near(37.03, -122.0, 600), cells)
    assert cell_range(columns[0][2:3], columns[1][2:3]) is None
