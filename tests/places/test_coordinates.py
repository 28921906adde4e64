"""Which side of the equator UTM positions are on, and which places stand apart."""

import numpy as np
import pytest
from running import build_catalogue

from progeo.places.coordinates import (
    Hemisphere,
    band_letters,
    check_degrees,
    few_that_fit_no_zone,
    hemispheres,
    outliers,
    swapped,
)
from progeo.places.geographic import positions_m

NORTH, SOUTH, UNKNOWN, NEITHER = Hemisphere
SAO_PAULO, SAN_FRANCISCO, PUNTA_ARENAS, BEIJING = 7_394_588, 4_180_000, 4_108_000, 4_440_000


@pytest.mark.parametrize(
    ("north", "letters", "latitude", "expected"),
    [
        (SAO_PAULO, ["K"], None, SOUTH),
        (SAO_PAULO, ["k"], None, SOUTH),
        (SAO_PAULO, [" k "], None, SOUTH),
        (SAO_PAULO, ["S"], None, SOUTH),  # band S is 32 to 40 N, which 66.6 N is not in
        (SAO_PAULO, ["Southern"], None, SOUTH),
        (SAO_PAULO, ["K", "south"], None, SOUTH),
        (SAO_PAULO, [""], -23.55, SOUTH),
        (SAO_PAULO, ["W"], None, NORTH),
        (SAO_PAULO, ["n"], None, NORTH),  # band N is 0 to 8 N
        (SAO_PAULO, ["north"], None, NORTH),
        (SAO_PAULO, [], 66.62, NORTH),
        (SAO_PAULO, [], None, UNKNOWN),
        (SAO_PAULO, ["x1", "east", "I", "O", "A"], np.nan, UNKNOWN),
        (SAO_PAULO, ["U"], None, NEITHER),  # 48 to 56 N
        (SAO_PAULO, ["K", "north"], None, NEITHER),
        (SAO_PAULO, ["K"], 66.62, NEITHER),
        (SAO_PAULO, [], 10.0, NEITHER),
        (SAN_FRANCISCO, ["S"], None, NORTH),
        (SAN_FRANCISCO, ["s"], 37.77, NORTH),
        (SAN_FRANCISCO, ["T"], None, NEITHER),
        (SAN_FRANCISCO, ["K"], None, NEITHER),
        (PUNTA_ARENAS, ["S", "south"], None, SOUTH),  # as well band S as a hemisphere
        (PUNTA_ARENAS, ["S"], -53.16, SOUTH),
        (PUNTA_ARENAS, ["F"], None, SOUTH),
        (BEIJING, ["S"], None, NORTH),  # 40.1 N, in a city whose rows all have its letter
        (9_400_000, [], None, SOUTH),  # beyond 84 N
        (9_400_000, ["N"], None, NEITHER),
        (900_000, [], None, NORTH),  # beyond 80 S
        (900_000, ["P"], None, NORTH),
        (900_000, ["M"], None, NEITHER),
        (-110, ["M"], None, NORTH),  # south of the equator in a set measured from the north
        (10_000_110, ["N"], None, SOUTH),
        (9_999_890, ["M"], None, SOUTH),
        (-110, [], -0.001, NORTH),
        (-110, [], None, NORTH),  # no southern origin gives that
        (10_000_110, [], None, SOUTH),
        (10_000_110, ["south"], None, SOUTH),  # a word for a whole city at the equator
        (-110, ["north"], None, NORTH),
        (12_000_000, [], None, UNKNOWN),
        (20_000_000, [], None, UNKNOWN),
    ],
)
def test_letters_words_latitude_and_northing_tell_the_hemisphere(north, letters, latitude, expected):
    columns = [np.array([letter]) for letter in letters]
    given = None if latitude is None else np.array([latitude])
    assert hemispheres(np.array([float(north)]), letters=columns, latitude=given).tolist() == [expected]


def test_a_column_whose_letters_n_and_s_cannot_be_bands_has_hemispheres():
    santiago, quito = 6_296_000.0, 9_979_000.0
    chile = np.array([santiago, PUNTA_ARENAS, santiago])
    assert hemispheres(chile, letters=[np.array(["S", "s", "S"])]).tolist() == [SOUTH] * 3
    assert hemispheres(chile, letters=[np.array(["H", "S", "H"])]).tolist() == [SOUTH, NORTH, SOUTH]
    pacific = np.array([SAN_FRANCISCO, PUNTA_ARENAS, quito])
    assert hemispheres(pacific, letters=[np.array(["N", "S", "S"])]).tolist() == [NORTH, SOUTH, SOUTH]
    assert hemispheres(pacific[:2], letters=[np.array(["N", "S"])]).tolist() == [NORTH, SOUTH]
    bands = np.array([SAN_FRANCISCO] * 300 + [SAO_PAULO])  # one mistake makes no hemispheres of bands
    assert hemispheres(bands, letters=[np.full(301, "S")]).tolist() == [NORTH] * 300 + [SOUTH]


def test_each_band_has_its_letter():
    latitude = np.array([-80, -72.1, -72, -0.1, 0, 7.9, 32, 37.8, 40, 71.9, 72, 84, 85, np.nan])
    assert "".join(letter or "-" for letter in band_letters(latitude)) == "CCDMNNSSTWXX--"


def test_a_few_places_far_from_all_others_are_outliers_and_another_city_is_none():
    street, town = np.full(300, 2_000.0), np.full(30, 500_000.0)
    assert outliers(np.r_[street, [5e6, 9e4]]).nonzero()[0].tolist() == [300]  # 90 km is a trip
    assert not outliers(np.r_[street, town]).any()
    country = np.linspace(0, 800_000, 300)
    assert not outliers(country).any()
    assert not outliers(np.array([10.0, 10.0, 5e6])).any()  # of three, one is no mistake


def test_images_at_zero_keep_nobody_from_being_measured_however_many_they_are():
    latitude, longitude = np.r_[np.full(20, 37.77), np.zeros(15)], np.r_[np.full(20, -122.4), np.zeros(15)]
    assert few_that_fit_no_zone(latitude, longitude).nonzero()[0].tolist() == list(range(20, 35))
    assert not few_that_fit_no_zone(np.full(35, 50.0), np.r_[np.zeros(20), np.full(15, 90.0)]).any()


@pytest.mark.parametrize(
    ("latitude", "longitude", "advice"),
    [(-122.4, 37.8, "right way round"), (37.8, 237.6, "of WGS 84"), (-9999.0, -9999.0, "none where .* unknown")],
)
def test_degrees_out_of_range_are_refused_with_advice_that_fits(latitude, longitude, advice):
    with pytest.raises(ValueError, match=rf"^Image 1: its (latitude|longitude) must be .*{advice}"):
        check_degrees(np.array([latitude]), np.array([longitude]))


def test_rows_that_only_fit_the_others_swapped_are_swapped():
    latitude, longitude = np.full(20, 52.2), np.linspace(0.1, 0.2, 20)
    latitude[[3, 7]], longitude[[3, 7]] = longitude[[3, 7]], latitude[[3, 7]]
    assert swapped(latitude, longitude).nonzero()[0].tolist() == [3, 7]
    latitude[3], longitude[3] = 10.0, 20.0  # elsewhere both ways
    latitude[5] = np.nan
    assert swapped(latitude, longitude).nonzero()[0].tolist() == [7]


def test_a_set_on_both_sides_of_the_equator_is_one(tmp_path):
    here, there = (build_catalogue(tmp_path, [name]) for name in ("@166100@110@31@N@.jpg", "@166100@9999890@31@M@.jpg"))
    assert np.linalg.norm(np.subtract(*positions_m(here, there))) == 220
    assert positions_m(there)[0].tolist() == [[166100, 9999890]]
    nameless = build_catalogue(tmp_path, ["@166100@4000000@31@@.jpg"])  # on which side nobody knows
    assert positions_m(there, nameless)[0].tolist() == [[166100, 9999890]]
