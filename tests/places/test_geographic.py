import numpy as np
import pyarrow as pa
import pytest
import utm
from running import build_catalogue

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import Hemisphere, degrees_of_utm, project
from progeo.places.geographic import degrees_of, hemispheres_of


def test_utm_comes_back_to_the_degrees_it_was_made_of():
    latitude, longitude = np.array([37.77, 37.8, 37.7]), np.array([-122.42, -122.5, -122.3])
    positions = project(latitude, longitude)
    zone, southern = np.full(3, positions.zone), np.zeros(3, bool)
    found = degrees_of_utm(positions.east, positions.north, zone, southern)
    np.testing.assert_allclose(found, [latitude, longitude], atol=1e-8)


def test_zones_and_hemispheres_are_told_apart_and_no_zone_is_no_place():
    east, north = np.array([500_000.0, 600_000.0, 500_000.0, 1.0]), np.array([4e6, 4e6, 6e6, 2.0])
    zone, southern = np.array([10, 31, 56, 0]), np.array([False, False, True, False])
    found = degrees_of_utm(east, north, zone, southern)
    for row in range(3):
        expected = utm.to_latlon(east[row], north[row], int(zone[row]), northern=not southern[row])
        np.testing.assert_allclose(found[:, row], expected, atol=1e-9)
    assert np.isnan(found[:, 3]).all()


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("@500000@4000000@10@S@36.1@-123.2@.jpg", utm.to_latlon(500_000, 4_000_000, 10, northern=True)),  # finer
        ("@500000@6000000@56@@-36.1@150.2@.jpg", utm.to_latlon(500_000, 6_000_000, 56, northern=False)),
        ("@500000@4000000@@@36.1@-123.2@.jpg", (36.1, -123.2)),
        ("@500000@4000000@10@S@.jpg", utm.to_latlon(500_000, 4_000_000, 10, northern=True)),
        ("@500000@6000000@56@H@.jpg", utm.to_latlon(500_000, 6_000_000, 56, northern=False)),
        ("@500000@6000000@56@h@.jpg", utm.to_latlon(500_000, 6_000_000, 56, northern=False)),
        ("@500000@4000000@10@.jpg", (np.nan, np.nan)),  # 36 N or 54 S
        ("@500000@9500000@10@.jpg", utm.to_latlon(500_000, 9_500_000, 10, northern=False)),  # beyond 84 N
        ("@500000@4000000@10@T@.jpg", (np.nan, np.nan)),  # T begins at 40 N
        ("@500000@4000000@10@K@36.1@-123.2@.jpg", (36.1, -123.2)),  # what contradicts itself is not taken
        ("@500000@4000000@.jpg", (np.nan, np.nan)),
        ("@500000@4000000@10@S@0.00000@0.00000@.jpg", utm.to_latlon(500_000, 4_000_000, 10, northern=True)),
        ("@500000@4000000@10@S@136.1@-123.2@.jpg", utm.to_latlon(500_000, 4_000_000, 10, northern=True)),
        ("@500000@4000000@@@0@0@.jpg", (np.nan, np.nan)),
        ("@4000000@500000@10@.jpg", (np.nan, np.nan)),  # no zone is 8000 km wide
    ],
)
def test_names_say_degrees_or_what_they_follow_from(name, degrees, tmp_path):
    np.testing.assert_allclose(degrees_of(build_catalogue(tmp_path, [f"some/{name}"]))[:, 0], degrees, atol=1e-9)


def test_degrees_that_were_read_are_kept(tmp_path):
    columns = {"path": ["a.jpg"], "east": [0.0], "north": [0.0], "zone": [10], "heading": [0.0]}
    catalogue = Catalogue(tmp_path, pa.table({**columns, "latitude": [37.5], "longitude": [-122.5]}))
    assert degrees_of(catalogue).tolist() == [[37.5], [-122.5]]


def test_degrees_that_were_read_tell_the_hemisphere(tmp_path):
    columns = {"path": ["a.jpg"], "east": [372_000.0], "north": [4_108_000.0], "zone": [19], "heading": [0.0]}
    catalogue = Catalogue(tmp_path, pa.table({**columns, "latitude": [-53.162], "longitude": [-70.915]}))
    assert hemispheres_of(catalogue).tolist() == [Hemisphere.SOUTHERN]
