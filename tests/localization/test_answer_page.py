"""The page of localizations, with an index of images and one of classes."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from progeo.localization.answer_page import confidence_in_words, write_answer_page
from progeo.localization.localizations import Localization, Match
from progeo.places.catalogue import Catalogue


def match(path, latitude, longitude, *, east=500_000.0, distance=0.5, **values):
    return Match(str(path), latitude, longitude, east, 4e6, distance, row=0, **values)


def data(file, name):
    found = re.findall(rf'<script type="application/json" id="{name}-data">(.*?)</script>', file.read_text(), re.S)
    return json.loads(found[0])


def catalogue_of(*matches):
    """Build the catalogue of an index that holds matches."""
    columns = {
        "path": pa.array([each.path for each in matches], pa.large_string()),
        "east": np.array([each.east_m for each in matches], np.float64),
        "north": np.array([each.north_m for each in matches], np.float64),
        "zone": np.full(len(matches), 31, np.int8),
        "heading": np.full(len(matches), np.nan),
        "latitude": np.array([each.latitude for each in matches], np.float64),
        "longitude": np.array([each.longitude for each in matches], np.float64),
    }
    return Catalogue(Path(), pa.table(columns))


@pytest.mark.parametrize(
    ("confidence", "known", "words"),
    [
        (0.93, True, "Very likely within 25 m (93 %)"),
        (0.9, True, "Very likely within 25 m (90 %)"),
        (0.89, True, "Likely within 25 m (89 %)"),
        (0.7, True, "Likely within 25 m (70 %)"),
        (0.55, True, "Uncertain: within 25 m with a probability of 55 %"),
        (0.55, False, "Unknown: the best match is within 25 m with a probability of 55 %"),
        (0.95, False, "Unknown: the best match is within 25 m with a probability of 95 %"),  # of a higher threshold
        (None, None, "No confidence: the index is not calibrated"),
    ],
)
def test_a_confidence_is_put_into_words(confidence, known, words):
    assert confidence_in_words(Localization("a", confidence, 25.0, known, (match("b", 1, 2),))) == words


def test_why_there_is_no_confidence_is_said():
    assert confidence_in_words(Localization("a", matches=(match("b", None, None, east=None),))) == (
        "No confidence: the position of the best match is unknown"
    )
    assert confidence_in_words(Localization("a", None, 25.0, matches=(match("b", 1, 2),), verified=True)) == (
        "No confidence: it is calibrated without verification: run `progeo index calibrate --verify`"
    )
    words = confidence_in_words(Localization("a street", matches=(match("b", 1, 2),)), by_text=True)
    assert words == "No confidence: it is calibrated on photos only"
    assert confidence_in_words(Localization("a", error="a cannot be decoded.")) == "a cannot be decoded."


def test_a_localization_prints_a_link_to_its_map():
    result = Localization("a.jpg", 0.75, 25.0, True, (match("b.jpg", 52.2, -0.1), match("c.jpg", 52.3, 0.1)))
    assert str(result).splitlines() == [
        "a.jpg: 52.20000, -0.10000, within 25 m with probability 0.75",
        "       https://www.openstreetmap.org/?mlat=52.20000&mlon=-0.10000#map=19/52.20000/-0.10000",
        "    1  0.500  52.20000, -0.10000  b.jpg",
        "    2  0.500  52.30000, 0.10000  c.jpg",
    ]
    assert "openstreetmap" not in str(replace(result, matches=(match("b.jpg", None, None),)))


def test_each_photo_is_a_row_with_its_matches_and_a_star_on_the_map(tmp_path):
    for number, name in enumerate(("query.jpg", "known.jpg")):
        Image.new("RGB", (40, 30), (90 * number, 0, 0)).save(tmp_path / name)
    here = match(tmp_path / "known.jpg", 52.2, 0.1)
    gone = match("/elsewhere/database/gone.jpg", 52.201, 0.102, distance=0.7)
    results = [
        Localization(str(tmp_path / "query.jpg"), 0.93, 25.0, True, (here, gone)),
        Localization(str(tmp_path / "other.jpg"), 0.2, 25.0, False, (gone,)),
        Localization(str(tmp_path / "broken.jpg"), error=f"{tmp_path}/broken.jpg cannot be decoded."),
    ]
    write_answer_page(tmp_path / "out.html", results, catalogue=catalogue_of(here, gone))
    gallery = data(tmp_path / "out.html", "gallery")
    names = [f"…/{tmp_path.name}/{name}.jpg" for name in ("query", "other", "broken", "known")]
    assert [photo[0] for photo in gallery["photos"]] == [*names, "…/database/gone.jpg"]
    assert [photo[1] is not None and photo[1] != "" for photo in gallery["photos"]] == [True, False, False, True, False]
    assert gallery["photos"][4][1] is None  # only its name
    assert gallery["filters"] == {"answer": ["known", "unknown", "error"]}
    assert [row[5] for row in gallery["rows"]] == [
        "52.20000, 0.10000. Very likely within 25 m (93 %)",
        "52.20100, 0.10200. Unknown: the best match is within 25 m with a probability of 20 %",
        f"…/{tmp_path.name}/broken.jpg cannot be decoded.",
    ]
    link = "https://www.openstreetmap.org/?mlat=52.20100&mlon=0.10200#map=19/52.20100/0.10200"
    assert [row[6:] for row in gallery["rows"]][1:] == [[link], []]
    ((_, items),) = gallery["rows"][0][4]
    assert items == [[3, 2, 1, "52.20000, 0.10000", 0.5], [4, 2, 2, "52.20100, 0.10200", 0.7]]
    drawn = data(tmp_path / "out.html", "map")
    (stars,) = drawn["points"]
    assert (stars["kind"], stars["keys"], stars["positions"]) == ("photo", [0, 1], [52.2, 0.1, 52.201, 0.102])
    (squares,) = drawn["details"]["0"]["points"]
    assert (squares["kind"], squares["positions"]) == ("match", [52.2, 0.1, 52.201, 0.102])
    assert squares["labels"] == [f"1: …/{tmp_path.name}/known.jpg", "2: …/database/gone.jpg"]
    page = (tmp_path / "out.html").read_text()
    assert f'href="{html.escape(link)}"' in page
    assert str(tmp_path) not in page
    assert "Where 3 photos were taken" in page
    write_answer_page(tmp_path / "out.html", results, catalogue=catalogue_of(here, gone), show_paths=True)
    assert data(tmp_path / "out.html", "gallery")["photos"][0][0] == str(tmp_path / "query.jpg")


def test_known_positions_come_first_and_classes_are_counted_as_such(tmp_path):
    found = match("cell 0 0 90", 52.05, 0.05, probability=0.5)
    confidences = ((None, None), (0.2, False), (0.9, True))
    results = [Localization("a.jpg", share, 25.0, known, (found,)) for share, known in confidences]
    write_answer_page(tmp_path / "out.html", results, catalogue=catalogue_of(found), cell_side_m=20)
    assert data(tmp_path / "out.html", "gallery")["filters"] == {"answer": ["known", "unknown", "no confidence"]}
    assert data(tmp_path / "out.html", "map")["database"]["name"] == "classes of the index"
    figures = (tmp_path / "out.html").read_text().partition('<dl class="figures">')[2].partition("</dl>")[0]
    assert re.findall("<bdi>(.*?)</bdi>", figures) == ["known", "unknown", "positions without a confidence"]


def test_cells_of_classes_are_polygons_as_opaque_as_they_are_probable(tmp_path):
    def corners(west):
        return ((west, 52.0), (west + 0.1, 52.0), (west + 0.1, 52.1), (west, 52.1))

    first, same, second = (
        match(name, 52.05, west + 0.05, probability=share, corners=corners(west))
        for name, west, share in (("cell 0 0 0", 0.0, 0.4), ("cell 0 0 90", 0.0, 0.2), ("cell 9 0 0", 0.3, 0.3))
    )
    result = Localization("a.jpg", 0.6, 25.0, True, (first, second, same))
    write_answer_page(tmp_path / "out.html", [result], catalogue=catalogue_of(first, same, second), cell_side_m=20)
    (cells,) = data(tmp_path / "out.html", "map")["polygons"]  # of the only photo, without a click
    assert cells["labels"] == ["1, 3: 60.0 %", "2: 30.0 %"]
    assert cells["weights"] == [1, 0.5]
    assert cells["corners"][:8] == [52, 0, 52, 0.1, 52.1, 0.1, 52.1, 0]
    gallery = data(tmp_path / "out.html", "gallery")
    assert gallery["measures"][-1] == ["probability", "percent"]
    assert [item[2:] for item in gallery["rows"][0][4][0][1]][1] == [2, "52.05000, 0.35000", 30]


def test_cells_in_meters_are_squares_around_their_centers(tmp_path):
    only = match("cell 500000 4000000", None, None, probability=0.5)
    write_answer_page(
        tmp_path / "out.html", [Localization("a", matches=(only,))], catalogue=catalogue_of(only), cell_side_m=20
    )
    drawn = data(tmp_path / "out.html", "map")
    assert drawn["unit"] == "meters"
    assert drawn["polygons"][0]["corners"] == [
        *(3_999_990, 499_990), *(3_999_990, 500_010), *(4_000_010, 500_010), *(4_000_010, 499_990)
    ]  # fmt: skip


def test_a_sentence_has_matches_without_a_photo_of_its_own(tmp_path):
    found = match("/city/palms.jpg", 52.2, 0.1)
    result = Localization("<b>palm trees</b>", matches=(found,))
    write_answer_page(tmp_path / "out.html", [result], catalogue=catalogue_of(found), by_text=True)
    gallery = data(tmp_path / "out.html", "gallery")
    assert (gallery["rows"][0][1], gallery["noun"]) == (None, "sentence")
    assert gallery["photos"] == [["…/city/palms.jpg", None]]
    assert "Places that match “&lt;b&gt;palm trees&lt;/b&gt;”" in (tmp_path / "out.html").read_text()


def test_pictures_and_the_table_of_a_thousand_photos_are_bounded(tmp_path):
    Image.new("RGB", (400, 300), (9, 0, 0)).save(tmp_path / "a.jpg")
    found = tuple(match(f"/x/{number}.jpg", 52.2, 0.1) for number in range(5))
    results = [Localization(str(tmp_path / "a.jpg"), None, None, None, found)] * 1000
    names = [replace(each, query=f"{tmp_path}/{number}.jpg") for number, each in enumerate(results)]
    for number in range(0, 1000, 100):
        (tmp_path / f"{number}.jpg").hardlink_to(tmp_path / "a.jpg")
    write_answer_page(tmp_path / "out.html", names, catalogue=catalogue_of(*found))
    photos = data(tmp_path / "out.html", "gallery")["photos"]
    assert [number for number, photo in enumerate(photos) if photo[1]] == [0, 100, 200, 300, 400]
    assert sum(photo[1] is not None for photo in photos) == 500
    page = (tmp_path / "out.html").read_text()
    assert "Positions of the first 200 of 1,000" in page
    assert len(re.findall("<tr ", page)) == 201
