"""`progeo dataset check` on sets that something is wrong with."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from progeo.cli import main
from progeo.commands.dataset_check import check_dataset
from progeo.config.datasets import CheckSettings
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.filename import format_names, parse_names
from progeo.places.options import CellOptions


@pytest.fixture
def train(city, tmp_path):
    shutil.copytree(city / "train", tmp_path / "train")
    return tmp_path / "train"


def checked(folder, **settings):
    return check_dataset(folder, settings=CheckSettings(**settings))


def paths_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


def test_a_set_that_nothing_is_wrong_with(city, tmp_path):
    main(["dataset", "check", str(city / "train"), "--out", str(tmp_path)])
    report = json.loads((tmp_path / "check.json").read_text())
    found = report["sets"]["train"]
    assert (found["images"], found["sizes"]) == (84, {"64 x 64": 84})
    assert not any(found[kind] for kind in ("unreadable", "tiny", "duplicates", "misplaced"))
    assert {path.name for path in tmp_path.iterdir()} == {"check.json", "check.html"}
    assert str(city) not in (tmp_path / "check.html").read_text()
    main(["dataset", "check", str(city / "train"), "--out", str(tmp_path), "--show_paths"])
    assert f"Images of {city}/train" in (tmp_path / "check.html").read_text()


def test_each_kind_of_wrong_image_is_found(train):
    whole, cut, empty, small, copied, moved, outside = paths_of(train)[::12][:7]
    content = (train / cut).read_bytes()
    (train / cut).write_bytes(content[: len(content) // 2])
    (train / empty).write_bytes(b"")
    Image.new("RGB", (200, 20)).save(train / small)
    shutil.copy(train / whole, train / copied)
    fields = parse_names([moved])
    fields.east[:] += 500  # its latitude and longitude say something else now
    (train / moved).rename(train / format_names(fields)[0])
    fields = parse_names([outside])
    fields.north[:] = 2e7
    (train / outside).rename(train / format_names(fields)[0])
    found = checked(train)["sets"]["train"]
    assert set(found["unreadable"]) == {cut, empty}
    assert "truncated" in found["unreadable"][cut]
    assert (found["tiny"], found["tiny_sizes"]) == ([small], {small: "20 x 200"})
    assert found["duplicates"] == [sorted([whole, copied])]
    assert sorted(reason.split(" m ")[-1] for reason in found["misplaced"].values()) == [
        "from its UTM position",
        "is not from 0 to 10000000",
    ]


def test_queries_without_a_positive_are_named(city, tmp_path):
    for side in ("database", "queries"):
        shutil.copytree(city / "val" / side, tmp_path / side)
    lonely = paths_of(tmp_path / "queries")[0]
    fields = parse_names([lonely])
    fields.north[:] += 5000
    (name,) = format_names(fields)
    (tmp_path / "queries" / lonely).rename(tmp_path / "queries" / name)
    report = checked(tmp_path)
    assert report["queries_without_positive"] == [name]
    database = read_catalogue(tmp_path / "database")
    away = np.hypot(database.east - fields.east[0], database.north - fields.north[0])
    assert report["nearest_to_queries_without_positive"] == [
        {"query": name, "nearest": database.name(int(away.argmin())), "distance_m": pytest.approx(away.min())}
    ]


def test_a_query_without_a_position_has_no_nearest_image(tmp_path):
    draw(tmp_path / "database", "@500000@4000000@.jpg")
    draw(tmp_path / "images", "0.jpg")
    table = read_catalogue(tmp_path / "images", positions="ignored").table
    positives = pa.array([[]], pa.list_(pa.int64()))  # given, else the query could not be evaluated
    queries = Catalogue(tmp_path / "images", table.append_column("positives", positives))
    queries.save(tmp_path / "queries.arrow", {"root": str(tmp_path / "images")})
    assert checked(tmp_path)["nearest_to_queries_without_positive"] == [
        {"query": "0.jpg", "nearest": None, "distance_m": None}
    ]


def test_other_cells_are_counted_but_not_printed_where_there_are_many_classes(tmp_path):
    draw(tmp_path, *(f"@{500_005 + 10 * number}@4000005@@@@@@@0@.jpg" for number in range(100)))
    cells = CellOptions(min_images_per_class=1)
    report = checked(tmp_path, cells=cells)
    assert {each["cell_side_m"]: each["classes"] for each in report["classes"]["with_other_cells"]} == {
        10: 100, 15: 67, 20: 50, 30: 34, 50: 20, 100: 10
    }  # fmt: skip
    assert "suggested" not in report["classes"]
    assert str(report).splitlines()[-1] == "cells of 10 m and 30 degrees: 100 classes of 100 images in 5 groups"


def test_sides_may_lie_deeper_and_share_their_last_name(city, tmp_path):
    for side in ("database", "queries"):
        shutil.copytree(city / "test" / side, tmp_path / f"set/{side}/images")
    report = checked(tmp_path / "set", database="database/images", queries="queries/images")
    whole = checked(city / "test")
    assert list(report["sets"]) == ["database/images", "queries/images"]
    assert list(report["sets"].values()) == list(whole["sets"].values())
    assert report["queries_without_positive"] == whole["queries_without_positive"]


def test_where_few_classes_remain_other_cells_are_counted_and_the_best_of_them_suggested(train, capsys):
    cells = {"cell_side_m": 2, "heading_bin_deg": 30, "min_images_per_class": 4, "groups_per_side": 1}
    classes = checked(train, cells=CellOptions(**cells))["classes"]
    catalogue = read_catalogue(train)
    for counts in (classes, *classes["with_other_cells"]):
        side, degrees = counts["cell_side_m"], counts["heading_bin_deg"]
        ids = np.stack([catalogue.east // side, catalogue.north // side, catalogue.heading // degrees], 1)
        _, sizes = np.unique(ids, axis=0, return_counts=True)
        assert (counts["classes"], counts["images"]) == ((sizes >= 4).sum(), sizes[sizes >= 4].sum())
    assert {counts["cell_side_m"] for counts in classes["with_other_cells"]} == {2, 3, 4, 6, 10, 20}
    assert (2, 30) not in {(counts["cell_side_m"], counts["heading_bin_deg"]) for counts in classes["with_other_cells"]}
    assert classes["suggested"]["classes"] == max(counts["classes"] for counts in classes["with_other_cells"])
    main(["dataset", "check", str(train), *(f"--cells.{name}={value}" for name, value in cells.items())])
    assert f"--cells.cell_side_m {classes['suggested']['cell_side_m']} " in capsys.readouterr().out


def test_missing_headings_are_said_and_cells_alone_are_counted(train):
    fields = parse_names(paths_of(train)[:1])
    fields.heading[:] = np.nan
    (train / paths_of(train)[0]).rename(train / format_names(fields)[0])
    classes = checked(train, cells=CellOptions(min_images_per_class=4))["classes"]
    assert "1 of 84 images" in classes["refused"]
    assert {counts["heading_bin_deg"] for counts in classes["with_other_cells"]} == {360}
    assert all("refused" not in counts for counts in classes["with_other_cells"])


def test_meters_without_a_zone_are_not_misplaced_as_nordlands_are_not(tmp_path):
    for frame in range(2):
        Image.new("RGB", (64, 64), (frame, 0, 0)).save(
            tmp_path / f"@0@{frame * 25 / 10.5:07.1f}@@@@@{frame}@@@@@@@@.jpg"
        )
    assert not checked(tmp_path)["sets"][tmp_path.name]["misplaced"]


def draw(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / name)


def misplaced(folder):
    return checked(folder)["sets"][folder.name]["misplaced"]


def test_positions_of_a_local_map_are_not_misplaced(tmp_path):
    draw(tmp_path, *(f"@{-50 + 20 * n}.00@{-30 + n}.00@.jpg" for n in range(6)))
    assert not misplaced(tmp_path)


def test_images_on_both_sides_of_the_equator_agree_with_their_degrees(tmp_path):
    """North of it 110.57 m are 0.001 degrees; all of a set may count from either origin."""
    draw(
        tmp_path,
        "@166025.98@110.68@31@N@0.00100@0.00004@.jpg",
        "@166025.98@9999889.32@31@M@-0.00100@0.00004@.jpg",
        "@166025.98@-110.68@31@M@-0.00100@0.00004@1@.jpg",
        "@166025.98@10000110.68@31@N@0.00100@0.00004@1@.jpg",
        "@166025.98@9999889.32@31@N@0.00100@0.00004@2@.jpg",
    )
    found = misplaced(tmp_path)
    assert list(found) == ["@166025.98@9999889.32@31@N@0.00100@0.00004@2@.jpg"]
    assert found.popitem()[1].startswith("its degrees are 221 m from its UTM position")


def test_letters_that_contradict_and_degrees_that_cannot_be_are_misplaced(tmp_path):
    wrong = ["@550000@4180000@10@K@.jpg", "@550001@4180000@10@S@-122.43@37.77@.jpg"]
    draw(tmp_path, "@550002@4180000@10@S@.jpg", *wrong)
    assert list(misplaced(tmp_path).items()) == [
        (wrong[0], "its letter contradicts its north 4180000 m"),
        (wrong[1], "latitude -122.43, longitude 37.77 cannot be"),
    ]


def test_zeros_are_flagged_by_table_and_check_and_stay_out_of_the_map(tmp_path, capsys):
    draw(tmp_path / "images", *(f"{row}.jpg" for row in range(30)))
    rows = [f"{row}.jpg,{52.2 + row / 1e5:.5f},0.11409" for row in range(28)]
    rows += ["28.jpg,0,0", "29.jpg,0.0,0.0"]
    (tmp_path / "places.csv").write_text("path,lat,lon\n" + "\n".join(rows) + "\n")
    own = tmp_path / "own"
    table = ["table", str(tmp_path / "places.csv"), "--images", str(tmp_path / "images")]
    main(["dataset", "import", *table, "--out", str(own)])
    said = capsys.readouterr().err
    assert "center 52.20014, 0.11409; 0 m from west to east, 30 m from south to north" in said
    assert "https://www.openstreetmap.org/?mlat=52.20014&mlon=0.11409" in said
    assert "2 of 30 images are misplaced, the first is 28.jpg: it is at 0, 0" in said
    main(["dataset", "check", str(own), "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/check.json").read_text())["sets"]["own"]
    assert list(found["misplaced"]) == ["28.jpg", "29.jpg"]
    assert found["map_link"].startswith("https://www.openstreetmap.org/?mlat=52.20014")
    page = (tmp_path / "out/check.html").read_text()
    assert 'href="https://www.openstreetmap.org/?mlat=52.20014&amp;mlon=0.11409' in page
    bounds = json.loads(re.search(r'id="map-data">(.*?)</script>', page)[1])["bounds"]
    assert bounds == pytest.approx([52.2, 0.11409, 52.20027, 0.11409])


def test_places_by_name_are_counted(train, tmp_path):
    catalogue = read_catalogue(train)
    names = pa.array(["a/1"] * 12 + ["a/2"] * 3 + ["b/1"] * 9 + [""] * (len(catalogue) - 24))
    Catalogue(train, catalogue.table.append_column("place", names)).save(train.with_suffix(".arrow"))
    report = checked(train, cells=CellOptions(min_images_per_class=9))
    assert "places: 3 of 24 images; 2 have at least 9, together 21 images" in str(report).splitlines()
    assert report["places"] == {
        **{"places": 3, "images": 24, "min_images": 9, "places_with_enough_images": 2, "images_of_these": 21}
    }


def test_a_sample_is_spread_evenly_and_estimates_rates_of_all_images(train, capsys):
    for name in paths_of(train)[:14]:
        (train / name).write_bytes(b"")
    main(["dataset", "check", str(train), "--sample", "12", "--out", str(train.parent / "out")])
    found = json.loads((train.parent / "out/check.json").read_text())["sets"]["train"]
    assert (found["images"], found["read"], found["sizes"]) == (84, 12, {"64 x 64": 10})
    assert len(found["unreadable"]) == 2  # of 12 ranges of 7 images the first two
    # Wilson: (2/12 + z^2/24 -+ z sqrt(2/12 * 10/12 / 12 + z^2 / 4 / 12^2)) / (1 + z^2/12), z = 1.96
    assert found["estimates"]["unreadable"] == pytest.approx(
        {"percent": 100 / 6, "low": 4.697, "high": 44.803}, rel=1e-3
    )
    assert found["estimates"]["tiny"] == pytest.approx({"percent": 0, "low": 0, "high": 24.25}, rel=1e-3)
    said = "12 images were read, 72 were not: 16.7 % of these are unreadable, of all 4.7 to 45 % (95 % interval)"
    assert said in capsys.readouterr().out
    assert said in (train.parent / "out/check.html").read_text()


def test_a_sample_of_more_images_than_there_are_is_all_of_them(train):
    assert checked(train, sample=1000)["sets"] == checked(train)["sets"]
