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
        ("photo.jpg", ["'photo.jpg'", "field 1 (east)", "number of meters", "got ''"]),
        ("@1@2.jpg", ["field 2 (north)"]),  # the extension is no field
        ("@x@2@.jpg", ["field 1 (east)", "got 'x'"]),
        ("@1@nan@@.jpg", ["field 2 (north)", "got 'nan'"]),
        ("@1@inf@@.jpg", ["field 2 (north)", "got 'inf'"]),
        ("a/@1e18@2@.jpg", ["'a/@1e18@2@.jpg'", "field 1 (east)", "a number of meters, at most 10^8, got '1e18'"]),
        ("@1@-1e300@.jpg", ["field 2 (north)", "got '-1e300'"]),
        ("a/@1@b@.jpg", ["'a/@1@b@.jpg'", "field 2 (north)", "got 'b'"]),  # the path from the folder
        (
            "front@0001@.jpg",
            ["field 2 (north)", "got ''", "`progeo dataset import table` and `progeo dataset import photos`"],
        ),
        ("@@1@2@.jpg", ["field 1 (east)", "got ''"]),
        ("@1@2\n@.jpg", ["'@1@2\\n@.jpg' has a line break in it"]),
        ("@1@2@.jpg\n" + SF, ["has a line break in it"]),
        ("a/@1@2@front\r@.jpg", ["'a/@1@2@front\\r@.jpg' has a line break in it"]),
    ],
)
def test_a_name_outside_the_convention_is_refused_with_file_field_and_expectation(name, words):
    with pytest.raises(ValueError) as error:
        parse_names([SF, name])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("text", "zone", "number"),
    [
        ("", 0, np.nan),
        ("front_0001", 0, np.nan),
        ("0007", 0, 7),  # a frame, not a zone of two digits
        ("7", 7, 7),
        ("07", 7, 7),
        ("60", 60, 60),
        ("10.0", 10, 10),
        (" 10\t", 10, 10),
        ("0", 0, 0),
        ("00", 0, 0),
        ("61", 0, 61),
        ("100", 0, 100),
        ("10.5", 0, 10.5),
        ("-1", 0, -1),
        ("+5", 0, 5),
        ("10S", 0, np.nan),
        ("1e1", 0, 10),
        (".5", 0, 0.5),
        ("1e", 0, np.nan),
        ("1,5", 0, np.nan),
        ("1_0", 0, np.nan),
        ("0x10", 0, np.nan),
        ("inf", 0, np.nan),
        ("-Infinity", 0, np.nan),
        ("1e999", 0, np.nan),
        ("-1e300", 0, np.nan),
        ("nan", 0, np.nan),
        ("\u0663", 0, np.nan),  # a digit, but not of ours
        ('"10', 0, np.nan),
        ("caf\u00e9 'au lait'", 0, np.nan),
        ("\\N", 0, np.nan),
        ("#", 0, np.nan),
    ],
)
def test_free_text_in_any_field_leaves_that_one_absent_and_all_others_as_they_are(text, zone, number):
    fields = ["1.5", "2", "10", "S", "3", "4", "p", "t", "5", "6", "7", "8", "9", "n"]
    names = [f"d@3/@{'@'.join([*fields[:at], text, *fields[at + 1 :]])}@.jpg" for at in range(2, len(fields))]
    for cut in (names, [names[0]], [*names, BARE, "@1.5@2@.jpg"]):  # alike, alone and among others
        parsed = parse_names(cut)
        for row, name in enumerate(cut[: len(names)]):
            expected = dict(zip(FIELDS, fields, strict=True))
            changed = FIELDS[row + 2]
            for field in FIELDS:
                value = getattr(parsed, field)[row]
                if field in ("letter", "pano_id", "tile", "timestamp", "note"):
                    assert value == (text if field == changed else expected[field]), name
                elif field == changed:
                    np.testing.assert_equal(value, zone if field == "zone" else number, err_msg=name)
                else:
                    assert value == float(expected[field]), name


def test_what_does_not_parse_is_said_once_for_each_field_with_a_count_and_an_example(caplog):
    names = [f"a/@1@2@front_{row:04}@S@37@-122@@@{'left' if row == 3 else row}@.jpg" for row in range(5)]
    parse_names([*names, SF, BARE])
    assert [record.getMessage() for record in caplog.records] == [
        "names: 5 of them have something else than a UTM zone from 1 to 60 in field 3 (zone), absent there, for "
        "example 'front_0000' in 'a/@1@2@front_0000@S@37@-122@@@0@.jpg'",
        "names: 1 of them have something else than a number of degrees clockwise from north in field 9 (heading), "
        "absent there, for example 'left' in 'a/@1@2@front_0003@S@37@-122@@@left@.jpg'",
    ]


def test_names_of_the_convention_are_parsed_without_a_word(caplog):
    parse_names([SF, BARE, "@1@2@.jpg", "@1@2@@nan@.jpg"])
    assert not caplog.records


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
