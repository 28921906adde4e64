"""Frames tell what the meters of `positions_m` are: they lead back to UTM coordinates and degrees."""

import numpy as np
import pyarrow as pa
import pytest
import utm
from running import build_catalogue

from progeo.places.catalogue import Catalogue
from progeo.places.geographic import Frame, degrees_of, frame_of, positions_m


def table_of(folder, degrees, *, zones=None):
    """A catalogue with latitude and longitude, and UTM coordinates each in its own zone."""
    columns = [utm.from_latlon(*each) for each in degrees]
    return Catalogue(
        folder,
        pa.table(
            {
                "path": pa.array([f"{row}.jpg" for row in range(len(degrees))], pa.large_string()),
                "east": [east for east, *_ in columns],
                "north": [north for _, north, *_ in columns],
                "zone": pa.array([zone for _, _, zone, _ in columns] if zones is None else zones, pa.int8()),
                "heading": np.full(len(degrees), np.nan),
                **dict(zip(("latitude", "longitude"), np.array(degrees, float).T, strict=True)),
            }
        ),
    )


NAMES = {
    "north": (["@549120@4180920@10@S@.jpg", "@549150@4180920@10@S@.jpg"], Frame(10, "north")),
    "south": (["@500000@6000000@56@H@.jpg", "@510000@6010000@56@H@.jpg"], Frame(56, "south")),
    "unknown hemisphere": (["@500000@4000000@10@.jpg"], Frame(10, None)),
    "unknown zone": (["@500000@4000000@@N@.jpg"], Frame(0, "north")),
    "several zones": (
        ["@549120@4180920@10@S@.jpg", "@320000@5790000@31@U@.jpg", "@640000@5790000@33@U@.jpg"],
        Frame(0, "north", several_zones=True),
    ),
    "several zones of the south": (
        ["@500000@6000000@56@H@.jpg", "@320000@5300000@60@G@.jpg"],
        Frame(0, "south", several_zones=True),
    ),
    "several zones on both sides of the equator": (
        ["@549120@4180920@10@S@.jpg", "@333700@6252600@56@H@.jpg", "@334000@6190000@54@U@.jpg"],
        Frame(0, "both", several_zones=True),
    ),
    "the whole south": (
        ["@500000@3300000@20@E@.jpg", "@500000@9400000@20@M@.jpg"],
        Frame(20, "both"),
    ),
    "equator": (["@500000@9990000@31@M@.jpg", "@500000@10000@31@N@.jpg"], Frame(31, "both")),
    "equator and several zones": (
        ["@500000@9990000@31@M@.jpg", "@500000@10000@31@N@.jpg", "@200000@9990000@32@M@.jpg"],
        Frame(0, "both", several_zones=True),
    ),
    "several zones of hemispheres whose northings are alike": (
        ["@500000@6000000@31@U@.jpg", "@500000@6001000@34@H@.jpg", "@500000@6001000@33@U@.jpg"],
        Frame(0, "both", several_zones=True),
    ),
    "one of several zones in both hemispheres": (
        ["@500000@6000000@31@U@.jpg", "@500000@6001000@34@H@.jpg", "@500000@6001000@34@U@.jpg"],
        Frame(0, "both", several_zones=True),
    ),
    "hemispheres whose northings are alike": (
        ["@500000@6000000@31@H@.jpg", "@500000@6001000@31@U@.jpg"],
        Frame(31, None),
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_positions_lead_back_to_the_coordinates_in_names(kind, tmp_path):
    names, expected = NAMES[kind]
    catalogue = build_catalogue(tmp_path, names)
    frame = frame_of(catalogue)
    assert frame == expected
    (positions,) = positions_m(catalogue)
    columns = frame.columns(positions)
    for name in ("east", "north", "zone"):
        np.testing.assert_array_equal(columns[name], catalogue.table[name].to_numpy())
    assert columns["zone"].dtype == np.int8
    degrees = np.stack([columns["latitude"], columns["longitude"]])
    known = frame.hemisphere is not None and kind != "unknown zone"
    np.testing.assert_array_equal(degrees, degrees_of(catalogue) if known else np.full_like(degrees, np.nan))


TOWNS = {
    "one zone": ([(52.203, 0.114), (52.210, 0.120)], Frame(31, "north")),
    "a border of zones": ([(52.0, 5.98), (52.0, 5.99), (52.0, 6.01)], Frame(31, "north")),
    "a border of zones in the south": ([(-33.0, 149.99), (-33.0, 150.01), (-33.0, 150.02)], Frame(56, "south")),
    "the equator and a border": ([(-0.02, 5.99), (-0.01, 6.01), (0.03, 6.02)], Frame(32, "south")),
    "the date line": ([(-17.0, 179.99), (-17.0, -179.99), (-17.0, -179.98)], Frame(1, "south")),
}


@pytest.mark.parametrize("town", TOWNS)
def test_positions_lead_back_to_degrees_that_were_read(town, tmp_path):
    degrees, expected = TOWNS[town]
    catalogue = table_of(tmp_path, degrees)
    frame = frame_of(catalogue)
    assert frame == expected
    columns = frame.columns(*positions_m(catalogue))
    assert set(columns["zone"]) == {frame.zone}
    found = np.stack([columns["latitude"], columns["longitude"]], axis=1)
    turns = (found - np.array(degrees))[:, 1].round() / 360
    assert np.array_equal(turns, turns.round())
    found[:, 1] -= 360 * turns
    np.testing.assert_allclose(found, degrees, atol=1e-8)


def test_every_zone_of_both_hemispheres_leads_back_to_its_degrees():
    random = np.random.default_rng(0)
    for zone in range(1, 61):
        for hemisphere, sign in (("north", 1), ("south", -1)):
            latitude = sign * random.uniform(0.5, 79, 20)
            longitude = 6 * zone - 183 + random.uniform(-2.9, 2.9, 20)
            east, north, _, _ = utm.from_latlon(
                latitude, longitude, force_zone_number=zone, force_northern=hemisphere == "north"
            )
            columns = Frame(zone, hemisphere).columns(np.stack([east, north], axis=1))
            np.testing.assert_allclose(columns["latitude"], latitude, atol=1e-7)
            np.testing.assert_allclose(columns["longitude"], longitude, atol=1e-7)


def test_no_positions_are_no_rows():
    assert [len(column) for column in Frame(10, "north").columns(np.empty((0, 2))).values()] == [0] * 5
