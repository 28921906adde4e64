"""GSV-Cities from its tables, written here as they are downloaded."""

import numpy as np
import pytest
import utm

from progeo.cli import main
from progeo.datasets.readers.gsv_cities import read_gsv_cities
from progeo.places.catalogue import read_catalogue
from progeo.places.geographic import positions_m

HEADER = "place_id,year,month,northdeg,city_id,lat,lon,panoid"
LONDON = [
    (0, 2018, 5, 7, 51.5, -0.1275, "a_b-C"),
    (0, 2012, 11, 360, 51.50001, -0.1275, "A_b-C"),
    (12, 2015, 1, 90, 51.6, -0.12, "d"),
]
BOSTON = [(12, 2017, 9, 123, 42.36, -71.0625, "e"), (12, 2008, 7, 124, 42.36, -71.06251, "f")]


def write_city(root, city, rows, ending):
    images = root / "Images" / city
    images.mkdir(parents=True)
    (root / "Dataframes").mkdir(exist_ok=True)
    lines = [HEADER]
    for place, year, month, heading, latitude, longitude, panorama in rows:
        lines.append(f"{place},{year},{month},{heading},{city},{latitude},{longitude},{panorama}")
        name = f"{city}_{place:07d}_{year}_{month:02d}_{heading:03d}_{latitude}_{longitude}_{panorama}{ending}"
        (images / name).touch()
    (root / "Dataframes" / f"{city}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    write_city(tmp_path / "gsv", "London", LONDON, ".JPG")
    write_city(tmp_path / "gsv", "Boston", BOSTON, ".jpg")
    return tmp_path / "gsv"


def test_images_have_places_of_their_city_conditions_headings_and_positions(root, tmp_path):
    arguments = ["--cities", "London", "Boston", "--min_images", "1", "--out", str(tmp_path / "train")]
    main(["dataset", "import", "gsv-cities", str(root), *arguments])
    assert {each.name for each in tmp_path.iterdir()} == {"gsv", "train.arrow"}
    catalogue = read_catalogue(tmp_path / "train")
    assert all(catalogue.path(row).is_file() for row in range(5))
    assert catalogue.path(1).name == "London_0000000_2012_11_360_51.50001_-0.1275_A_b-C.JPG"
    places = ["London/0000000"] * 2 + ["London/0000012"] + ["Boston/0000012"] * 2
    assert catalogue.places.to_pylist() == places
    assert catalogue.conditions.tolist() == ["2018-05", "2012-11", "2015-01", "2017-09", "2008-07"]
    assert catalogue.heading.tolist() == [7, 0, 90, 123, 124]
    assert catalogue.zone.tolist() == [30] * 3 + [19] * 2
    expected = [utm.from_latlon(*row[4:6])[:2] for row in LONDON + BOSTON]
    np.testing.assert_allclose(np.stack([catalogue.east, catalogue.north], axis=1), expected, atol=1e-6)
    (together,) = positions_m(catalogue)
    assert np.hypot(*(together[2] - together[3])) > 1e6


@pytest.mark.parametrize(("cities", "min_images", "count"), [((), 2, 4), (("London",), 2, 2), (("London",), 1, 3)])
def test_cities_and_places_with_enough_images_are_chosen(root, cities, min_images, count):
    assert len(read_gsv_cities(root, cities, min_images=min_images)) == count


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cities": ["London", "Rome", "Osaka"]}, "holds no table Rome, Osaka; cities in it: Boston, London"),
        ({"min_images": 3}, "No place of .*gsv has `min_images` 3 images, one has 2"),
        ({"text": ("51.5,", ",")}, r"London\.csv: row 1 has no lat"),
        ({"text": ("51.5,", "north,")}, r"London\.csv: the column lat must hold numbers"),
        ({"text": ("51.5,", "95,")}, r"1 of 3 images of .*London\.csv are not in .*, the first is London/London_"),
        ({"text": ("northdeg", "north")}, r"London\.csv has no column northdeg; it has place_id, year, month, north"),
        ({"content": f"{HEADER}\n"}, r"London\.csv has no lines of images: omit its city"),
        ({"city_id": "Rome"}, r"There is no folder .*Images/Rome: choose the cities that are there with `cities`"),
    ],
)
def test_what_does_not_fit_together_is_refused(root, change, words):
    file = root / "Dataframes/London.csv"
    if "text" in change:
        file.write_text(file.read_text().replace(*change.pop("text"), 1))
    if "content" in change:
        file.write_text(change.pop("content"))
    if "city_id" in change:
        file.write_text(file.read_text().replace("London", change.pop("city_id")))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_gsv_cities(root, **{"min_images": 1, **change})
