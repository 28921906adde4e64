import numpy as np
import pytest
from running import build_catalogue

from progeo.places.catalogue import Catalogue
from progeo.places.filename import parse_names
from progeo.places.view_names import panorama_fields, views_of

NAME = "@545981.19@4184971.70@10@S@37.81098@-122.47762@{}@@{}@@@3.5@201408@sunny@.jpg"


def test_views_look_around_from_north_and_keep_what_is_known(tmp_path):
    catalogue = build_catalogue(tmp_path, [NAME.format("other", 0), NAME.format("rtCs5-P_9", 174)])
    names, turns = views_of(panorama_fields(catalogue), 1, 8)
    fields = parse_names(names)
    assert fields.heading.tolist() == [0, 45, 90, 135, 180, 225, 270, 315]
    assert turns.tolist() == [-174, -129, -84, -39, 6, 51, 96, 141]
    assert fields.tile.tolist() == ["00", "01", "02", "03", "04", "05", "06", "07"]
    for field, value in {
        "east": 545981.19,
        "north": 4184971.7,
        "zone": 10,
        "letter": "S",
        "pano_id": "rtCs5-P_9",
    }.items():
        assert getattr(fields, field).tolist() == [value] * 8
    assert fields.latitude == pytest.approx([37.81098] * 8, abs=1e-4)
    assert fields.longitude == pytest.approx([-122.47762] * 8, abs=1e-4)
    assert (fields.pitch[0], fields.height[0], fields.timestamp[0], fields.note[0]) == (0, 3.5, "201408", "sunny")


def test_views_of_a_panorama_without_heading_have_none_and_begin_at_its_center(tmp_path):
    names, turns = views_of(panorama_fields(build_catalogue(tmp_path, [NAME.format("a", "")])), 0, 3)
    assert turns.tolist() == [0, 120, 240]
    assert np.isnan(parse_names(names).heading).all()
    assert len(set(names)) == 3


def test_a_catalogue_without_the_standard_names_gives_degrees_and_the_name_of_the_file(tmp_path):
    named = build_catalogue(tmp_path, ["@334873.1@6252266.8@56@.jpg"]).table
    columns = {"path": ["day 1/PANO@7.jpg"], "latitude": [-33.8568], "longitude": [151.2153], "heading": [90.0]}
    for name, values in columns.items():
        named = named.drop_columns(name) if name in named.column_names else named
        named = named.append_column(name, [values])
    fields = parse_names(views_of(panorama_fields(Catalogue(tmp_path, named)), 0, 4)[0])
    assert (fields.pano_id[0], fields.letter[0]) == ("PANO_7", "H")
    assert (fields.latitude[0], fields.longitude[0]) == (-33.8568, 151.2153)


def test_the_letter_of_views_is_that_of_the_band(tmp_path):
    catalogue = build_catalogue(tmp_path, ["@333287@7394588@23@s@.jpg", "@333287@7394588@23@market@.jpg"])
    assert panorama_fields(catalogue).letter.tolist() == ["K", "market"]


def test_panoramas_that_cannot_be_named_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds two panoramas a at the same position"):
        panorama_fields(build_catalogue(tmp_path, [NAME.format("a", 0), NAME.format("b", 0), NAME.format("a", 9)]))
    within_a_centimeter = [f"@1.00{digit}@2@10@S@@@a@@{digit}@.jpg" for digit in (1, 2)]
    with pytest.raises(ValueError, match="holds two panoramas a at the same position"):
        panorama_fields(build_catalogue(tmp_path, within_a_centimeter))
    table = build_catalogue(tmp_path, [NAME.format("a", 0)]).table
    nowhere = table.set_column(table.column_names.index("east"), "east", [[float("nan")]])
    with pytest.raises(ValueError, match=r"sunny@\.jpg has no position"):
        panorama_fields(Catalogue(tmp_path, nowhere))
