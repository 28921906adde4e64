import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from progeo.evaluation.dataset_page import CheckedSet, write_dataset_page
from progeo.places.catalogue import Catalogue
from progeo.places.cells import build_partition
from progeo.places.coordinates import project

NOTHING = {"unreadable": {}, "tiny": [], "tiny_sizes": {}, "duplicates": [], "misplaced": {}, "where": ""}
CELLS = {"groups_per_side": 2, "groups_per_heading": 1, "min_images_per_class": 1, "num_groups": None}


def set_of(name, positions, *, names=None, heading=np.nan, folder=Path(), elsewhere=()):
    """Build a set in UTM zone 31 north of images at east and north in meters."""
    east, north = np.array(positions, np.float64).reshape(-1, 2).T
    table = {
        "path": pa.array(names or [f"@{row}.jpg" for row in range(len(east))], pa.large_string()),
        "east": east,
        "north": north,
        "zone": np.full(len(east), 31, np.int8),
        "heading": np.broadcast_to(np.float64(heading), len(east)),
    }
    return CheckedSet(name, Catalogue(folder, pa.table(table)), np.array(elsewhere, np.int64))


def page(out, *sets, found=None, partition=None, num_groups=None, show_paths=False, **more):
    """Write the page of sets with findings by name, and return its text."""
    counts = {each.name: len(each.catalogue) for each in sets}
    report = {
        "folder": "some <folder>",
        "sets": {
            name: {"images": count, "sizes": {"8 x 8": count}, "map_link": "", **NOTHING, **(found or {}).get(name, {})}
            for name, count in counts.items()
        },
        **more,
    }
    write_dataset_page(
        out / "check.html", report, sets, partition=partition, num_groups=num_groups, show_paths=show_paths
    )
    return (out / "check.html").read_text(encoding="utf-8")


def data(text, name):
    (found,) = re.findall(rf'<script type="application/json" id="{name}-data">(.*?)</script>', text, re.S)
    return json.loads(found)


def rows_of(text):
    """Return for each row its problem, its photo, the titles and photos beside it, and its note."""
    gallery = data(text, "gallery")
    names = [photo[0] for photo in gallery["photos"]]
    problems = gallery["filters"].get("problem")
    place = list(gallery["filters"]).index("problem") if problems else None
    return [
        (
            problems[facets[place]] if problems else "",
            names[photo],
            {gallery["titles"][title]: [names[item[0]] for item in items] for title, items in strips},
            note,
        )
        for _, photo, _, facets, strips, note in gallery["rows"]
    ]


PLACES = [
    (500_000.0, 5_000_000),
    (500_100, 5_000_000),
    (500_200, 5_000_050),
    (500_300, 5_000_000),
    (500_400, 5_000_000),
]


def test_each_finding_is_a_row_with_its_reason_and_copies_are_one_row(tmp_path):
    names = ["broken.jpg", "tiny.jpg", "first.jpg", "copy.jpg", "far.jpg"]
    found = {
        "unreadable": {"broken.jpg": "it is truncated"},
        "tiny": ["tiny.jpg"],
        "tiny_sizes": {"tiny.jpg": "20 x 30"},
        "duplicates": [["first.jpg", "copy.jpg"]],
        "misplaced": {"far.jpg": "its degrees are 500 m from its UTM position"},
    }
    text = page(tmp_path, set_of("train", PLACES, names=names), found={"train": found})
    assert rows_of(text) == [
        ("unreadable", "broken.jpg", {}, "it is truncated"),
        ("tiny", "tiny.jpg", {}, "20 x 30 pixels"),
        ("duplicates", "first.jpg", {"Copies": ["copy.jpg"]}, "2 files are the same"),
        ("misplaced", "far.jpg", {}, "its degrees are 500 m from its UTM position"),
    ]
    points = {each["name"]: each for each in data(text, "map")["points"]}
    assert {name: (each["kind"], each["keys"]) for name, each in points.items()} == {
        "unreadable": ("problem", [0]),
        "tiny": ("problem", [1]),
        "duplicates": ("problem", [2]),
        "misplaced": ("problem", [3]),
    }
    assert points["duplicates"]["positions"] == [5_000_050, 500_200]


def test_pictures_are_those_of_the_images_and_names_those_in_their_set(tmp_path):
    Image.new("RGB", (50, 40)).save(tmp_path / "tiny.jpg")
    found = {"tiny": ["tiny.jpg"], "tiny_sizes": {"tiny.jpg": "40 x 50"}, "unreadable": {"gone.jpg": "gone"}}
    train = set_of("train", PLACES[:2], names=["tiny.jpg", "gone.jpg"], folder=tmp_path)
    (broken, tiny) = data(page(tmp_path, train, found={"train": found}), "gallery")["photos"]
    assert broken == ["gone.jpg", ""]
    assert (tiny[0], len(tiny)) == ("tiny.jpg", 2)
    assert tiny[1].startswith("UklGR")  # RIFF, of WebP
    text = page(tmp_path, train, found={"train": found}, show_paths=True)
    assert data(text, "gallery")["photos"][0] == ["gone.jpg", "", str(tmp_path / "gone.jpg")]


def test_a_query_without_a_positive_is_beside_the_nearest_database_image_with_an_arrow_on_the_map(tmp_path):
    nearest = [
        {"query": "q1.jpg", "nearest": "d0.jpg", "distance_m": 180.0},
        {"query": "q0.jpg", "nearest": None, "distance_m": None},
    ]
    text = page(
        tmp_path,
        set_of("database", PLACES[:1], names=["d0.jpg"]),
        set_of("queries", [(np.nan, np.nan), (500_180.0, 5_000_000)], names=["q0.jpg", "q1.jpg"]),
        queries_without_positive=["q1.jpg", "q0.jpg"],
        nearest_to_queries_without_positive=nearest,
    )
    assert rows_of(text) == [
        ("", "q1.jpg", {"Nearest database image": ["d0.jpg"]}, ""),
        ("", "q0.jpg", {}, "Its position is unknown."),
    ]
    (item,) = data(text, "gallery")["rows"][0][4][0][1]
    assert item[2:] == [180]
    queries, alone = data(text, "map")["points"]
    assert (queries["name"], queries["kind"], queries["known"]) == ("queries", "query", 1)
    assert (alone["positions"], alone["targets"], alone["keys"]) == ([5e6, 500_180], [5e6, 500_000], [0])


@pytest.mark.parametrize(("count", "is_bad"), [(0, True), (1, False)])
def test_a_set_without_classes_is_not_shown_as_good(tmp_path, count, is_bad):
    classes = {"classes": count, "images": count, "cell_side_m": 10, "heading_bin_deg": 30}
    text = page(tmp_path, set_of("train", PLACES), classes=classes)
    assert (f'<dt><bdi>classes</bdi></dt><dd class="bad">{count}' in text) == is_bad


def test_an_image_elsewhere_is_drawn_only_when_it_is_chosen(tmp_path):
    places = [*PLACES, (200_000.0, 0)]
    names = [f"{row}.jpg" for row in range(6)]
    train = set_of("train", places, names=names, elsewhere=[5])
    drawn = data(page(tmp_path, train, found={"train": {"misplaced": {"5.jpg": "it is at 0, 0"}}}), "map")
    assert (drawn["database"]["count"], drawn["database"]["known"]) == (5, 5)  # it is not without a position
    assert drawn["bounds"] == [5_000_000, 500_000, 5_000_050, 500_400]
    assert drawn["points"] == []
    assert drawn["details"]["0"]["points"][0]["positions"] == [0, 200_000]


def test_hundreds_of_thousands_of_images_and_findings_leave_a_small_page_that_says_how_many_it_hides(tmp_path):
    rng = np.random.default_rng(0)
    train = set_of("train", rng.normal((4e5, 5e6), 2000, (300_000, 2)))
    tiny = [f"@{row}.jpg" for row in range(5_000)]
    copies = [[f"@{row}.jpg" for row in range(10_000, 10_500)]]
    found = {"tiny": tiny, "tiny_sizes": dict.fromkeys(tiny, "8 x 8"), "duplicates": copies}
    text = page(tmp_path, train, found={"train": found})
    assert len(text) < 1_000_000
    assert "4,800 more of train that are tiny" in text
    assert len(data(text, "gallery")["rows"]) == 201
    (title,) = (title for title in data(text, "gallery")["titles"] if title)
    assert title == "Copies, the first 6 of 499"
    assert sum(photo[1] is not None for photo in data(text, "gallery")["photos"]) == 67


def test_nothing_wrong_is_said_and_there_is_no_list(tmp_path):
    text = page(tmp_path, set_of("train", PLACES))
    assert '<dd class="good">0 <small>nothing is wrong</small></dd>' in text
    assert 'id="gallery"' not in text
    bad = page(tmp_path, set_of("train", PLACES), found={"train": {"misplaced": {"@0.jpg": "far"}}})
    assert bad.count('<dd class="bad">1</dd>') == 2  # of all findings, and of those misplaced


def test_images_without_coordinates_have_no_map(tmp_path):
    text = page(tmp_path, set_of("train", [(np.nan, np.nan)]))
    assert "These images have no coordinates" in text
    assert 'id="map"' not in text


@pytest.mark.parametrize(
    "evil", ["</script><script>alert(1)</script>", "\"' onload='alert(1)", "{{ 7 * 7 }}", "\u202egpj"]
)
def test_no_text_becomes_a_part_of_the_page(tmp_path, evil):
    def written(text):
        found = {"unreadable": {text: text}, "sizes": {text: 1}, "misplaced": {text: text}, "where": text}
        named = set_of(text, [(500_000.0, 5_000_000)], names=[text])
        classes = {"cell_side_m": 1, "heading_bin_deg": 1, "classes": 0, "images": 0, "refused": text}
        return page(tmp_path, named, found={text: found}, folder=text, classes=classes)

    tags = [re.findall(r"<[a-z]+(?: [\w-]+=\"[^\"]*\")*", written(text)) for text in (evil, "plain")]
    assert [tag.split()[0] for tag in tags[0]] == [tag.split()[0] for tag in tags[1]]
    assert not any("onload" in tag.replace("&#39;", "") and "title=" not in tag for tag in tags[0])
    assert "\u202e" not in written(evil)
    assert html.unescape(written(evil)).count(evil.replace("\u202e", "\\u202e")) >= 3


CLASSES = {"cell_side_m": 10, "heading_bin_deg": 30, "classes": 8, "images": 300, "classes_per_group": [5, 3]}


def bars(text, title):
    (figure,) = re.findall(rf"<figcaption>{title}</figcaption>(.*?)</figure>", text, re.S)
    return [html.unescape(tip) for tip in re.findall(r"<title>(.*?)</title>", figure)]


def test_bars_count_the_classes_of_so_many_images(tmp_path):
    classes = {**CLASSES, "classes_with_so_many_images": {10: 4, 12: 2, 60: 1, 89: 1}}
    found = bars(page(tmp_path, set_of("train", PLACES), classes=classes), "Images of a class")
    assert len(found) == 27  # three numbers of images each
    assert (found[0], found[1], found[16], found[-1]) == ("10-12: 6", "13-15: 0", "58-60: 1", "88-90: 1")


def test_bars_compare_other_cells_by_heading_bin(tmp_path):
    others = [
        {"cell_side_m": 20, "heading_bin_deg": 30, "classes": 40, "images": 400},
        {"cell_side_m": 10, "heading_bin_deg": 360, "classes": 12, "images": 350},
        {"cell_side_m": 20, "heading_bin_deg": 360, "classes": 30, "images": 410},
    ]
    text = page(tmp_path, set_of("train", PLACES), classes={**CLASSES, "with_other_cells": others})
    assert bars(text, "Classes with other cells") == [
        "10 m, heading bins of 30 degrees: 8",
        "20 m, heading bins of 30 degrees: 40",
        "10 m, any heading: 12",
        "20 m, any heading: 30",
    ]
    assert bars(text, "Images of those classes")[0] == "10 m, heading bins of 30 degrees: 300"


def test_classes_are_on_the_map_by_group_in_meters_and_in_degrees(tmp_path):
    train = set_of("train", [(500_005.0, 5_000_005), (500_015, 5_000_005), (500_025, 5_000_005)])
    partition = build_partition(train.catalogue, cell_side_m=10, heading_bin_deg=360, **CELLS)
    text = page(tmp_path, train, partition=partition, classes={**CLASSES, "classes": 3, "images": 3})
    first, second = data(text, "map")["polygons"]
    assert [each["name"] for each in (first, second)] == [
        "classes of group 1, 2 images:",
        "classes of group 2, 1 images:",
    ]
    assert [each["color"] for each in (first, second)] == [0, 1]
    assert second["corners"] == [5e6, 500_010, 5_000_010, 500_010, 5_000_010, 500_020, 5e6, 500_020]
    letters = [f"@{east}@5000005@31@T@.jpg" for east in (500_005, 500_015, 500_025)]
    named = set_of("train", [(500_005.0, 5_000_005), (500_015, 5_000_005), (500_025, 5_000_005)], names=letters)
    partition = build_partition(named.catalogue, cell_side_m=10, heading_bin_deg=360, **CELLS)
    drawn = data(page(tmp_path, named, partition=partition, num_groups=1, classes=CLASSES), "map")
    assert [each["color"] for each in drawn["polygons"]] == [0, None]
    assert drawn["polygons"][1]["name"] == "classes of 1 more, 1 images:"
    assert drawn["unit"] == "degrees"
    latitudes, longitudes = np.reshape(drawn["polygons"][0]["corners"], (-1, 2)).T
    assert np.ptp(latitudes[:4]) * 111_100 == pytest.approx(10, rel=0.02)
    assert latitudes.min() == pytest.approx(45.153, abs=0.001)
    assert longitudes.min() == pytest.approx(3.0, abs=0.001)


def test_classes_stay_beside_their_images_across_the_meridian_of_180_degrees_and_beside_an_image_elsewhere(tmp_path):
    fiji = project(np.full(4, -16.8), np.array([179.9995, 179.9998, -179.9998, -179.9995]))
    names = [f"@{east:.2f}@{north:.2f}@1@K@.jpg" for east, north in zip(fiji.east, fiji.north, strict=True)]
    train = set_of("train", np.stack([fiji.east, fiji.north], axis=1), names=names)
    table = train.catalogue.table.set_column(3, "zone", pa.array(np.full(4, fiji.zone, np.int8)))
    train = CheckedSet("train", Catalogue(Path(), table), np.array([], np.int64))
    partition = build_partition(train.catalogue, cell_side_m=20, heading_bin_deg=360, **CELLS)
    drawn = data(page(tmp_path, train, partition=partition, classes=CLASSES), "map")
    longitudes = [value for layer in drawn["polygons"] for value in layer["corners"][1::2]]
    assert np.ptp(longitudes) < 0.002
    assert np.ptp([*longitudes, *drawn["database"]["positions"][1::2]]) < 0.002


def test_a_northing_that_cannot_be_costs_no_class_its_place(tmp_path):
    letters = [f"@{east}@5000005@31@T@.jpg" for east in (500_005, 500_015)] + ["@500005@25000005@31@T@.jpg"]
    train = set_of("train", [(500_005.0, 5_000_005), (500_015, 5_000_005), (500_005, 25_000_005)], names=letters)
    cells = {**CELLS, "min_images_per_class": 2}
    partition = build_partition(train.catalogue, cell_side_m=20, heading_bin_deg=360, **cells)
    found = {"train": {"map_link": "https://map"}}
    drawn = data(page(tmp_path, train, partition=partition, classes=CLASSES, found=found), "map")
    assert drawn["unit"] == "degrees"
    (corners,) = (layer["corners"] for layer in drawn["polygons"])
    assert corners[:2] == pytest.approx([45.153, 3.0], abs=0.001)


def test_absolute_paths_are_shown_only_if_asked_for_and_positions_have_links(tmp_path):
    names = ["@500005@5000005@31@T@.jpg", "@500015@5000005@31@T@.jpg"]
    train = set_of("train", [(500_005.0, 5_000_005), (500_015, 5_000_005)], names=names, folder=Path("/data/x/city"))
    classes = {**CLASSES, "refused": "1 of 2 images in /data/x/city have no heading."}
    found = {"train": {"misplaced": {names[0]: "far"}}}
    for show_paths in (False, True):
        text = page(tmp_path, train, found=found, folder="/data/x/city", classes=classes, show_paths=show_paths)
        assert ("/data/x/city" in text) == show_paths
        assert "x/city have no heading." in text
        (row,) = data(text, "gallery")["rows"]
        assert row[6].startswith("https://www.openstreetmap.org/?mlat=45.15")
