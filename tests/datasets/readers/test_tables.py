"""Tables as people have them: every way to write a zone, a number, a blank and a path."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from PIL import Image

from progeo.commands.dataset_import import import_dataset
from progeo.datasets.readers.tables import read_table
from progeo.places import catalogue as catalogue_module
from progeo.places.catalogue import read_catalogue
from progeo.places.filename import parse_names
from progeo.places.geographic import degrees_of, link_images, positions_m

SAO_PAULO = ("333287.92", "7394588.32", -23.55050, -46.63330)
SAN_FRANCISCO = ("551128.99", "4181002.20", 37.77493, -122.41942)
CAMBRIDGE = [(52.20347 + 1e-4 * row, 0.11409) for row in range(40)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "img").mkdir()
    for row in range(40):
        (folder / f"{row}.jpg").touch()
        (folder / f"img/{row}.jpg").touch()
    return folder


@pytest.fixture
def read(tmp_path, images):
    """Read a table of these lines."""

    def block(*lines, ending="csv", encoding="utf-8", images=images, **more):
        file = tmp_path / f"places.{ending}"
        file.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
        return read_table(file, images, **more)

    return block


@pytest.mark.parametrize("place", [SAO_PAULO, SAN_FRANCISCO])
@pytest.mark.parametrize(
    ("columns", "southern", "northern"),
    [
        ("zone,letter", "23,K", "10,S"),
        ("zone,letter", "23,k", "10,s"),
        ("Zone,Letter", "23.0,S", "10.0,N"),
        ("utm_zone,utm_letter", "23,K", "10,S"),
        ("utm_zone_number,utm_zone_letter", "23,K", "10,S"),
        ("zone,band", "23,K", "10,S"),
        ("zone,hemisphere", "23,S", "10,N"),
        ("zone,hemisphere", "23,south", "10,NORTH"),
        ("zone,Hemisphere", "23,Southern", "10,northern"),
        ("zone,letter,hemisphere", "23,K,S", "10,S,N"),
        ("zone", "23K", "10S"),
        ("zone", "23 k", "10 s"),
        ("zone", "23S", "10N"),
        ("zone", "23 South", "10 north"),
        ("zone", "UTM zone 23S", "UTM zone 10N"),
        ("zone", "WGS 84 / UTM zone 23S", "WGS 84 / UTM zone 10N"),
        ("zone", "EPSG:32723", "epsg:32610"),
        ("crs", "EPSG:32723", "EPSG:32610"),
        ("epsg", "32723", "32610"),
        ("srid", "urn:ogc:def:crs:EPSG::32723", "urn:ogc:def:crs:EPSG::32610"),
        ("zone,epsg", "23,32723", "10,32610"),
        ("zone_number,zone_letter", "23,K", "10,S"),  # as the package utm calls them
        ("UTM zone,UTM zone letter", "23,K", "10,S"),
    ],
)
def test_every_way_to_say_a_hemisphere_gives_the_right_degrees(read, place, columns, southern, northern):
    east, north, latitude, longitude = place
    said = southern if latitude < 0 else northern
    catalogue = read(f"path,easting,northing,{columns}", f"0.jpg,{east},{north},{said}")
    np.testing.assert_allclose(degrees_of(catalogue)[:, 0], (latitude, longitude), atol=2e-5)
    assert catalogue.zone.tolist() == [23 if latitude < 0 else 10]
    np.testing.assert_allclose(positions_m(catalogue)[0], [[float(east), float(north)]])


@pytest.mark.parametrize(
    ("columns", "said"),
    [("zone,hemisphere", "19,S"), ("zone", "WGS 84 / UTM zone 19S"), ("crs", "EPSG:32719"), ("zone", "19F")],
)
def test_s_is_no_band_where_hemispheres_are_meant(read, columns, said):
    catalogue = read(f"path,east,north,{columns}", f"0.jpg,372000,4108000,{said}")  # 37.1 N, if it were
    np.testing.assert_allclose(degrees_of(catalogue), [[-53.162], [-70.9146]], atol=1e-3)


@pytest.mark.parametrize(("code", "zone"), [("25832", 32), ("EPSG:26910", 10), ("25827", None), ("26931", None)])
def test_codes_of_european_and_north_american_utm_are_zones_and_their_neighbors_are_not(read, code, zone):
    lines = "path,east,north,epsg", f"0.jpg,691608,5334764,{code}"
    if zone is None:
        with pytest.raises(ValueError, match=f"epsg must be that of a UTM zone, .* got {code}"):
            read(*lines)
        return
    catalogue = read(*lines)
    assert catalogue.zone.tolist() == [zone]
    assert degrees_of(catalogue)[0] == pytest.approx([48.1374], abs=1e-3)


@pytest.mark.parametrize("columns", ["zone", "zone,letter", "zone,hemisphere"])
def test_where_nothing_tells_the_hemisphere_the_latitude_is_unknown_and_that_is_said(read, caplog, columns):
    with caplog.at_level(logging.WARNING, "progeo"):
        blanks = "," * columns.count(",")
        catalogue = read(f"path,east,north,{columns}", f"0.jpg,333287,7394588,23{blanks}", f"1.jpg,1,2,{blanks}")
    assert np.isnan(degrees_of(catalogue)).all()
    assert "latitude and longitude of 1 of 2 rows are unknown, the first is 0.jpg, row 1" in caplog.text


def test_a_letter_that_contradicts_the_northing_leaves_that_row_unknown(read, caplog):
    with caplog.at_level(logging.WARNING, "progeo"):
        catalogue = read("path,east,north,zone", "0.jpg,333287,7394588,23K", "1.jpg,333287,7394588,23U")
    assert np.isfinite(degrees_of(catalogue)).tolist() == [[True, False]] * 2
    assert "1 of 2 rows are unknown, the first is 1.jpg, row 2: its letter" in caplog.text


def test_links_carry_the_zone_its_letter_latitude_and_longitude(read, tmp_path):
    east, north, latitude, longitude = SAO_PAULO
    table = read("path,east,north,zone,hemisphere", f"0.jpg,{east},{north},23,S", "1.jpg,333287,7394588,23,")
    link_images(table, tmp_path / "linked")
    fields = parse_names(read_catalogue(tmp_path / "linked").table["path"])
    assert (fields.zone.tolist(), fields.letter.tolist()) == ([23, 23], ["", "K"])
    np.testing.assert_allclose(fields.latitude, [np.nan, latitude], atol=2e-5)
    np.testing.assert_allclose(fields.longitude, [np.nan, longitude], atol=2e-5)


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        (("path;latitude;longitude", "0.jpg;37.766;-122.146"), "utf-8"),
        (("path;latitude;longitude", "0.jpg;37,766;-122,146"), "utf-8"),
        (("path\tlatitude\tlongitude", "0.jpg\t37,766\t-122,146"), "utf-8"),
        (("path\tlatitude\tlongitude", "0.jpg\t37.766\t-122.146"), "utf-16"),
        (("path;latitude;longitude;;", "0.jpg;37,766;-122,146;;"), "utf-8-sig"),
        (('"path","latitude","longitude"', '"0.jpg"," +37.766 ","-122.146"'), "utf-8"),
    ],
)
def test_delimiters_decimal_commas_and_encodings(read, lines, encoding):
    assert degrees_of(read(*lines, encoding=encoding)).tolist() == [[37.766], [-122.146]]


@pytest.mark.parametrize("blank", ["", "NA", "nan", "NULL", "None", "n/a", " ", "-", r"\N", "?", "unknown"])
@pytest.mark.parametrize("columns", ["latitude,longitude", "east,north"])
def test_rows_without_a_position_are_named_and_skipped(read, caplog, blank, columns):
    with caplog.at_level(logging.WARNING, "progeo"):
        catalogue = read(f"path,{columns}", "0.jpg,1,2", f"1.jpg,{blank},2", f"2.jpg,1,{blank}", "3.jpg,1.001,2")
    assert catalogue.table["path"].to_pylist() == ["0.jpg", "3.jpg"]
    assert f"skipped 2 of 4 rows without {columns.replace(',', ' and ')}, the first is 1.jpg, row 2" in caplog.text


def test_rows_of_delimiters_alone_do_not_count(read, caplog):
    catalogue = read("path;lat;lon", "0.jpg;1;2", ";;", "1.jpg;1,001;2", " ; ;", ";;")
    assert catalogue.table["path"].to_pylist() == ["0.jpg", "1.jpg"]
    assert not caplog.records


def test_empty_lines_before_the_names_of_columns_do_not_count(read, tmp_path):
    (tmp_path / "0007").touch()
    catalogue = read("", "", "path;lat;lon", "0007;1,5;2", images=tmp_path)
    assert (catalogue.table["path"].to_pylist(), degrees_of(catalogue).tolist()) == (["0007"], [[1.5], [2.0]])


def test_meters_are_read_where_no_row_has_degrees(read):
    east, north, latitude, longitude = SAO_PAULO
    catalogue = read("path,lat,lon,east,north,zone", f"0.jpg,,,{east},{north},23K")
    np.testing.assert_allclose(degrees_of(catalogue), [[latitude], [longitude]], atol=2e-5)


def test_an_image_that_two_rows_name_is_said(read, caplog):
    with caplog.at_level(logging.WARNING, "progeo"):
        assert len(read("path,lat,lon", "0.jpg,1,2", "./0.jpg,1.5,2", "1.jpg,1,2")) == 3
    assert caplog.messages[0].endswith("places.csv: 1 rows name an image that another row names, too")


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("Orientation", ("1", "6"), (np.nan, np.nan)),  # EXIF's: which way up
        ("orientation", ("portrait", ""), (np.nan, np.nan)),
        ("orientation", ("6", "90"), (6, 90)),
        ("GPSImgDirection", ("6", "8"), (6, 8)),
    ],
)
def test_a_column_of_which_way_up_images_are_is_no_heading(read, column, values, expected):
    lines = [f"{row}.jpg,1,2,{value}" for row, value in enumerate(values)]
    catalogue = read(f"SourceFile,GPSLatitude,GPSLongitude,{column}", *lines)
    np.testing.assert_array_equal(catalogue.heading, expected)


def test_blank_numbers_of_parquet_are_skipped_too(tmp_path, images):
    columns = {"path": ["0.jpg", "1.jpg", "2.jpg"], "lat": [1.0, None, float("nan")], "lon": [2.0, 2.0, 2.0]}
    pa_parquet.write_table(pa.table(columns), tmp_path / "places.parquet")
    assert read_table(tmp_path / "places.parquet", images).table["path"].to_pylist() == ["0.jpg"]


def test_one_row_far_away_is_named_and_skipped(read, caplog):
    rows = [f"{row}.jpg,{latitude},{longitude}" for row, (latitude, longitude) in enumerate(CAMBRIDGE)]
    rows[7] = "7.jpg,40.7,-74"
    with caplog.at_level(logging.WARNING, "progeo"):
        catalogue = read("path,lat,lon", *rows)
    assert len(catalogue) == 39
    assert "skipped 1 of 40 rows that lie too far from all others, the first is 7.jpg, row 8 at 40.70000" in caplog.text


def swapped_rows(rows):
    return [f"{row}.jpg,{b if row in rows else a},{a if row in rows else b}" for row, (a, b) in enumerate(CAMBRIDGE)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["path,lat,lon", *swapped_rows({3, 5, 9})],
            "3 of 40 rows have latitude and longitude swapped, the first is 3.j",
        ),
        (
            ["path,lat,lon,zone", "0.jpg,-46.63,-23.55,23"],
            "0.jpg, row 1: its zone is 23, where its longitude -23.55 is",
        ),
        (["path,lat,lon,zone", "0.jpg,-46.63,-23.55,23K"], "0.jpg, row 1: its zone is 23"),
        (["path,lat,lon", "0.jpg,1,2", "1.jpg,52.2 N,0.1"], "column lat must hold decimal numbers, row 2 has '52.2 N'"),
        (["path,lat,lon", '0.jpg,"37,766",2'], "column lat must hold decimal numbers, row 1 has '37,766'"),
        (["path,east,north", "0.jpg,inf,2"], "column east must hold decimal numbers, row 1 has 'inf'"),
        (["path,lat,lon", "0.jpg,48.85,2.3", "1.jpg,40.7,-74"], "0.jpg, row 1 is at longitude .*Make one set"),
        (["path,lat,lon,lat", "0.jpg,1,2,1"], "has 2 columns lat: rename or remove all but one"),
        (["path,lat,latitude,lon", "0.jpg,1,1,2", "1.jpg,1,1.1,2"], "columns latitude and lat, and they differ: row 2"),
        (["path,east,north,zone", "0.jpg,1,2,0x"], "zone must be from 1 to 60, got 0x"),
        (["path,east,north,zone", "0.jpg,1,2,61"], "zone must be from 1 to 60, got 61"),
        (
            ["path,east,north,crs", "0.jpg,1,2,EPSG:2154"],
            "epsg must be that of a UTM zone, 326zz, 327zz, 258zz or 269zz, got EPSG:2154",
        ),
        (["path,east,north,zone,epsg", "0.jpg,1,2,10,32611"], "epsg 32611 is that of another zone"),
    ],
)
def test_positions_that_cannot_be_right_are_refused_with_the_row(read, lines, words):
    with pytest.raises(ValueError, match=words):
        read(*lines)


def test_a_zone_that_is_none_hinders_no_table_of_degrees(read):
    assert len(read("path,lat,lon,zone", "0.jpg,52.2,0.11,city center", "1.jpg,52.2,0.11,3")) == 2


@pytest.mark.parametrize(("zones", "latitude", "longitude"), [([30], 0.5, 0.1), ([39, 39, 39, 31], 0.1, 52.2)])
def test_a_neighboring_zone_or_one_mistake_in_zones_hinders_no_table_of_degrees(read, zones, latitude, longitude):
    lines = [f"{row}.jpg,{latitude},{longitude},{zone}" for row, zone in enumerate(zones)]
    assert len(read("path,lat,lon,zone", *lines)) == len(zones)


def test_two_columns_that_agree_are_one_and_the_other_choice_can_be_made(read, caplog):
    lines = ("path,lat,latitude,lon", "0.jpg,1,1.00001,2")
    assert degrees_of(read(*lines))[0].tolist() == [1.00001]
    assert degrees_of(read(*lines, columns={"latitude": "lat"}))[0].tolist() == [1.0]
    with caplog.at_level(logging.INFO, "progeo"):
        assert read("image,path,lat,lon", "x,0.jpg,1,2").name(0) == "0.jpg"
    assert "path is read from the column path, not from image" in caplog.text


def test_text_that_is_not_utf_8_is_refused(read):
    with pytest.raises(ValueError, match=r"places\.csv is not UTF-8"):
        read("path,latitude,longitude", "straße.jpg,1,2", encoding="latin-1")


@pytest.mark.parametrize("path", [r"img\0.jpg", r".\img\0.jpg", "./img/0.jpg", r"\img\0.jpg"])
def test_paths_of_windows_are_found(read, path):
    assert read("path,lat,lon", f"{path},1,2").table["path"].to_pylist() == ["img/0.jpg"]


def test_a_file_that_is_called_so_keeps_its_backslash(tmp_path):
    (tmp_path / "img\\0.jpg").touch()
    (tmp_path / "places.csv").write_text("path,lat,lon\nimg\\0.jpg,1,2\n")
    assert read_table(tmp_path / "places.csv", tmp_path).table["path"].to_pylist() == ["img\\0.jpg"]


def test_columns_may_be_named(read):
    columns = {"path": "photo", "latitude": "y", "longitude": "x", "heading": "dir"}
    catalogue = read("photo,x,y,dir", "0.jpg,-122.146,37.766,450", columns=columns)
    assert degrees_of(catalogue).tolist() == [[37.766], [-122.146]]
    assert catalogue.heading.tolist() == [90]
    meters = read("path,lat,lon,a,b", "0.jpg,1,2,5,6", columns={"east": "a", "north": "b"})
    assert positions_m(meters)[0].tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"columns": {"lattitude": "y"}}, "columns must be of path, latitude, .*, got lattitude"),
        ({"columns": {"latitude": "z"}}, r"places\.csv has no column z; it has key, y, x"),
        ({"path": "{id}.jpg"}, r"has no column id; it has key, y, x"),
        ({"path": "{key:>7}.jpg"}, "{key:>7} cannot be read. Give {key}, or zeros in front"),
        ({"path": "{key.jpg"}, "path {key.jpg cannot be read"),
        ({"path": "{key}.jpg", "columns": {"path": "key"}}, r"column of paths \(key\) or a template .*, not both"),
        ({}, "needs a column path; its first line names key, y, x. Say which one it is with `columns`"),
    ],
)
def test_columns_and_templates_that_cannot_be_are_refused(read, more, words):
    with pytest.raises(ValueError, match=words):
        read("key,y,x", "0,1,2", **more)


def test_the_tables_of_gsv_cities_are_read_as_they_are(tmp_path):
    rows = [(0, 5, 0, "37.7600"), (12, 11, 90, "37.76010"), (12, 1, 270, "37.76020")]
    for place, month, heading, latitude in rows:
        name = f"Bangkok_{place:07d}_2019_{month:02d}_{heading:03d}_{latitude}_-122.42_pano_{month}.JPG"
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "Bangkok.csv").write_text(
        "place_id,year,month,northdeg,city_id,lat,lon,panoid\n"
        + "".join(f"{p},2019,{month},{h},Bangkok,{lat},-122.42,pano_{month}\n" for p, month, h, lat in rows)
    )
    catalogue = read_table(tmp_path / "Bangkok.csv", tmp_path)
    assert catalogue.heading.tolist() == [0, 90, 270]
    assert degrees_of(catalogue)[0].tolist() == [37.76, 37.7601, 37.7602]
    template = "{city_id}_{place_id:0>7}_{year}_{month:0>2}_{northdeg:0>3}_{lat}_{lon}_{panoid}.JPG"
    assert read_table(tmp_path / "Bangkok.csv", tmp_path, path=template).table.equals(catalogue.table)


def test_the_raw_tables_of_msls_are_read_with_a_template(read):
    raw = read(",key,lon,lat,ca,captured_at,pano", "0,7,2.5,48.5,120.5,1500000000,False", path="img/{key}.jpg")
    assert (raw.name(0), raw.heading.tolist()) == ("img/7.jpg", [120.5])
    assert degrees_of(raw).tolist() == [[48.5], [2.5]]
    processed = read(",key,easting,northing,night", "0,7,450000.5,5400000.25,False", path="img/{key}.jpg")
    assert positions_m(processed)[0].tolist() == [[450000.5, 5400000.25]]


def test_images_of_a_table_may_lie_behind_a_url(images, tmp_path):
    (tmp_path / "places.csv").write_text("path,latitude,longitude\n1.jpg,52.5,13.4\nimg/2.jpg,52.5,13.4\n")
    import_dataset("table", tmp_path / "places.csv", images=f"file://{images}", out=tmp_path / "city")
    catalogue = read_catalogue(tmp_path / "city")
    assert str(catalogue.path(1)) == f"file://{images}/img/2.jpg"
    with pytest.raises(ValueError, match=r"No link can lead to file:///.*1.jpg: leave out `link`"):
        import_dataset("table", tmp_path / "places.csv", images=f"file://{images}", out=tmp_path / "two", link=True)
    with pytest.raises(FileNotFoundError, match=r"2 of 2 images are not in file:///.*/imgs, the first is 1.jpg"):
        import_dataset("table", tmp_path / "places.csv", images=f"file://{images}/imgs", out=tmp_path / "three")
    with pytest.raises(ValueError, match="`images` of dbstruct must be a folder, got s3://bucket"):
        import_dataset("dbstruct", tmp_path / "set.mat", images="s3://bucket", out=tmp_path / "four")


def test_of_millions_of_images_some_are_looked_for(read, monkeypatch, caplog):
    monkeypatch.setattr(catalogue_module, "_MAX_LOOKED_FOR", (3, 3))
    caplog.set_level(logging.INFO)
    lines = [f"{row}.jpg,52.5,13.4" for row in (0, 77, 2, 77, 4)]
    assert len(read("path,latitude,longitude", *lines)) == 5  # of rows 0, 2 and 4
    assert "looked for 3 of 5 images" in caplog.text
    lines = [f"{row}.jpg,52.5,13.4" for row in (0, 77, 78, 77, 4)]
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are not in .*, the first is 78.jpg"):
        read("path,latitude,longitude", *lines)
