import csv
import json

import numpy as np
import pytest
from PIL import Image

from progeo.cli import main
from progeo.places.coordinates import project
from progeo.places.filename import complete_fields, format_names

DEGREE_M = 6_371_008.8 * np.pi / 180
PLACES = [(48.8, 2.3), (48.8, 8.3), (50.8, 8.3), (51.0, 15.0), (55.8, 37.6)]
"""Places in UTM zones 31 to 37, each a color in the database."""
QUERIES = [(0, (48.81, 2.3)), (1, (48.8, 8.3)), (2, (50.6, 8.3)), (0, (51.0, 15.0)), (4, (55.0, 37.6))]
"""The color of each query, and where it was taken."""


def render(folder, places):
    folder.mkdir(parents=True)
    for row, (color, (latitude, longitude)) in enumerate(places):
        position = project(np.array([latitude]), np.array([longitude]))
        fields = {"east": position.east, "north": position.north, "zone": np.array([position.zone])}
        fields |= {"latitude": np.array([latitude]), "longitude": np.array([longitude]), "letter": np.array(["U"])}
        (name,) = format_names(complete_fields(1, **fields, pano_id=np.array([str(row)])))
        Image.new("RGB", (32, 32), (50 * color, 255 - 50 * color, 0)).save((folder / name).with_suffix(".png"))


@pytest.fixture
def wide(tmp_path):
    render(tmp_path / "wide/database", list(enumerate(PLACES)))
    render(tmp_path / "wide/queries", QUERIES)
    return tmp_path / "wide"


def test_a_wide_set_is_judged_along_great_circles_in_kilometers(wide, tmp_path):
    cache = ["--descriptor_cache", str(tmp_path / "cache"), "--num_workers", "0"]
    main(["evaluate", "thumbnail", "--folder", str(wide), "--out", str(tmp_path / "out"), *cache])
    found = json.loads((tmp_path / "out/recalls.json").read_text())
    assert found["distances"] == "along great circles"
    first = {(row["criterion"], row["queries"]): row["percent"] for row in found["table"] if row["n"] == 1}
    of_all = {criterion: percent for (criterion, queries), percent in first.items() if queries == "all"}
    assert of_all == {
        "within 25 m": 20.0,
        "within 1 km": 20.0,
        "within 25 km": 60.0,
        "within 200 km": 80.0,
        "within 750 km": 80.0,
        "within 2500 km": 100.0,
    }
    assert {queries for _, queries in first} == {
        "all",
        "0 to 1 km from the database",
        "1 to 25 km from the database",
        "25 to 200 km from the database",
    }
    with (tmp_path / "out/predictions.csv").open() as stream:
        meters = [float(row["distance_m"]) for row in csv.DictReader(stream) if row["rank"] == "1"]
    far = np.radians([48.8, 51.0, 12.7])
    cosine = np.sin(far[0]) * np.sin(far[1]) + np.cos(far[0]) * np.cos(far[1]) * np.cos(far[2])
    expected = [0.01 * DEGREE_M, 0, 0.2 * DEGREE_M, np.degrees(np.arccos(cosine)) * DEGREE_M, 0.8 * DEGREE_M]
    assert sorted(meters) == pytest.approx(sorted(expected), abs=2)
    assert found["errors"]["median_m"] == pytest.approx(0.2 * DEGREE_M, abs=2)
    html = (tmp_path / "out/report.html").read_text()
    assert "median 22.2 km" in html
    assert '"unit": "degrees"' in html.partition('id="map-data">')[2].partition("</script>")[0]


def test_radii_that_are_given_stay(wide, tmp_path):
    words = ["--radii_m", "1000", "300000", "--positive_radius_m", "25000", "--num_workers", "0"]
    cache = ["--descriptor_cache", str(tmp_path / "cache")]
    main(["evaluate", "thumbnail", "--folder", str(wide), "--out", str(tmp_path / "out"), *cache, *words])
    found = json.loads((tmp_path / "out/recalls.json").read_text())
    assert found["criterion"] == "within 25 km"
    assert found["recalls"]["R@1"] == 60.0
    assert {row["criterion"] for row in found["table"]} == {"within 25 km", "within 1 km", "within 300 km"}
