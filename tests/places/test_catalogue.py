import pickle
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from running import build_catalogue

from progeo.places.catalogue import (
    Catalogue,
    open_catalogue,
    read_catalogue,
)
from progeo.places.cells import build_partition
from progeo.places.geographic import check_zones, positions_m
from progeo.places.scanning import index_catalogue


def name(east, heading="", extension=".jpg"):
    return f"@{east}@4000000@10@S@@@@@{heading}@@@@@@{extension}"


def touch(folder, *names):
    for each in names:
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).touch()


def test_images_are_found_below_the_folder_in_any_case_and_sorted(tmp_path):
    touch(tmp_path, name(3), f"deep/er/{name(1, extension='.PNG')}", f"b/{name(2, extension='.JPeG')}", "notes.txt")
    catalogue = read_catalogue(tmp_path)
    assert catalogue.table["path"].to_pylist() == sorted(catalogue.table["path"].to_pylist())
    assert sorted(catalogue.east) == [1, 2, 3]
    assert all(catalogue.path(row).is_file() for row in range(3))


@pytest.mark.parametrize(
    ("positions", "names", "east"),
    [
        ("optional", [name(3), name(7)], [3, 7]),
        ("optional", [name(3), "b.jpg", f"deep/{name(7)}", "@deep/c.jpg"], [3, np.nan, np.nan, 7]),
        ("optional", ["a.jpg", "b.jpg"], [np.nan, np.nan]),
        ("ignored", ["@holiday.jpg", name(3)], [np.nan, np.nan]),
    ],
)
def test_names_that_need_no_position_give_none_where_they_say_none(positions, names, east, tmp_path):
    touch(tmp_path, *names)
    catalogue = read_catalogue(tmp_path, positions=positions)
    assert catalogue.table["path"].to_pylist() == sorted(names)
    np.testing.assert_array_equal(catalogue.east, east)
    np.testing.assert_array_equal(catalogue.zone, np.where(np.isnan(east), 0, 10))
    assert catalogue.table.schema == build_catalogue(tmp_path, [name(3)]).table.schema


@pytest.mark.parametrize(
    ("positions", "names"), [("required", ["a.jpg", name(3)]), ("optional", ["@a@b@.jpg", "c.jpg"])]
)
def test_names_that_should_say_a_position_and_do_not_are_refused(positions, names, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=r"does not follow the naming convention .* field 1 \(east\)"):
        read_catalogue(tmp_path, positions=positions)


def test_a_list_beside_the_folder_is_read_instead_of_the_disk(tmp_path):
    folder = tmp_path / "train"
    touch(folder, name(1), name(2))
    (tmp_path / "train_images_paths.txt").write_text(f"{name(2)}\n\n", encoding="utf-8")
    assert read_catalogue(folder).east.tolist() == [2]


def test_a_list_that_names_nothing_or_something_absent_is_refused(tmp_path):
    folder = tmp_path / "train"
    touch(folder, name(1))
    listing = tmp_path / "train_images_paths.txt"
    listing.write_text(f"{name(7)}\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"names @7@.* which does not lie in"):
        read_catalogue(folder)
    listing.write_text("\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="names no image"):
        read_catalogue(folder)


def test_a_missing_folder_and_one_without_images_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_catalogue(tmp_path / "nowhere")
    touch(tmp_path, "readme.txt")
    with pytest.raises(FileNotFoundError, match="There is no image"):
        read_catalogue(tmp_path)


def test_a_missing_folder_is_told_with_what_it_would_lie_beside(tmp_path):
    for there in ("test/queries_v1", "test/queries_v2", "many/1", "none"):
        (tmp_path / there).mkdir(parents=True)
    touch(tmp_path / "test", "readme.txt", "database.arrow")
    for number in range(7):
        (tmp_path / f"many/{number}_").mkdir()
    with pytest.raises(FileNotFoundError, match=r"test/queries beside database, queries_v1, queries_v2\.$"):
        read_catalogue(tmp_path / "test/queries")
    with pytest.raises(FileNotFoundError, match=r"no folder .*/many/l beside 0_, 1, 1_, 2_, 3_, 4_, 5_, 6_\.$"):
        read_catalogue(tmp_path / "many/l/queries")
    (tmp_path / "many/7_").mkdir()
    for bare in ("many/queries", "none/queries"):
        with pytest.raises(FileNotFoundError, match=rf"There is no folder .*{bare}\.$"):
            read_catalogue(tmp_path / bare)


def test_a_saved_catalogue_is_mapped_back_equal(tmp_path):
    catalogue = build_catalogue(tmp_path, [name(1), name(2, 30)])
    catalogue.save(tmp_path / "catalogue.arrow")
    again = open_catalogue(tmp_path / "catalogue.arrow", tmp_path)
    assert again.table["path"].equals(catalogue.table["path"])
    assert again.table["zone"].to_pylist() == [10, 10]
    np.testing.assert_array_equal(*positions_m(again), [[1, 4000000], [2, 4000000]])
    np.testing.assert_array_equal(again.heading, [np.nan, 30])


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("path", pa.array(["a", "b"], pa.string()), "its column path is string, it should be text with 64-bit offsets"),
        ("path", pa.array(["a", None], pa.large_string()), "its column path lacks values"),
        ("east", None, "it has 0 columns east, it should have one"),
        ("east", pa.array(["1", "2"]), "its column east is string, it should be a number"),
        ("east", pa.array([1.0, None]), "its column east lacks values"),
        ("north", pa.array([1.0, np.inf]), "its column north has values from 1 to inf"),
        ("zone", pa.array([10, 61], pa.int8()), "its column zone has values from 10 to 61"),
        ("heading", pa.array([-1e300, np.nan]), r"its column heading has values from -1e\+300 to -1e\+300"),
        ("positives", pa.array([[1], [None]]), "its column positives lacks values"),
        ("positives", pa.array([["1"], []]), "its column positives is list<.*>, it should be lists of whole numbers"),
        ("condition", pa.array([1, 2]), "its column condition is int64, it should be text"),
    ],
)
def test_a_catalogue_with_columns_that_it_cannot_have_is_refused_by_name(column, values, words, tmp_path):
    table = build_catalogue(tmp_path, [name(1), name(2)]).table
    position = table.column_names.index(column) if column in table.column_names else table.num_columns
    table = table.drop_columns([column]) if column in table.column_names else table
    table = table if values is None else table.add_column(position, column, values)
    Catalogue(tmp_path, table).save(tmp_path / "x.arrow")
    with pytest.raises(ValueError, match=rf"x\.arrow is no catalogue of progeo: {words}\. Remove it or make it again"):
        open_catalogue(tmp_path / "x.arrow", tmp_path)


def test_every_slice_of_a_catalogue_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("progeo.places.catalogue._ROWS_AT_ONCE", 2)
    table = build_catalogue(tmp_path, [name(each) for each in range(1, 6)]).table
    Catalogue(tmp_path, table).save(tmp_path / "x.arrow")
    assert len(open_catalogue(tmp_path / "x.arrow", tmp_path)) == 5
    position = table.column_names.index("zone")
    zones = pa.array([10, 10, 10, 10, 61], pa.int8())
    Catalogue(tmp_path, table.set_column(position, "zone", zones)).save(tmp_path / "x.arrow")
    with pytest.raises(ValueError, match="its column zone has values from 61 to 61"):
        open_catalogue(tmp_path / "x.arrow", tmp_path)


def test_a_catalogue_without_an_image_is_refused_by_name(tmp_path):
    build_catalogue(tmp_path, [name(1)]).take(np.array([], np.int64)).save(tmp_path / "x.arrow")
    with pytest.raises(ValueError, match=r"x\.arrow is no catalogue of progeo: it holds no image"):
        open_catalogue(tmp_path / "x.arrow", tmp_path)


def test_a_catalogue_whose_texts_lie_outside_of_it_is_refused_before_it_is_used(tmp_path):
    catalogue = build_catalogue(tmp_path, [name(1), name(2)])
    catalogue.save(tmp_path / "x.arrow")
    content = (tmp_path / "x.arrow").read_bytes()
    ends = catalogue.table["path"].chunk(0).buffers()[1].to_pybytes()[:24]
    assert content.count(ends) == 1
    (tmp_path / "x.arrow").write_bytes(content.replace(ends, ends[:16] + b"\xff" * 6 + b"\0\0"))
    with pytest.raises(ValueError, match=r"x\.arrow is no catalogue of progeo: "):
        open_catalogue(tmp_path / "x.arrow", tmp_path)


def test_take_gives_the_rows_in_the_order_asked_for(tmp_path):
    catalogue = build_catalogue(tmp_path, [name(1), name(2), name(3)])
    assert catalogue.take(np.array([2, 0])).east.tolist() == [3, 1]


def test_the_fingerprint_is_that_of_the_paths_and_their_order_alone(tmp_path):
    names = [f"@{index}@0@.jpg" for index in range(5)]
    catalogue = build_catalogue(tmp_path, names)
    assert build_catalogue(tmp_path / "elsewhere", names).fingerprint == catalogue.fingerprint
    rows = np.arange(5)
    assert catalogue.take(rows).fingerprint == catalogue.fingerprint
    for other in (rows[:4], rows[1:], rows[::-1]):
        assert catalogue.take(other).fingerprint != catalogue.fingerprint


def test_an_index_is_mapped_instead_of_reading_the_folder_again(tmp_path, monkeypatch):
    folder = tmp_path / "train"
    touch(folder, f"a/{name(2, 0)}", name(1, 30), f"b/c/{name(3, 45)}")
    scanned = read_catalogue(folder)
    assert index_catalogue(folder) == tmp_path / "train.arrow"
    monkeypatch.setattr("progeo.places.catalogue.find_paths", None)
    indexed = read_catalogue(folder)
    assert indexed.table.equals(scanned.table)
    assert indexed.fingerprint == scanned.fingerprint
    assert all(indexed.path(row).is_file() for row in range(3))


@pytest.mark.parametrize("change", ["more", "fewer", "gone", "list", "new list"])
def test_an_index_that_is_older_than_the_folder_is_refused(tmp_path, change):
    folder, listing = tmp_path / "train", tmp_path / "train_images_paths.txt"
    touch(folder, f"a/{name(2)}", f"b/{name(1)}")
    if change == "list":
        listing.write_text(f"a/{name(2)}\n")
    index_catalogue(folder)
    time.sleep(0.01)
    if change == "more":
        touch(folder, f"a/{name(4)}")
    elif change == "fewer":
        (folder / "b" / name(1)).unlink()
    elif change == "gone":
        shutil.rmtree(folder / "b")
    else:  # another list, or the first
        listing.write_text(f"b/{name(1)}\n")
    with pytest.raises(ValueError, match=r"changed since .*train\.arrow was made: run `progeo dataset scan .*train`"):
        read_catalogue(folder)
    index_catalogue(folder)
    assert len(read_catalogue(folder)) == {"more": 3}.get(change, 1)


def test_a_file_that_is_no_index_is_refused(tmp_path):
    touch(tmp_path / "train", name(1))
    (tmp_path / "train.arrow").write_text("something else")
    with pytest.raises(ValueError, match=r"train\.arrow is no catalogue of progeo"):
        read_catalogue(tmp_path / "train")


def test_another_process_maps_an_index_for_itself(tmp_path):
    touch(tmp_path / "train", *(name(index, 30) for index in range(1000)))
    index_catalogue(tmp_path / "train")
    sent = pickle.dumps(read_catalogue(tmp_path / "train"))
    assert len(sent) < 1000
    assert pickle.loads(sent).table.equals(read_catalogue(tmp_path / "train").table)


def test_images_of_two_zones_are_far_apart_wherever_one_of_them_is_asked_for(tmp_path):
    here, there = (build_catalogue(tmp_path, [f"@500000@4000000@{zone}@S@.jpg"]) for zone in (10, 11))
    both = build_catalogue(tmp_path, ["@500000@4000000@10@S@.jpg", "@500000@4000000@11@S@.jpg"])
    np.testing.assert_array_equal(positions_m(here)[0], [[500_000, 4_000_000]])
    np.testing.assert_array_equal(positions_m(here)[0], positions_m(there)[0])
    assert np.linalg.norm(np.subtract(*positions_m(here, there))) == 1e6
    assert np.linalg.norm(np.diff(positions_m(both)[0], axis=0)) == 1e6


Z10, Z11, NONE, NOWHERE = "10@S", "11@S", "@", "nowhere"


def in_zones(folder, *zones):
    """One image in each zone; NOWHERE is one without a position, as of ground truth without coordinates."""
    catalogue = build_catalogue(folder, [f"{row}/@{row + 1}@4000000@{zone}@.jpg" for row, zone in enumerate(zones)])
    table = catalogue.table
    for name in ("east", "north"):
        values = np.where(np.array(zones) == NOWHERE, np.nan, table[name].to_numpy())
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return Catalogue(folder, table)


@pytest.mark.parametrize(
    ("database", "queries", "refused"),
    [
        ([Z10, Z10], [Z10], None),
        ([NONE, NONE], [NONE], None),
        ([Z10, Z11], [Z10], None),
        ([Z10, Z10], [NONE], None),  # one zone is known of all
        ([Z10, NONE], [Z10], None),
        ([NONE, NONE], [Z11], None),
        ([Z10, Z11], [NOWHERE], None),
        ([Z10, NOWHERE], [Z11], None),
        ([Z10, Z11], [NONE, NONE], "2 of 2 images of queries have no UTM zone, such as 0/"),
        ([Z10, NONE, NONE, Z10], [Z11], "2 of 4 images of database have no UTM zone, such as 1/"),
        ([Z10, NONE], [Z11, Z10], "1 of 2 images of database have no UTM zone, such as 1/"),
        ([NONE, NONE], [Z10, Z11], "2 of 2 images of database have no UTM zone"),
        ([Z10, Z11, NONE], [], "1 of 3 images of database have no UTM zone, such as 2/"),
        ([Z10, Z11], [NOWHERE, NONE], "1 of 2 images of queries have no UTM zone, such as 1/"),
    ],
)
def test_images_without_a_zone_are_refused_where_the_others_lie_in_several(tmp_path, database, queries, refused):
    catalogues = [in_zones(tmp_path / "database", *database)]
    if queries:
        catalogues.append(in_zones(tmp_path / "queries", *queries))
    if refused is None:
        check_zones(*catalogues)
        east = np.concatenate(positions_m(*catalogues))[:, 0]
        known = [zone for zone in {*database, *queries} if zone in (Z10, Z11)]
        shift = {Z10: 10e6, Z11: 11e6} if len(known) == 2 else {}
        names = [*enumerate(database), *enumerate(queries)]
        expected = [np.nan if zone == NOWHERE else row + 1 + shift.get(zone, 0) for row, zone in names]
        np.testing.assert_array_equal(east, expected)
        return
    words = re.escape(refused.replace("images of ", f"images of {tmp_path}/"))
    for function in (check_zones, positions_m):
        with pytest.raises(ValueError, match=rf"^{words}.* lie in zones 10, 11: .*`progeo dataset import table`"):
            function(*catalogues)


def test_zones_that_are_measured_apart_are_said(tmp_path, caplog):
    caplog.set_level("INFO")
    check_zones(in_zones(tmp_path, Z10, Z10), in_zones(tmp_path, NONE))
    assert not caplog.records
    check_zones(in_zones(tmp_path, Z11), in_zones(tmp_path, Z10))
    assert [record.getMessage() for record in caplog.records] == [
        "images lie in UTM zones 10, 11: those of two zones count as 1000 km apart and more"
    ]


def test_degrees_tell_how_far_apart_images_are_whatever_their_zones(tmp_path):
    catalogue = in_zones(tmp_path, Z10, Z11, NONE)
    degrees = {"latitude": [50.0, 50.0, 50.0], "longitude": [5.9999, 6.0001, 6.0003]}
    table = catalogue.table
    for name, values in degrees.items():
        table = table.append_column(name, pa.array(values))
    (positions,) = positions_m(Catalogue(tmp_path, table))
    np.testing.assert_allclose(np.linalg.norm(np.diff(positions, axis=0), axis=1), 14.34, atol=0.02)


def test_a_latitude_without_a_longitude_is_no_position(tmp_path):
    table = in_zones(tmp_path, Z10, Z10).table.append_column("latitude", pa.array([50.0, 50.0]))
    assert Catalogue(tmp_path, table).degrees is None


@pytest.mark.parametrize("path", ["x" * 300, "a\\" + "x" * 300, "y" * 5000])
def test_a_list_of_names_that_no_file_can_have_is_one_sentence(tmp_path, path):
    touch(tmp_path / "train", name(1))
    (tmp_path / "train_images_paths.txt").write_text(f"{path}\n")
    with pytest.raises(FileNotFoundError, match=r"The list .*train_images_paths\.txt names .*, which does not lie in"):
        read_catalogue(tmp_path / "train")


def test_a_training_set_and_an_index_refuse_them_too(tmp_path):
    names = [f"@{row}@4000000@{zone}@.jpg" for row, zone in enumerate((Z10, Z11, NONE))]
    touch(tmp_path / "train", *names)
    settings = {"cell_side_m": 20, "heading_bin_deg": 360, "groups_per_side": 2, "groups_per_heading": 1}
    with pytest.raises(ValueError, match=r"1 of 3 images of .*train have no UTM zone"):
        build_partition(read_catalogue(tmp_path / "train"), **settings, min_images_per_class=1, num_groups=None)
    with pytest.raises(ValueError, match=r"1 of 3 images of .*train have no UTM zone"):
        index_catalogue(tmp_path / "train", check=check_zones)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_an_index_elsewhere_stands_for_the_folder(tmp_path, monkeypatch):
    folder, out = tmp_path / "disk/train", tmp_path / "mine/train"
    touch(folder, f"a/{name(2)}", name(1))
    monkeypatch.chdir(tmp_path)
    assert index_catalogue(folder.relative_to(tmp_path), out) == tmp_path / "mine/train.arrow"
    monkeypatch.chdir("/")
    catalogue = read_catalogue(out)
    assert (catalogue.folder, sorted(catalogue.east)) == (folder, [1, 2])
    assert catalogue.path(0).is_file()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["train"]
    time.sleep(0.01)
    touch(folder, f"a/{name(3)}")
    again = re.escape(f"run `progeo dataset scan {folder} --out {out}` again.")
    with pytest.raises(ValueError, match=rf"train/a changed since .*mine/train\.arrow was made: {again}$"):
        read_catalogue(out)
    assert len(read_catalogue(folder)) == 3


@pytest.mark.parametrize("listed", [True, False])
def test_an_index_that_skipped_links_to_folders_is_refused_but_of_a_list(tmp_path, listed):
    touch(tmp_path / "train", name(1))
    if listed:
        (tmp_path / "train_images_paths.txt").write_text(name(1))
    index = index_catalogue(tmp_path / "train")
    catalogue = read_catalogue(tmp_path / "train")
    about = {"seen": {} if listed else {".": (tmp_path / "train").stat().st_mtime_ns}}
    about["list"] = (tmp_path / "train_images_paths.txt").stat().st_mtime_ns if listed else None
    Catalogue(tmp_path / "train", catalogue.table.combine_chunks()).save(index, about)
    if listed:
        assert len(read_catalogue(tmp_path / "train")) == 1
        return
    with pytest.raises(ValueError, match=r"was made when links to folders were skipped.*: run `progeo dataset scan"):
        read_catalogue(tmp_path / "train")


def test_the_folder_that_one_is_in_has_a_name_too(tmp_path, monkeypatch):
    touch(tmp_path / "set", name(1), "a/b.txt")
    for here, there in (("set", "."), ("set/a", "..")):
        monkeypatch.chdir(tmp_path / here)
        assert read_catalogue(Path(there)).east.tolist() == [1]
        assert index_catalogue(Path(there)) == tmp_path / "set.arrow"
        (tmp_path / "set.arrow").unlink()


def test_a_list_of_windows_is_read_where_its_paths_lie_there(tmp_path):
    touch(tmp_path / "train", f"a/b/{name(1)}", name(2), f"odd\\{name(3)}")
    listing = tmp_path / "train_images_paths.txt"
    listing.write_bytes(f"{name(2)}\r\na\\b\\{name(1)}\r\n".encode())
    assert read_catalogue(tmp_path / "train").table["path"].to_pylist() == [name(2), f"a/b/{name(1)}"]
    listing.write_text(f"odd\\{name(3)}\n")  # a file that is called so
    catalogue = read_catalogue(tmp_path / "train")
    assert catalogue.table["path"].to_pylist() == [f"odd\\{name(3)}"]


@pytest.mark.parametrize("indexed", [False, True])
def test_paths_that_lead_out_of_the_folder_are_said(tmp_path, caplog, indexed):
    caplog.set_level("INFO")
    inside = ["@1@2@.jpg", "a..b/@1@2@.jpg", f"{tmp_path / 'set'}/@1@2@.jpg", "...@1@2@.jpg"]
    outside = ["../@1@2@.jpg", "/etc/@1@2@.jpg", "a/../../b/@1@2@.jpg", "http://host/@1@2@.jpg"]
    outside.append(f"{tmp_path}/sets/@1@2@.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/@1@2@.jpg").touch()
    for paths in (inside, inside + outside):
        caplog.clear()
        if indexed:
            columns = {name: np.zeros(len(paths)) for name in ("east", "north", "zone", "heading")}
            Catalogue(tmp_path / "set", pa.table({"path": pa.array(paths, pa.large_string()), **columns})).save(
                tmp_path / "set.arrow"
            )
        else:
            (tmp_path / "set_images_paths.txt").write_text("\n".join(paths))
        read_catalogue(tmp_path / "set", positions="ignored")
        said = [record.getMessage() for record in caplog.records]
        lead = f"5 of 9 paths of {tmp_path}/set lead out of {tmp_path}/set, the first is ../@1@2@.jpg"
        assert said == ([] if paths == inside else [lead])


def test_a_catalogue_of_images_elsewhere_says_where_they_lie(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/@1@2@.jpg").touch()
    index_catalogue(tmp_path / "photos", tmp_path / "set")
    read_catalogue(tmp_path / "set")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"the images of {tmp_path}/set lie in {tmp_path}/photos"]


def test_a_list_that_is_not_utf_8_is_named(tmp_path):
    touch(tmp_path / "train", name(1))
    (tmp_path / "train_images_paths.txt").write_bytes(f"{name(1)}\n".encode() + b"caf\xe9.jpg\n")
    with pytest.raises(ValueError, match=r"The list .*train_images_paths.txt cannot be read: .*UTF8"):
        read_catalogue(tmp_path / "train")


def test_a_folder_is_named_where_fields_of_its_names_are_absent(tmp_path, caplog):
    names = [f"a/@{row}@2@front_{row}@.jpg" for row in range(5)]
    touch(tmp_path / "train", *names)
    assert read_catalogue(tmp_path / "train").zone.tolist() == [0] * 5
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}/train: 5 of them have something else than a UTM zone")
    assert record.getMessage().endswith("'front_0' in 'a/@0@2@front_0@.jpg'")


def test_an_index_of_a_linked_folder_looks_at_the_list_beside_the_link(tmp_path):
    touch(tmp_path / "big/train", name(1), name(2))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(tmp_path / "big/train")
    (tmp_path / "data/train_images_paths.txt").write_text(f"{name(2)} \r\n\r\n")
    index_catalogue(tmp_path / "data/train")
    assert read_catalogue(tmp_path / "data/train").table["path"].to_pylist() == [name(2)]


def test_images_at_other_places_have_another_fingerprint_of_places(tmp_path):
    catalogue = build_catalogue(tmp_path, [name(1), name(2)])
    moved = Catalogue(tmp_path, catalogue.table.set_column(1, "east", [[2.0, 1.0]]))
    assert moved.fingerprint == catalogue.fingerprint
    assert moved.places_fingerprint != catalogue.places_fingerprint


@pytest.mark.parametrize("listed", [True, False])
def test_pieces_make_no_difference(tmp_path, monkeypatch, listed):
    """Names, columns, classes and fingerprint of many small batches are those of one."""
    rng = np.random.default_rng(0)
    names = [
        f"{row % 3}/@{east:.2f}@{north:.2f}@10@S@@@{row}@@{heading}@{'@' * int(row % 5)}.jpg"
        for row, (east, north, heading) in enumerate(rng.integers(0, 60, (300, 3)))
    ]
    touch(tmp_path / "train", *names)
    if listed:
        rng.shuffle(names)
        (tmp_path / "train_images_paths.txt").write_text("\n".join(names))
    settings = {"cell_side_m": 20, "heading_bin_deg": 30, "groups_per_side": 2, "groups_per_heading": 1}
    settings |= {"min_images_per_class": 5, "num_groups": None}
    whole = read_catalogue(tmp_path / "train")
    assert len(whole.table["path"].chunks) == 1
    expected = build_partition(whole, **settings)
    monkeypatch.setattr("progeo.places.paths._PATHS_AT_ONCE", 7)
    monkeypatch.setattr("progeo.places.paths._LIST_BYTES_AT_ONCE", 500)
    monkeypatch.setattr("progeo.places.filename._AT_ONCE", 4)
    monkeypatch.setattr("progeo.places.cells._ROWS_AT_ONCE", 11)
    pieces = read_catalogue(tmp_path / "train")
    index_catalogue(tmp_path / "train")
    for catalogue in (pieces, read_catalogue(tmp_path / "train")):
        assert len(catalogue.table["path"].chunks) > 20
        assert catalogue.table["path"].to_pylist() == (names if listed else sorted(names))
        assert catalogue.table.equals(whole.table)
        assert catalogue.fingerprint == whole.fingerprint
        np.testing.assert_array_equal(positions_m(catalogue), positions_m(whole))
        found = build_partition(catalogue, **settings)
        assert found.fingerprint == expected.fingerprint
        for group, other in zip(found.groups, expected.groups, strict=True):
            assert group.rows.tolist() == other.rows.tolist()


def test_a_fingerprint_tells_where_one_path_ends_and_the_next_begins(tmp_path):
    one, other = (
        build_catalogue(tmp_path, names) for names in (["a@1@2@.jpg", "b@1@2@.jpg"], ["a@1@2@.jpgb", "@1@2@.jpg"])
    )
    assert "".join(one.table["path"].to_pylist()) == "".join(other.table["path"].to_pylist())
    assert one.fingerprint != other.fingerprint


def test_rows_of_a_catalogue_of_many_chunks_are_those_of_one_chunk():
    table = pa.table(
        {"path": pa.array([f"{row}.jpg" for row in range(400)], pa.large_string()), "east": np.arange(400.0)}
    )
    parts = [table.slice(0, 150), table.slice(150, 0), table.slice(150, 1), table.slice(151)]
    chunked = Catalogue(Path(), pa.concat_tables(parts))
    rows = np.array([399, 0, 150, 151, 149, 7, 7, 260])
    assert chunked.table["path"].num_chunks > 2
    assert chunked.take(rows).table.equals(table.take(rows))
    assert chunked.take(np.empty(0, np.int64)).table.equals(table.slice(0, 0))
