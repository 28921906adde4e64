"""Mapillary Street-Level Sequences from its own tables, written here as they are downloaded."""

import re

import numpy as np
import pytest
import utm

from progeo.cli import main
from progeo.datasets.readers.msls import read_msls
from progeo.places.catalogue import read_catalogue
from progeo.places.geographic import positions_m
from progeo.places.positives import find_positives

CPH, SF = (55.6761, 12.5683), (37.7749, -122.4194)


def write_side(folder, rows, center, *, shuffled=False):
    """Rows are (key, meters east of the center, fields that differ from the usual); some fields are in other tables."""
    (folder / "images").mkdir(parents=True)
    east, north, zone, letter = utm.from_latlon(*center)
    placed = [",key,easting,northing,unique_cluster,control_panel,night,view_direction"]
    raw, subtasks = [",key,lon,lat,ca,captured_at,pano"], [",key,all,s2w,w2s,o2n,n2o,d2n,n2d"]
    for number, (key, meters, fields) in enumerate(rows):
        (folder / "images" / f"{key}.jpg").touch()
        latitude, longitude = utm.to_latlon(east + meters, north, zone, letter)
        told = {"night": False, "pano": False, "all": True, "d2n": False, "ca": 90.5, "lon": longitude, **fields}
        placed.append(f"{number},{key},{east + meters},{north},7,False,{told['night']},Forward")
        raw.append(f"{number},{key},{told['lon']},{latitude},{told['ca']},2017-01-23,{told['pano']}")
        subtasks.append(f"{number},{key},{told['all']},False,False,False,False,{told['d2n']},False")
    if shuffled:
        raw[1:] = raw[:0:-1]
    for name, lines in (("postprocessed", placed), ("raw", raw), ("subtask_index", subtasks)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    train_val = tmp_path / "msls/train_val"
    write_side(
        train_val / "cph/database",
        [("a", 0, {"d2n": True}), ("b", 30, {"ca": 360}), ("pano", 1, {"pano": True}), ("c", 300, {"ca": -1})],
        CPH,
        shuffled=True,
    )
    write_side(
        train_val / "cph/query",
        [
            ("00", 10, {"night": True, "d2n": True}),
            ("far", 160, {}),
            ("other", 5, {"all": False}),
            ("p", 0, {"pano": True}),
        ],
        CPH,
    )
    write_side(train_val / "sf/database", [("d", 0, {})], SF)
    write_side(train_val / "sf/query", [("s", 0, {})], SF)
    return tmp_path / "msls"


def keys(catalogue):
    return [catalogue.path(row).stem for row in range(len(catalogue))]


def test_a_city_gives_the_images_that_the_benchmark_counts(root):
    sides = read_msls(root, ["cph"])
    database, queries = sides["database"], sides["queries"]
    assert keys(database) == ["a", "b", "c"]  # no panorama
    assert keys(queries) == ["00"]  # not the one of no subtask, nor the one without a positive
    assert all(side.path(row).is_file() for side in sides.values() for row in range(len(side)))
    np.testing.assert_array_equal(database.heading, [90.5, 0, np.nan])
    assert queries.conditions.tolist() == ["night"]
    assert database.table["time"].to_pylist() == ["2017-01-23"] * 3
    east, north, zone, _ = utm.from_latlon(*CPH)
    np.testing.assert_allclose(positions_m(database)[0], [(east, north), (east + 30, north), (east + 300, north)])
    assert database.zone.tolist() == [zone] * 3
    np.testing.assert_allclose(database.degrees[:, 0], CPH, atol=1e-6)
    assert [rows.tolist() for rows in find_positives(database, queries, 25)] == [[0, 1]]


@pytest.mark.parametrize(
    ("choice", "database", "queries"),
    [
        ({"subtask": "d2n"}, ["a"], ["00"]),
        ({"subtask": None}, ["a", "b", "c"], ["00", "other"]),
        ({"positive_radius_m": None}, ["a", "b", "c"], ["00", "far"]),
        ({"positive_radius_m": 9.5}, ["a", "b", "c"], None),
    ],
)
def test_subtasks_and_queries_without_a_positive_are_chosen(root, choice, database, queries):
    if queries is None:
        with pytest.raises(ValueError, match=r"no image is left of the queries \(subtask all\)"):
            read_msls(root / "train_val/cph", **choice)
        return
    sides = read_msls(root / "train_val/cph", **choice)
    assert (keys(sides["database"]), keys(sides["queries"])) == (database, queries)


def test_cities_are_one_set_and_far_apart(root, tmp_path):
    main(["dataset", "import", "msls", str(root), "--out", str(tmp_path / "own")])
    database, queries = (read_catalogue(tmp_path / "own" / side) for side in ("database", "queries"))
    assert (keys(database), keys(queries)) == (["a", "b", "c", "d"], ["00", "s"])
    assert database.zone.tolist() == [33, 33, 33, 10]
    assert [rows.tolist() for rows in find_positives(database, queries, 2e5)] == [[0, 1, 2], [3]]


def test_cities_without_longitudes_are_not_mixed(root):
    for side in ("database", "query"):
        file = root / "train_val/sf" / side / "raw.csv"
        file.write_text(re.sub(r"-122[.\d]*", "", file.read_text()))
    with pytest.raises(ValueError, match="its UTM zone is unknown"):
        read_msls(root)
    assert read_msls(root, ["sf"])["database"].zone.tolist() == [0]


@pytest.fixture
def unplaced_cities(root):
    """Two cities of the test set, which have no positions."""
    for city, key in (("miami", "m"), ("athens", "g")):
        write_side(root / "test" / city / "database", [(f"{key}0", 0, {}), (f"{key}1", 9, {"pano": True})], SF)
        write_side(root / "test" / city / "query", [(f"{key}2", 5e4, {}), (f"{key}3", 0, {"all": False})], SF)
        for side in ("database", "query"):
            (root / "test" / city / side / "postprocessed.csv").unlink()
            (root / "test" / city / side / "raw.csv").unlink()
    return root


def test_cities_of_the_test_set_give_all_names_of_the_subtask(unplaced_cities):
    sides = read_msls(unplaced_cities, ["miami", "athens"])
    assert keys(sides["database"]) == ["m0", "m1", "g0", "g1"]  # panoramas are not known
    assert keys(sides["queries"]) == ["m2", "g2"]
    assert all(side.path(row).is_file() for side in sides.values() for row in range(len(side)))
    assert np.isnan(sides["queries"].east).all()
    assert keys(read_msls(unplaced_cities / "test/miami")["queries"]) == ["m2"]
    assert keys(read_msls(unplaced_cities)["queries"]) == ["00", "s"]  # as without a folder test
    with pytest.raises(ValueError, match="miami of the test set have no positions, unlike the others: import them"):
        read_msls(unplaced_cities, ["cph", "miami"])
    with pytest.raises(ValueError, match=r"no image is left of the folders database \(subtask d2n\)"):
        read_msls(unplaced_cities, ["miami"], subtask="d2n")


def test_other_cities_must_have_positions(root):
    for side in ("database", "query"):
        (root / "train_val/sf" / side / "postprocessed.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no table .*postprocessed\.csv"):
        read_msls(root, ["sf"])


def test_cities_of_the_test_set_with_positions_are_read_as_others(unplaced_cities):
    write_side(unplaced_cities / "test/kampala/database", [("k", 0, {}), ("p", 1, {"pano": True})], SF)
    write_side(unplaced_cities / "test/kampala/query", [("q", 5, {}), ("far", 90, {})], SF)
    sides = read_msls(unplaced_cities, ["kampala"])
    assert (keys(sides["database"]), keys(sides["queries"])) == (["k"], ["q"])


@pytest.mark.parametrize(
    ("table", "before", "after", "words"),
    [
        ("raw.csv", ",a,", ",z,", "raw.csv has no line for 1 keys of postprocessed.csv, the first is a"),
        ("raw.csv", "pano", "panorama", "raw.csv has no column pano; it has , key, lon"),
        ("postprocessed.csv", "False,Forward", "perhaps,Forward", "postprocessed.csv cannot be read: .*perhaps"),
        ("subtask_index.csv", "0,a,True", "0,a,", "subtask_index.csv: the column all is empty in 1 lines"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(root, table, before, after, words):
    file = root / "train_val/cph/database" / table
    file.write_text(file.read_text().replace(before, after, 1))
    with pytest.raises(ValueError, match=words):
        read_msls(root, ["cph"])


def test_what_is_not_there_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"holds no city oslo; cities .* train_val or test: cph, sf\."):
        read_msls(root, ["oslo", "sf"])
    (root / "train_val/sf/query/raw.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no table .*sf/query/raw\.csv"):
        read_msls(root)
