"""Other people's ground truth: every reader ends in the same catalogue; its files are written by the tests."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import scipy.io
import utm
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

import progeo
from progeo.datasets.readers.arrays import read_arrays
from progeo.datasets.readers.dbstruct import read_dbstruct
from progeo.datasets.readers.photos import read_photos
from progeo.datasets.readers.tables import read_table
from progeo.places.catalogue import read_catalogue
from progeo.places.coordinates import project
from progeo.places.geographic import degrees_of, link_images, links_to_images, positions_m

PLACES = [(52.20347, 0.11409, 90.0), (52.20557, 0.11421, 270.0), (52.20570, 0.11430, 359.5)]  # Cambridge


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.jpg")
    return folder


def write_csv(file, header, rows):
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_parquet(file, header, rows):
    pa_parquet.write_table(pa.table(dict(zip(header.split(","), zip(*rows, strict=True), strict=True))), file)


def write_geojson(file, header, rows):
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [row[2], row[1]]},
            "properties": {"path": row[0], "heading": row[3]},
        }
        for row in rows
    ]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.mark.parametrize(
    ("ending", "write"), [("csv", write_csv), ("parquet", write_parquet), ("geojson", write_geojson)]
)
def test_a_table_of_degrees_becomes_utm_in_one_zone(tmp_path, images, ending, write):
    file = tmp_path / f"places.{ending}"
    write(file, "path,latitude,longitude,heading", [(f"{i}.jpg", *place) for i, place in enumerate(PLACES)])
    catalogue = read_table(file, images)
    expected = [utm.from_latlon(latitude, longitude)[:2] for latitude, longitude, _ in PLACES]
    np.testing.assert_allclose(positions_m(catalogue)[0], expected, atol=1e-6)
    assert catalogue.zone.tolist() == [31] * 3
    assert catalogue.heading.tolist() == [90, 270, 359.5]
    assert all(catalogue.path(row).is_file() for row in range(3))


@pytest.mark.parametrize("path", ["Filename", "photo"])
def test_columns_may_have_other_names_and_meters_and_headings_may_be_missing(path, tmp_path, images):
    file = tmp_path / "places.csv"
    write_csv(file, f"{path},UTM_East,utm_north,Condition", [("0.jpg", 1.5, 2.5, "night"), ("1.jpg", 3, 4, "day")])
    catalogue = read_table(file, images)
    assert positions_m(catalogue)[0].tolist() == [[1.5, 2.5], [3, 4]]
    assert np.isnan(catalogue.heading).all()
    assert catalogue.table["condition"].to_pylist() == ["night", "day"]


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("latitude,longitude", [(1, 2)], "needs a column path; its first line names latitude, longitude"),
        ("path,latitude", [("0.jpg", 1)], r"no such pair. Say which .*`columns` latitude=NAME"),
        (
            "path,latitude,longitude",
            [("0.jpg", 1, 2), ("1.jpg", 122.4, 37.8)],
            "1.jpg, row 2: its latitude must be",
        ),
        ("path,latitude,longitude", [("0.jpg", 1, "")], "none of 1 rows has a position: 0.jpg, row 1 has no longitude"),
        ("path,latitude,longitude", [("0.jpg", "north", 2)], "the column latitude must hold decimal numbers"),
        (
            "path,east,north",
            [("0.jpg", 1, 2), ("9.jpg", 1, 2)],
            "1 of 2 images .* first is 9.jpg. `images` is",
        ),
        ("path,east,north", [("0.jpg", 1, "")], "row 1 has no north"),
        ("path,east,north", [("0.jpg", 1, 2), ("", 1, 2)], "row 2 has no path"),
        ("path,east,north,zone", [("0.jpg", 1, 2, 32610)], "row 1: zone must be from 1 to 60, got 32610"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, images, header, rows, words):
    write_csv(tmp_path / "places.csv", header, rows)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_table(tmp_path / "places.csv", images)


def test_a_set_across_a_border_of_zones_or_the_equator_is_measured_in_the_zone_of_its_middle():
    positions = project(np.array([0.001, 0.0, -0.001]), np.array([5.999, 5.9995, 6.001]))
    assert positions.zone == 31
    np.testing.assert_allclose(np.diff(positions.north), [-110.6, -110.6], atol=0.2)
    np.testing.assert_allclose(np.diff(positions.east), [55.7, 167.0], atol=0.3)


def test_a_set_across_180_degrees_has_no_jump():
    positions = project(np.zeros(3) + 10, np.array([179.999, -179.999, 179.9995]))
    assert abs(positions.east[0] - positions.east[1]) == pytest.approx(219, abs=1)


def test_cities_that_no_zone_fits_are_refused():
    with pytest.raises(
        ValueError, match=r"Image 3 is at longitude -74\.0, the middle of all at 2\.3.*Make one set of each"
    ):
        project(np.array([48.85, 48.86, 40.7]), np.array([2.3, 2.35, -74.0]))


def test_two_tables_on_either_side_of_a_border_are_measured_together(tmp_path, images):
    write_csv(tmp_path / "west.csv", "path,lat,lon", [("0.jpg", 50, 5.9999), ("1.jpg", 50, 5.9998)])
    write_csv(tmp_path / "east.csv", "path,lat,lon", [("2.jpg", 50, 6.0001)])
    west, east = read_table(tmp_path / "west.csv", images), read_table(tmp_path / "east.csv", images)
    assert (west.zone[0], east.zone[0]) == (31, 32)
    west_m, east_m = positions_m(west, east)
    np.testing.assert_allclose(np.linalg.norm(west_m - east_m, axis=1), [14.3, 21.5], atol=0.1)


def test_names_and_times_that_look_like_numbers_stay_as_they_are(tmp_path):
    for name in ("0001", "0002"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.jpg").rename(tmp_path / name)
    (tmp_path / "places.csv").write_bytes("\ufeffPath,east,north,Time\r\n0001,1,2,0920\r\n0002,3,4,1030\r\n".encode())
    catalogue = read_table(tmp_path / "places.csv", tmp_path)
    assert catalogue.table["path"].to_pylist() == ["0001", "0002"]
    assert catalogue.table["time"].to_pylist() == ["0920", "1030"]


def test_properties_that_the_first_feature_lacks_are_read_too(tmp_path, images):
    point = {"type": "Point", "coordinates": [0.1, 52.2]}
    features = [
        {"geometry": point, "properties": {"path": "0.jpg"}},
        {"geometry": point, "properties": {"path": "1.jpg", "heading": 45}},
    ]
    (tmp_path / "places.geojson").write_text(json.dumps({"features": features}))
    np.testing.assert_array_equal(read_table(tmp_path / "places.geojson", images).heading, [np.nan, 45])


def test_a_feature_without_a_geometry_is_skipped(tmp_path, images, caplog):
    point = {"type": "Point", "coordinates": [0.1, 52.2]}
    features = [{"geometry": geometry, "properties": {"path": f"{n}.jpg"}} for n, geometry in enumerate((None, point))]
    (tmp_path / "places.geojson").write_text(json.dumps({"features": features}))
    assert read_table(tmp_path / "places.geojson", images).table["path"].to_pylist() == ["1.jpg"]
    assert "skipped 1 of 2 rows without latitude and longitude, the first is 0.jpg, row 1" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "has no features"),
        ({"features": [{"geometry": {"type": "LineString"}}]}, "feature 1 must be a Point with a longitude"),
        ({"features": [{"geometry": {"type": "X", "coordinates": [0, 1]}}]}, "feature 1 must be a Point, got X"),
        ({"features": 5}, "has no features"),
        (
            {"features": [{"geometry": {"type": "Point", "coordinates": [10**400, 1]}}]},
            "feature 1 must be a Point with a longitude",
        ),
        (
            {
                "features": [
                    {
                        "geometry": {"type": "Point", "coordinates": [0, 1]},
                        "properties": {"path": "0.jpg", "condition": ["night"]},
                    }
                ]
            },
            "the column condition must hold texts",
        ),
        ({"features": ["Cambridge"]}, "feature 1 must be a Point with a longitude"),
        ({"features": [{"geometry": {"type": "Point", "coordinates": ["a", 1]}}]}, "feature 1 must be a Point with"),
        ({"features": [{"geometry": 0}]}, "feature 1 must be a Point with a longitude"),
        ({"features": [{"geometry": None, "properties": {"path": "0.jpg"}}]}, "none of 1 rows has a position"),
        ({"features": [{"geometry": {"type": "Point", "coordinates": [0, 0]}}]}, "needs a column path"),
    ],
)
def test_geojson_that_cannot_be_used_is_refused(tmp_path, images, content, words):
    (tmp_path / "places.geojson").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / "places.geojson", images)


def photograph(file, latitude, longitude, heading=None, time=None):
    def parts(value):
        value = abs(value)
        return int(value), int(value * 60 % 60), round(value * 3600 % 60, 6)

    exif = Image.Exif()
    gps = {1: "N" if latitude >= 0 else "S", 2: parts(latitude), 3: "E" if longitude >= 0 else "W", 4: parts(longitude)}
    exif[0x8825] = gps if heading is None else {**gps, 16: "T", 17: heading}
    if time:
        exif[0x8769] = {0x9003: time}
    Image.new("RGB", (8, 8)).save(file, exif=exif)


def test_photos_tell_their_place_direction_and_time(tmp_path):
    photograph(tmp_path / "a.jpg", -33.8568, 151.2153, 12.5, "2024:05:06 07:08:09")
    photograph(tmp_path / "b.jpg", -33.8570, 151.2150)
    Image.new("RGB", (8, 8)).save(tmp_path / "without.jpg")
    exif = Image.Exif()
    exif[0x8825] = {2: (10, 0, 0), 4: (73, 0, 0)}  # east or west?
    Image.new("RGB", (8, 8)).save(tmp_path / "sideless.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    photos, skipped = read_photos(tmp_path)
    names = ("broken.jpg", "sideless.jpg", "without.jpg")
    reasons = ("it cannot be read", "it has no position", "it has no position")
    assert skipped == {tmp_path / name: reason for name, reason in zip(names, reasons, strict=True)}
    expected = [utm.from_latlon(-33.8568, 151.2153)[:2], utm.from_latlon(-33.8570, 151.2150)[:2]]
    np.testing.assert_allclose(positions_m(photos)[0], expected, atol=0.01)
    np.testing.assert_array_equal(photos.heading, [12.5, np.nan])
    assert photos.table["time"].to_pylist() == ["2024:05:06 07:08:09", ""]


def test_a_photo_above_the_pixel_limit_is_skipped_for_its_pixels(tmp_path, monkeypatch):
    photograph(tmp_path / "a.jpg", -33.8568, 151.2153)
    photograph(tmp_path / "b.jpg", -33.8570, 151.2150)
    with Image.open(tmp_path / "a.jpg") as photo:
        photo.resize((9, 8)).save(tmp_path / "a.jpg", exif=photo.getexif())
    monkeypatch.setenv("PROGEO_MAX_PIXELS", "64")
    photos, skipped = read_photos(tmp_path)
    too_large = "it has more than 64 pixels: scale it down, cut it into views, or allow more with --max_pixels"
    assert (len(photos), skipped) == (1, {tmp_path / "a.jpg": too_large})
    monkeypatch.setenv("PROGEO_MAX_PIXELS", "63")
    with pytest.raises(ValueError, match=r"None of the 2 .*; of .*/a\.jpg: it has more than 63 pixels: "):
        read_photos(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({1: " S", 3: "w"}, (-33.45, -70.66)),
        ({1: "South", 3: "West"}, (-33.45, -70.66)),
        ({1: "", 3: "W"}, None),
        ({1: "S", 3: "O"}, None),  # west in Romance languages, east in German
        ({1: "W", 3: "S"}, None),
        ({2: (33.45,), 4: (70, 39.6)}, (-33.45, -70.66)),
        ({2: (33, 27, 60)}, (-33 - 28 / 60, -70.66)),
        ({2: (33, 75, 0)}, None),
        ({2: (0, 0, 0), 4: (0, 0, 0)}, None),
        ({2: (IFDRational(33, 1), IFDRational(27, 1), IFDRational(0, 0))}, None),
    ],
)
def test_positions_of_photos_are_read_with_their_side_or_not_at_all(tmp_path, changes, expected):
    exif = Image.Exif()
    exif[0x8825] = {1: "S", 2: (33, 27, 0), 3: "W", 4: (70, 39, 36), **changes}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    photograph(tmp_path / "b.jpg", -33.4, -70.6)
    photos, skipped = read_photos(tmp_path)
    assert [*skipped] == ([] if expected else [tmp_path / "a.jpg"])
    if expected:
        np.testing.assert_allclose(degrees_of(photos)[:, 0], expected)


def test_one_photo_of_a_holiday_is_named_and_the_walk_is_read(tmp_path):
    for minute in range(10):
        photograph(tmp_path / f"{minute}.jpg", 45 + minute / 60, 107.7 if minute == 5 else 7.7)
    photos, skipped = read_photos(tmp_path)
    assert skipped == {tmp_path / "5.jpg": "it is too far from all others"}
    assert photos.table["path"].to_pylist() == [f"{minute}.jpg" for minute in range(10) if minute != 5]
    assert np.ptp(photos.north) == pytest.approx(9 * 1852, rel=0.01)  # minutes of latitude


def test_photos_of_two_cities_are_refused_with_the_first_of_the_other(tmp_path):
    for minute in range(6):
        photograph(tmp_path / f"{minute}.jpg", 45, 7.7 if minute < 4 else 107.7)
    with pytest.raises(ValueError, match=r"4\.jpg is at longitude 107\.7.*Make one set of each city"):
        read_photos(tmp_path)


def test_photos_without_any_place_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"None of the 1 photos .* says where it was taken"):
        read_photos(tmp_path)


STRUCT = {
    "dbImageFns": ["000/a.jpg", "001/b.jpg", "001/c.jpg"],
    "utmDb": np.array([[585001.5, 585002, 585003], [4476001, 4476002, 4476003.5]]),
    "qImageFns": ["q1.jpg", "q2.jpg"],
    "utmQ": np.array([[585001.0, 585009], [4476001, 4476009]]),
}
STAMPS = {"dbTimeStamp": np.array([[735234.25, 20130512, 2011]]), "qTimeStamp": np.array([[2012, 2013.25]])}


def save_v5(file, fields):
    cells = {
        name: np.array(value, dtype=object)[:, None] if isinstance(value, list) else value
        for name, value in fields.items()
    }
    scipy.io.savemat(file, {"dbStruct": cells})


def save_v73(file, fields):
    """As MATLAB does: matrices with their axes turned round, texts as numbers, cells as references."""
    with h5py.File(file, "w") as content:
        struct = content.create_group("dbStruct")
        for name, value in fields.items():
            if isinstance(value, list):
                references = np.empty((1, len(value)), h5py.ref_dtype)
                for index, text in enumerate(value):
                    codes = np.array([[ord(letter)] for letter in text], np.uint16)
                    references[0, index] = content.create_dataset(f"#refs#/{name}{index}", data=codes).ref
                struct.create_dataset(name, data=references)
            else:
                struct.create_dataset(name, data=value.T)


@pytest.fixture
def struct_images(tmp_path):
    for name in (*STRUCT["dbImageFns"], *STRUCT["qImageFns"]):
        path = tmp_path / "images" / name.replace("000/a.jpg", "000/a.png")  # Tokyo's names do not say .png
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("save", "turned", "stamps"),
    [(save_v5, False, {}), (save_v5, True, STAMPS), (save_v73, False, STAMPS), (save_v73, True, {})],
)
def test_a_dbstruct_of_either_format_gives_both_sides(tmp_path, struct_images, save, turned, stamps):
    fields = STRUCT | stamps
    if turned:
        fields = fields | {"utmDb": STRUCT["utmDb"].T}
    save(tmp_path / "pitts.mat", fields)
    sides = read_dbstruct(tmp_path / "pitts.mat", struct_images)
    assert sides["database"].table["path"].to_pylist() == ["000/a.png", "001/b.jpg", "001/c.jpg"]
    assert sides["queries"].table["path"].to_pylist() == ["q1.jpg", "q2.jpg"]
    assert sides["database"].table["panorama"].to_pylist() == ["a", "b", "c"]
    database_m, queries_m = positions_m(sides["database"], sides["queries"])
    assert database_m.tolist() == STRUCT["utmDb"].T.tolist()
    assert queries_m.tolist() == STRUCT["utmQ"].T.tolist()
    times = [side.table["time"].to_pylist() if stamps else None for side in sides.values()]
    assert times == ([["735234.25", "20130512", "2011"], ["2012", "2013.25"]] if stamps else [None, None])


def test_parts_of_one_panorama_of_a_dbstruct_keep_its_name(tmp_path):
    names = ["000/000042_pitch1_yaw3.jpg", "000/000042_pitch2_yaw24.jpg", "03814/-0A5bV5Czx_CX7ugJXQ3Yg_012_330.jpg"]
    for name in (*names, "00001.jpg", "IMG_2013_1011.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    save_v5(tmp_path / "pitts.mat", STRUCT | {"dbImageFns": names, "qImageFns": ["00001.jpg", "IMG_2013_1011.jpg"]})
    sides = read_dbstruct(tmp_path / "pitts.mat", tmp_path)
    assert sides["database"].table["panorama"].to_pylist() == ["000042", "000042", "-0A5bV5Czx_CX7ugJXQ3Yg"]
    assert sides["queries"].table["panorama"].to_pylist() == ["00001", "IMG_2013_1011"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"utmDb": STRUCT["utmDb"][:, :2]}, r"utmDb must be 2 x 3, as dbImageFns, got \(2, 2\)"),
        ({"dbImageFns": ["000/a.jpg", "001/b.jpg", "9.jpg"]}, "1 of 3 images are not in .*, the first is 9.jpg"),
        (
            {"dbImageFns": ["000/a.jpg", "001/b.jpg", "9" * 5000]},
            r"pitts\.mat: 1 of 3 images are not in .*, .* 9{200}\.$",
        ),
    ],
)
def test_a_dbstruct_that_does_not_fit_together_is_refused(tmp_path, struct_images, fields, words):
    save_v5(tmp_path / "pitts.mat", STRUCT | fields)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_dbstruct(tmp_path / "pitts.mat", struct_images)


def test_a_dbstruct_of_one_query_is_read(tmp_path, struct_images):
    save_v5(tmp_path / "one.mat", STRUCT | {"qImageFns": ["q1.jpg"], "utmQ": np.array([[585001.0], [4476001]])})
    assert positions_m(read_dbstruct(tmp_path / "one.mat", struct_images)["queries"])[0].tolist() == [[585001, 4476001]]


def test_files_that_are_no_dbstruct_are_refused(tmp_path, struct_images):
    (tmp_path / "text.mat").write_text("no matrix")
    scipy.io.savemat(tmp_path / "other.mat", {"something": 1})
    save_v5(tmp_path / "half.mat", {"dbImageFns": STRUCT["dbImageFns"], "utmDb": STRUCT["utmDb"]})
    for name, words in (
        ("text", "is no .mat file"),
        ("other", "holds no dbStruct"),
        ("half", "has no field qImageFns; its fields are dbImageFns, utmDb"),
    ):
        with pytest.raises(ValueError, match=words):
            read_dbstruct(tmp_path / f"{name}.mat", struct_images)


@pytest.mark.parametrize("save", [pytest.param(save_v5, marks=pytest.mark.slow), save_v73])
def test_a_broken_dbstruct_is_one_sentence(tmp_path, struct_images, save):
    save(tmp_path / "good.mat", STRUCT)
    good, broken = (tmp_path / "good.mat").read_bytes(), tmp_path / "broken.mat"
    half = len(good) // 2
    for content in (
        b"<!DOCTYPE html>\n<html><body>404</body></html>\n" * 10,
        good[:half],
        good[:half] + bytes(len(good) - half),
    ):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.mat is no \.mat file, or a truncated one: "):
            read_dbstruct(broken, struct_images)


def test_a_dbstruct_whose_packed_bytes_changed_is_one_sentence(tmp_path, struct_images):
    names = {name: np.array(STRUCT[name], object) for name in ("dbImageFns", "qImageFns")}
    scipy.io.savemat(tmp_path / "pitts.mat", {"dbStruct": STRUCT | names}, do_compression=True)
    content = bytearray((tmp_path / "pitts.mat").read_bytes())
    content[200] ^= 255
    (tmp_path / "pitts.mat").write_bytes(content)
    with pytest.raises(ValueError, match="or a truncated one: Error -3 while decompressing"):
        read_dbstruct(tmp_path / "pitts.mat", struct_images)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dbImageFns": np.arange(3.0)}, "dbImageFns must hold the names of images"),
        ({"utmDb": ["a", "b", "c"]}, "utmDb must hold numbers"),
    ],
)
def test_a_dbstruct_with_fields_of_another_kind_is_refused(tmp_path, struct_images, fields, words):
    save_v5(tmp_path / "pitts.mat", STRUCT | fields)
    with pytest.raises(ValueError, match=words):
        read_dbstruct(tmp_path / "pitts.mat", struct_images)


def save_arrays(folder, truth):
    np.save(folder / "set_dbImages.npy", np.array(["db/0.jpg", "db/1.jpg", "db/2.jpg"]))
    np.save(folder / "set_qImages.npy", np.array(["q/0.jpg", "q/1.jpg"]))
    np.save(folder / "set_gt.npy", truth)


def ragged(*rows):
    values = np.empty(len(rows), dtype=object)
    values[:] = rows
    return values


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        (np.array([2, 0]), [[2], [0]]),
        (np.array([[1, 2], [0, 0]]), [[1, 2], [0]]),
        (ragged([2, 1], []), [[1, 2], []]),
        (ragged(np.array([2]), np.array([0, 1])), [[2], [0, 1]]),
    ],
)
def test_ground_truth_as_arrays_gives_positives_without_coordinates(tmp_path, truth, expected):
    save_arrays(tmp_path, truth)
    sides = read_arrays(tmp_path, tmp_path)
    assert sides["database"].table["path"].to_pylist() == ["db/0.jpg", "db/1.jpg", "db/2.jpg"]
    assert [rows.tolist() for rows in sides["queries"].positives] == expected
    assert sides["database"].positives is None


class Touch:
    def __reduce__(self):
        return exec, ("open('touched', 'w')",)


def test_an_array_with_anything_but_numbers_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_arrays(tmp_path, ragged(Touch(), []))
    with pytest.raises(ValueError, match=r"set_gt\.npy cannot be read: it holds builtins\.exec, not numbers alone"):
        read_arrays(tmp_path, tmp_path)
    assert not (tmp_path / "touched").exists()
    pickle.loads(pickle.dumps(Touch()))
    assert (tmp_path / "touched").exists()  # as it would have been


def test_an_array_that_gives_raw_bytes_as_objects_is_refused(tmp_path):
    """Numbers that claim to be pointers would crash NumPy's own unpickling."""
    forged = ragged([0], [0])
    content = pickle.dumps(np.array([7, 8], np.int64), protocol=4).replace(b"\x8c\x02i8", b"\x8c\x02O8")
    save_arrays(tmp_path, forged)
    with (tmp_path / "set_gt.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        stream.write(content)
    with pytest.raises(ValueError, match=r"set_gt\.npy cannot be read: it is no array of lists"):
        read_arrays(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (np.array([0]), "gt.npy has 1 rows for 2 queries"),
        (np.array([0, 3]), "beyond the 3 database images for query 1"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, truth, words):
    save_arrays(tmp_path, truth)
    with pytest.raises(ValueError, match=words):
        read_arrays(tmp_path, tmp_path)


def test_linked_images_have_the_standard_names(tmp_path, images):
    write_csv(
        tmp_path / "places.csv", "path,east,north,zone,heading", [("0.jpg", 1.5, 2.25, 10, 30), ("1.jpg", 3, 4, 10, "")]
    )
    link_images(read_table(tmp_path / "places.csv", images), tmp_path / "linked")
    catalogue = read_catalogue(tmp_path / "linked")
    assert positions_m(catalogue)[0].tolist() == [[1.5, 2.25], [3, 4]]
    np.testing.assert_array_equal(catalogue.heading, [30, np.nan])
    assert [catalogue.path(row).resolve() for row in range(2)] == [images / "0.jpg", images / "1.jpg"]
    assert links_to_images(read_table(tmp_path / "places.csv", images), tmp_path / "linked")
    (tmp_path / "linked/mine.txt").touch()
    with pytest.raises(FileExistsError, match="something in"):
        links_to_images(read_table(tmp_path / "places.csv", images), tmp_path / "linked")


def test_a_dbstruct_that_crashes_its_library_ends_in_a_sentence(tmp_path):
    file = tmp_path / "crash.mat"
    scipy.io.savemat(file, {"dbStruct": {"utmDb": np.ones((2, 2))}})
    content = bytearray(file.read_bytes())
    content[144:148] = b"\5\0\0\0"  # an array of objects, which scipy reads as a null pointer
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"crash\.mat is no \.mat file, or a truncated one: "):
        read_dbstruct(file, tmp_path)


def test_a_dbstruct_that_claims_more_memory_than_its_size_explains_is_refused(tmp_path):
    file = tmp_path / "large.mat"
    with h5py.File(file, "w") as content:
        content.create_dataset("dbStruct/utmDb", (2, 2**28), "f8", chunks=(2, 2**20))
    assert file.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"large\.mat is no \.mat file, .*: it needs far more memory than a file"):
        read_dbstruct(file, tmp_path)


def test_a_dbstruct_whose_values_lie_in_other_files_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(tmp_path / "other.mat", "w") as content:
        content["utmDb"] = np.zeros((2, 1))
    for name, create in {
        "external": lambda struct: struct.create_dataset(
            "utmDb", (1, 2), "f8", external=[(tmp_path / "secret", 0, 16)]
        ),
        "linked": lambda struct: struct.update({"utmDb": h5py.ExternalLink(tmp_path / "other.mat", "utmDb")}),
    }.items():
        with h5py.File(tmp_path / f"{name}.mat", "w") as content:
            create(content.create_group("dbStruct"))
        with pytest.raises(ValueError, match=rf"{name}\.mat is no \.mat file, .*: its values lie in other files"):
            read_dbstruct(tmp_path / f"{name}.mat", tmp_path)


def test_a_program_without_a_main_guard_reads_a_dbstruct(tmp_path, struct_images):
    save_v5(tmp_path / "pitts.mat", STRUCT)
    (tmp_path / "numpy.py").write_text("raise SystemExit('the working directory was imported')")
    program = tmp_path / "programs/program.py"
    program.parent.mkdir()
    program.write_text(
        "from pathlib import Path\n"
        "from progeo.datasets.readers.dbstruct import read_dbstruct\n"
        "print(len(read_dbstruct(Path('pitts.mat'), Path('images'))['database']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(progeo.__file__).parent.parent)}
    ended = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("3\n", "")


def test_positions_that_no_frame_has_are_refused(tmp_path, images, struct_images):
    write_csv(tmp_path / "far.csv", "path,east,north", [("0.jpg", 1, 2), ("1.jpg", 1e18, 2)])
    write_csv(tmp_path / "turned.csv", "path,east,north,heading", [("0.jpg", 1, 2, -1e300)])
    save_v5(tmp_path / "far.mat", STRUCT | {"utmQ": np.array([[585001.0, 1e300], [4476001, 4476009]])})
    for read, words in (
        (lambda: read_table(tmp_path / "far.csv", images), r"far\.csv: 1\.jpg, row 2: its east must be from .*1e\+18"),
        (
            lambda: read_table(tmp_path / "turned.csv", images),
            r"turned\.csv: 0\.jpg, row 1: its heading .*-1e\+300",
        ),
        (lambda: read_dbstruct(tmp_path / "far.mat", struct_images), r"far\.mat: q2\.jpg: its east .*got 1e\+300"),
    ):
        with pytest.raises(ValueError, match=words):
            read()


def test_a_parquet_file_that_repeats_a_text_endlessly_is_refused(tmp_path, images):
    text = pa.array(["x" * 10**5])
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**5, np.int32)), text)
    pa_parquet.write_table(pa.table({"path": rows}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb\.parquet cannot be read: it would take 10,000,\d+,\d+ bytes of memory"):
        read_table(tmp_path / "bomb.parquet", images)
