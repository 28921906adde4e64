"""Where sets of images lie, and which images lie elsewhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from running import build_catalogue

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import project
from progeo.places.extent import extent_of


def catalogue_of(latitude, longitude):
    positions = project(latitude, longitude)
    count = len(latitude)
    columns = {"path": [f"{row}.jpg" for row in range(count)], "east": positions.east, "north": positions.north}
    columns |= {"zone": np.full(count, positions.zone, np.int8), "heading": np.full(count, np.nan)}
    return Catalogue(Path("images"), pa.table({**columns, "latitude": latitude, "longitude": longitude}))


def meters(east, north, zone=0):
    columns = {"path": [f"{row}.jpg" for row in range(len(east))], "east": east, "north": north}
    zones = np.broadcast_to(np.int8(zone), len(east))
    return Catalogue(Path("images"), pa.table({**columns, "zone": zones, "heading": np.full(len(east), np.nan)}))


def cambridge():
    return np.linspace(52.2, 52.21, 321), np.linspace(0.11, 0.12, 321)


def test_three_images_of_cambridge_at_zero_are_named_and_change_nothing():
    latitude, longitude = cambridge()
    alone = extent_of(catalogue_of(latitude, longitude))
    extent = extent_of(catalogue_of(np.r_[latitude, 0, 0, 0], np.r_[longitude, 0, 0, 0]))
    assert list(extent.elsewhere) == [321, 322, 323]
    assert extent.elsewhere[321] == "it is at 0, 0, as if its position were unknown"
    assert extent.center == alone.center == pytest.approx((52.205, 0.115))
    assert extent.size_m == alone.size_m == pytest.approx((681.5, 1112), rel=1e-3)
    assert not alone.elsewhere
    assert extent.text == "center 52.20500, 0.11500; 681 m from west to east, 1.1 km from south to north"
    assert extent.map_link == "https://www.openstreetmap.org/?mlat=52.20500&mlon=0.11500#map=12/52.20500/0.11500"


def test_one_image_in_another_country_is_named_with_its_distance():
    latitude, longitude = cambridge()
    latitude[7] = 45.9
    extent = extent_of(catalogue_of(latitude, longitude))
    assert extent.elsewhere == {7: "it is 701 km from the middle of the others"}
    assert extent.size_m[1] < 1200


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        (np.r_[np.full(300, 52.2), np.full(30, 57.15)], np.r_[np.full(300, 0.1), np.full(30, -2.1)]),  # two cities
        (np.linspace(42, 51, 200), np.linspace(-3, 7, 200)),  # a country
        (np.linspace(-0.01, 0.01, 50), np.linspace(6, 6.01, 50)),  # both sides of the equator
        (np.full(50, -16.8), np.r_[np.full(25, 179.999), np.full(25, -179.999)]),
    ],
)
def test_sets_that_are_wide_but_right_have_nothing_elsewhere(latitude, longitude):
    assert not extent_of(catalogue_of(latitude, longitude)).elsewhere


def test_a_local_map_has_a_size_and_its_origin_is_a_place():
    extent = extent_of(meters(np.linspace(-50, 50, 11), np.linspace(0, 0, 11)))
    assert (extent.center, extent.size_m, extent.elsewhere, extent.map_link) == (None, (100, 0), {}, "")
    assert extent.text.startswith("center unknown; 100 m")


@pytest.mark.parametrize("zone", [0, 23])
def test_zeros_among_utm_are_named(zone):
    extent = extent_of(meters(np.r_[np.full(20, 333_287.0), 0, 0], np.r_[np.full(20, 7_394_588.0), 0, 0], zone))
    assert extent.elsewhere == dict.fromkeys((20, 21), "it is at 0, 0, as if its position were unknown")


def test_positions_that_say_nothing_have_no_extent():
    assert extent_of(meters(np.full(3, np.nan), np.full(3, np.nan))) is None
    zones = build_catalogue(Path("images"), ["@500000@4000000@10@.jpg", "@500000@4000000@11@.jpg"])
    assert extent_of(zones) is None
