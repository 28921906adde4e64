import dataclasses

import numpy as np
import pytest

from progeo.places.filename import FIELDS, format_names, parse_names

SF = "@0544051.13@4174858.97@10@S@037.71993@-122.50016@i7EdfG0z_REmaQLe33euHg@@60@@@@201501@@.jpg"
BARE = "@0302900.37@5787491.35@31@U@052.20258@0000.11560@cam1006@@@@@@@@.png"


def test_every_field_of_a_full_name_is_read():
    parsed = parse_names([SF])
    values = {field: getattr(parsed, field)[0] for field in FIELDS}
    numbers = {"east": 544051.13, "north": 4174858.97, "zone": 10, "latitude": 37.71993, "longitude": -122.50016}
    assert {name: values[name] for name in numbers} == numbers
    assert (values["letter"], values["pano_id"], values["timestamp"]) == ("S", "i7EdfG0z_REmaQLe33euHg", "201501")
    assert values["heading"] == 60
    assert np.isnan([values["pitch"], values["roll"], values["height"]]).all()
    assert (values["tile"], values["note"]) == ("", "")


@pytest.mark.parametrize(
    ("name", "east", "heading"),
    [
        (BARE, 302900.37, np.nan),  # heading left empty
        ("@1.5@2@.jpg", 1.5, np.nan),  # cut off behind the north
        ("@1.5@2@@@@@@@359.9@.jpg", 1.5, 359.9),  # cut off behind the heading
        ("@-1.5@2@10@S@@@@@-30@@@@@@.jpg", -1.5, -30),  # negative numbers
        ("@1.5@2@10@S@1@2@p@t@5@0@0@0@t@n@more@.jpg", 1.5, 5),  # more fields than there are
        ("a@9/@8@9@@@@@@@7@/@1.5@2@@@@@@@5@.jpg", 1.5, 5),  # only the file's own name counts, not its folders'
    ],
)
def test_absent_fields_are_absent_and_folders_are_not_read(name, east, heading):
    parsed = parse_names([name])
    assert parsed.east[0] == east
    np.testing.assert_equal(parsed.heading[0], heading)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder/", ["''", "field 1 (east)", "got ''"]),
        ("photo.jpg", ["'photo.jpg'", "field 1 (east)", "number of metres", "got ''"]),
        ("@1@2.jpg", ["field 2 (north)"]),  # the extension is no field
        ("@x@2@.jpg", ["field 1 (east)", "got 'x'"]),
        ("@1@nan@@.jpg", ["field 2 (north)", "got 'nan'"]),
        ("@1@inf@@.jpg", ["field 2 (north)", "got 'inf'"]),
        ("@1@2@61@.jpg", ["field 3 (zone)", "from 1 to 60", "got '61'"]),
        ("@1@2@10.5@.jpg", ["field 3 (zone)", "got '10.5'"]),
        ("@1@2\n@.jpg", ["'@1@2\\n@.jpg' has a line break in it"]),
        ("@1@2@.jpg\n" + SF, ["has a line break in it"]),
        ("@1@2@@@@@@@north@.jpg", ["field 9 (heading)", "degrees clockwise from north", "got 'north'"]),
    ],
)
def test_a_name_outside_the_convention_is_refused_with_file_field_and_expectation(name, words):
    with pytest.raises(ValueError) as error:
        parse_names([SF, name])
    assert all(word in str(error.value) for word in words)


def test_formatting_is_the_inverse_of_parsing():
    assert format_names(parse_names([SF, SF])) == [SF, SF]
    assert format_names(parse_names([BARE]), extension=".png") == [BARE]


def test_parsing_is_the_inverse_of_formatting_to_its_decimals():
    rng = np.random.default_rng(0)
    count = 500
    texts = np.array([f"x{i}" for i in range(count)])
    parsed = dataclasses.replace(
        parse_names([SF] * count),
        east=rng.uniform(100_000, 900_000, count),
        north=rng.uniform(0, 10_000_000, count),
        zone=rng.integers(1, 61, count).astype(np.int8),
        latitude=rng.uniform(-90, 90, count),
        longitude=rng.uniform(-180, 180, count),
        heading=np.where(rng.random(count) < 0.2, np.nan, rng.integers(0, 360, count)),
        pano_id=texts,
    )
    again = parse_names(format_names(parsed))
    for field, tolerance in {"east": 5.1e-3, "north": 5.1e-3, "latitude": 5.1e-6, "longitude": 5.1e-6}.items():
        np.testing.assert_allclose(getattr(again, field), getattr(parsed, field), atol=tolerance, rtol=0)
    np.testing.assert_array_equal(again.zone, parsed.zone)
    np.testing.assert_array_equal(again.heading, parsed.heading)
    np.testing.assert_array_equal(again.pano_id, parsed.pano_id)


def test_no_names_give_empty_columns():
    assert len(parse_names([]).east) == 0
