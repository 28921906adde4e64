from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from progeo.places.catalogue import Catalogue
from progeo.places.distances import distance_text, distances_between, is_wide
from progeo.places.positives import find_positives

DEGREE_M = 6_371_008.8 * np.pi / 180


def images(*degrees, zone=None):
    """Images with latitude and longitude, and rough northings."""
    latitude, longitude = np.array(degrees, float).T
    zones = (np.nan_to_num(longitude) + 180) // 6 + 1 if zone is None else np.full(len(degrees), zone)
    columns = {"east": np.full(len(degrees), 5e5), "north": 111e3 * latitude, "zone": zones.astype(np.int8)}
    columns |= {"heading": np.full(len(degrees), np.nan), "latitude": latitude, "longitude": longitude}
    return Catalogue(Path("images"), pa.table({"path": [f"{row}.jpg" for row in range(len(degrees))], **columns}))


@pytest.mark.parametrize(
    ("one", "other", "meters"),
    [
        ((0, 0), (0, 90), 90 * DEGREE_M),
        ((0, 179.5), (0, -179.5), DEGREE_M),
        ((10, 20), (11, 20), DEGREE_M),
        ((60, 0), (60, 180), 60 * DEGREE_M),  # over the pole
        ((30, 10), (-30, -170), 180 * DEGREE_M),
        ((48.8566, 2.3522), (51.5074, -0.1278), 343_557),  # Paris and London, by the haversine formula
        ((37.77, -122.41), (37.77, -122.41), 0),
    ],
)
def test_great_circles_are_measured_on_a_sphere(one, other, meters):
    between = distances_between(images(one), images(other), great_circle=True)
    assert between.between(np.array([[0, -1]])).tolist() == [
        [pytest.approx(meters, abs=1), pytest.approx(np.nan, nan_ok=True)]
    ]
    assert between.nearest().tolist() == [pytest.approx(meters, abs=1)]


def test_positives_are_those_within_the_radius_along_the_great_circle():
    database = images((0, 0), (0, 10), (0, 90), (90, 0))
    for degrees, expected in [
        (9.999, [0]),
        (10.001, [0, 1]),
        (89.999, [0, 1]),
        (90.001, [0, 1, 2, 3]),
        (400, [0, 1, 2, 3]),
    ]:
        found = find_positives(database, images((0, 0)), degrees * DEGREE_M, great_circle=True)
        assert [rows.tolist() for rows in found] == [expected]


def test_short_radii_of_a_wide_set_are_meters_of_utm():
    database, queries = images((48.8, 2.3), (35.7, 139.7)), images((48.8, 2.3))
    near, far = (
        Catalogue(Path(), database.table.set_column(1, "east", pa.array([east, 5e5])))
        for east in (500_024.99, 500_025.01)
    )
    assert [len(find_positives(each, queries, 25, great_circle=True)[0]) for each in (near, far)] == [1, 0]


def test_short_radii_of_a_wide_set_cross_the_borders_of_zones():
    east_of_border, west_of_border = (50.0, 6.00005), (50.0, 5.99995)  # zones 32 and 31, 7.15 m apart
    database, queries = images((35.7, 139.7), west_of_border), images(east_of_border, (35.7, 139.7))
    for radius, expected in ((7.0, [[], [0]]), (7.3, [[1], [0]])):
        found = find_positives(database, queries, radius, great_circle=True)
        assert [rows.tolist() for rows in found] == expected
        assert all(rows.dtype == np.int64 for rows in found)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ([(37.7, -122.4), (37.8, -122.5)], False),
        ([(48.8, 2.3), (51.5, -0.1)], True),
        ([(48.0, 2.0), (48.8, 2.0)], False),  # 89 km
        ([(48.0, 2.0), (48.95, 2.0)], True),
        ([(48.8 + row / 1e4, 2.3) for row in range(40)] + [(0, 0)], False),  # one unknown position makes no set wide
    ],
)
def test_a_set_is_wide_above_100_km(degrees, expected):
    assert is_wide(images(*degrees[:1]), images(*degrees[1:])) is expected


def test_a_set_is_not_wide_unless_all_degrees_are_known():
    assert not is_wide(images((48.8, 2.3), (np.nan, np.nan)), images((51.5, -0.1)))


def test_meters_in_one_zone_within_100_km_are_not_wide_whatever_the_degrees():
    assert not is_wide(images((48.8, 2.3), zone=31), images((48.8, -0.1), zone=31))


@pytest.mark.parametrize(
    ("meters", "text"), [(3, "3.0 m"), (3997.04, "3,997.0 m"), (10_000, "10.0 km"), (1_234_567, "1,234.6 km")]
)
def test_long_distances_are_in_kilometers(meters, text):
    assert distance_text(meters) == text
