"""GPX and KML: the order of elements that their schemas ask for, known positions only, and hostile names."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base

from progeo.localization.gpx import write_gpx
from progeo.localization.kml import write_kml
from progeo.localization.localizations import Frame, Localization, Match

SEQUENCES = {
    "gpx": "metadata wpt rte trk extensions",
    "wpt": "ele time magvar geoidheight name cmt desc src link sym type fix sat hdop vdop pdop",
    "trkpt": "ele time magvar geoidheight name cmt desc src link sym type fix sat hdop vdop pdop",
    "trk": "name cmt desc src link number type extensions trkseg",
    "trkseg": "trkpt extensions",
    "kml": "Document",
    "Document": "name visibility open description Style Placemark",
    "Placemark": "name visibility open Snippet description TimeStamp styleUrl ExtendedData Point Polygon MultiGeometry",
    "ExtendedData": "Data",
    "Data": "displayName value",
    "Polygon": "extrude altitudeMode outerBoundaryIs innerBoundaryIs",
}
"""Order of the children of elements, in the schemas of GPX 1.1 and KML 2.2."""
HOSTILE = "<b>&\"' \0\x1b[31m\ufffe\ud800\u202e]]>.jpg"


def match(latitude=52.2, longitude=0.1, path="/data/city/database/m.jpg", **values):
    return Match(path, latitude, longitude, 3e5, 5.8e6, 0.5, row=0, **values)


def known(query, *matches, **values):
    return Localization(query, 0.91, 25.0, True, matches or (match(),), **values)


NOT_MAPPED = (
    Localization("unknown.jpg", 0.2, 25.0, False, (match(),)),
    Localization("broken.jpg", error="broken.jpg cannot be decoded."),
    Localization("utm.jpg", 0.9, 25.0, True, (match(None, None),)),
)


def written(write, results, path, **options):
    write(path, results, **options)
    root = ElementTree.parse(path).getroot()
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
    for element in root.iter():
        names = [child.tag for child in element]
        if element.tag in SEQUENCES:
            assert names == sorted(names, key=SEQUENCES[element.tag].split().index)
    return root


def photo(path, **values):
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif).update({Base[name]: value for name, value in values.items()})
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, exif=exif)
    return str(path)


def test_waypoints_are_the_known_positions(tmp_path):
    results = [
        known("a.jpg"),
        *NOT_MAPPED,
        Localization("b.jpg", matches=(match(-1.5, -179.123456789),)),
        known("c.jpg", match(1, 179.99999999)),
    ]
    root = written(write_gpx, results, tmp_path / "a.gpx")
    assert (root.get("version"), root.get("creator").split()[0]) == ("1.1", "progeo")
    assert [dict(point.attrib) for point in root] == [
        {"lat": "52.2000000", "lon": "0.1000000"},
        {"lat": "-1.5000000", "lon": "-179.1234568"},
        {"lat": "1.0000000", "lon": "-180.0000000"},
    ]
    assert [point.findtext("name") for point in root] == ["a.jpg", "b.jpg", "c.jpg"]
    within = "within 25 m with probability 0.91"
    assert [point.findtext("desc") for point in root] == [within, "confidence unknown", within]


def test_times_of_a_known_zone_are_in_utc_and_others_are_told_apart(tmp_path):
    time = {"DateTimeOriginal": "2024:05:01 22:30:15", "SubsecTimeOriginal": "5"}
    with_zone = photo(tmp_path / "a.jpg", **time, OffsetTimeOriginal="-07:00")
    without = photo(tmp_path / "b.jpg", **time)
    points = list(written(write_gpx, [known(with_zone), known(without)], tmp_path / "a.gpx"))
    assert points[0].findtext("time") == "2024-05-02T05:30:15.500000Z"
    assert points[1].find("time") is None
    assert points[1].findtext("desc").endswith("0.91, taken 2024-05-01 22:30:15 in an unknown time zone")
    marks = written(write_kml, [known(with_zone), known(without)], tmp_path / "a.kml").iter("when")
    assert [mark.text for mark in marks] == ["2024-05-01T22:30:15.500000-07:00", "2024-05-01T22:30:15.500000"]


def frame(seconds, longitude, known=True):
    return Localization(
        f"{seconds}.jpg", 0.9, 25.0, known, (match(longitude=longitude),), frame=Frame(seconds, match())
    )


def test_a_sequence_is_a_track_with_a_gap_where_it_is_lost(tmp_path):
    results = [frame(0, 0.1), frame(1, 0.2), frame(2, 0.3, known=False), frame(3, 0.4), *NOT_MAPPED, frame(4, 0.5)]
    root = written(write_gpx, results, tmp_path / "a.gpx")
    segments = [[point.get("lon")[:3] for point in segment] for segment in root.iter("trkseg")]
    assert segments == [["0.1", "0.2"], ["0.4"], ["0.5"]] and root.find("wpt") is None
    lines = written(write_kml, results, tmp_path / "a.kml").iter("LineString")
    assert [line.findtext("coordinates") for line in lines] == ["0.1000000,52.2000000 0.2000000,52.2000000"]


def test_placemarks_have_the_data_of_a_photo_and_the_cells_of_its_classes(tmp_path):
    corners = ((0.0, 1.0), (2.0, 1.0), (2.0, 3.0), (0.0, 3.0))
    first = match(2.0, 1.0, "cell 1 2 90", probability=0.75, corners=corners, heading_deg=90.0)
    root = written(write_kml, [known("a.jpg", first, match(path="no corners")), *NOT_MAPPED], tmp_path / "a.kml")
    photo, cell = root.iter("Placemark")
    assert photo.findtext("Point/coordinates") == "1.0000000,2.0000000"
    assert {each.get("name"): each.findtext("value") for each in photo.iter("Data")} == {
        "confidence": "0.91",
        "radius_m": "25.0",
        "match": "cell 1 2 90",
        "distance": "0.5",
        "heading_deg": "90.0",
    }
    assert cell.findtext("name") == "a.jpg: cell 1 2 90"
    ring = cell.findtext("Polygon/outerBoundaryIs/LinearRing/coordinates").split()
    assert ring == [f"{x:.7f},{y:.7f}" for x, y in (*corners, corners[0])]
    assert cell.findtext("styleUrl") == f"#{next(root.iter('Style')).get('id')}"


@pytest.mark.parametrize("write", [write_gpx, write_kml])
def test_names_can_be_hostile_and_absolute_paths_are_shown_when_asked_for(write, tmp_path):
    results = [known(f"/home/me/photos/{HOSTILE}")]
    (name,) = (each.text for each in written(write, results, tmp_path / "a").iter("name") if "b>" in each.text)
    assert name == "…/photos/<b>&\"' \\x00\\x1b[31m\\ufffe\\ud800\\u202e]]>.jpg"
    assert "/home/me" not in (tmp_path / "a").read_text() and "/data/city" not in (tmp_path / "a").read_text()
    write(tmp_path / "a", results, show_paths=True)
    assert "/home/me" in (tmp_path / "a").read_text()


@pytest.mark.parametrize("write", [write_gpx, write_kml])
def test_a_file_without_any_known_position_is_valid(write, tmp_path):
    root = written(write, NOT_MAPPED, tmp_path / "a")
    assert not list(root.iter("wpt")) and not list(root.iter("Placemark"))
