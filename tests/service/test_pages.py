"""What the pages of the service say of a place index."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import progeo
from progeo.localization.confidence import Calibration, Verification, VerifiedCalibration
from progeo.places.catalogue import Catalogue
from progeo.service.pages import ServicePages


@pytest.fixture(scope="module")
def pages():
    return ServicePages(max_upload_mb=7)


@pytest.fixture(scope="module")
def index(served_index):
    return progeo.open_index(served_index, device="cpu")


def placed(index, latitude, longitude, east, north):
    """The index with as many images at other positions."""
    count = len(latitude)
    columns = {"latitude": latitude, "longitude": longitude, "east": east, "north": north}
    table = {name: pa.array(values, pa.float64()) for name, values in columns.items()}
    table |= {"zone": pa.array([0] * count, pa.int8()), "heading": pa.array([np.nan] * count)}
    paths = pa.array([f"{row}.jpg" for row in range(count)], pa.large_string())
    catalogue = Catalogue(Path(), pa.table({"path": paths, **table}))
    parts = (replace(index.metadata.parts[0], rows=count),)
    return replace(index, catalogue=catalogue, metadata=replace(index.metadata, parts=parts))


def test_a_card_tells_the_index_and_its_encoder_without_paths(pages, index, served_index):
    card = pages.card(index)
    assert card["figures"] == {"images": "84", "area, east by north": card["figures"]["area, east by north"]}
    assert card["index"] == {
        "generation": "0",
        "search": "faiss Flat",
        "with a viewing direction": "84 of 84 images",
        "photos": "preprocessed by hard_resize, 48 x 48 pixels",
        "confidence": "not calibrated, so no answer has one",
        "verification": "not calibrated, so only photos of requests that want it are verified",
        "local features": "not stored, so images are read for verification",
    }
    assert card["encoder"]["backbone"] == "tiny-resnet of open_clip"
    assert str(served_index.parent) not in str(card)


def test_a_card_tells_how_confidence_was_calibrated(pages, index):
    calibration = Calibration(25, (0, 0), (1, 1), (0, 0, 0), num_photos=1200, num_correct=600, error=0.0314)
    calibrated = replace(index, metadata=replace(index.metadata, calibration=calibration))
    assert pages.card(calibrated)["index"]["confidence"] == (
        "calibrated on 1,200 photos, for positions within 25 m; expected calibration error 3.1 %"
    )


@pytest.mark.parametrize(
    ("below", "told"),
    [
        (0, "only photos of requests that want it are verified, as sift did not help others"),
        (
            0.45,
            "photos with a confidence below 0.45 are matched with their first 12 images by sift; expected calibration "
            "error 2.7 % if all are verified",
        ),
        (
            1,
            "all photos are matched with their first 12 images by sift; "
            "expected calibration error 2.7 % if all are verified",
        ),
    ],
)
def test_a_card_tells_which_photos_are_verified(pages, index, below, told):
    calibration = VerifiedCalibration(25, (0,) * 3, (1,) * 3, (0,) * 4, num_photos=1200, num_correct=600, error=0.0271)
    verification = Verification("sift", 12, below, calibration)
    metadata = replace(index.metadata, verification=verification, stores_features=True)
    facts = pages.card(replace(index, metadata=metadata))["index"]
    assert (facts["verification"], facts["local features"]) == (told, "stored")


@pytest.mark.parametrize(
    ("latitude", "longitude", "east", "north", "figures"),
    [
        # A degree of latitude is 111.195 km, and one of longitude half of that at 60 degrees.
        ([60, 60.1], [10, 10.1], [0, 1], [0, 1], {"images": "2", "area, east by north": "5.6 x 11.1 km"}),
        ([60, 60.001], [10, 10.001], [0, 1], [0, 1], {"images": "2", "area, east by north": "56 x 111 m"}),
        (
            [60, 60.001, np.nan],
            [10, 10.001, np.nan],
            [0, 1, np.nan],
            [0, 1, np.nan],
            {"images": "3", "with a position": "2", "area, east by north": "56 x 111 m"},
        ),
        ([np.nan] * 2, [np.nan] * 2, [0, 300], [0, 40], {"images": "2", "area, east by north": "300 x 40 m"}),
        ([np.nan], [np.nan], [np.nan], [np.nan], {"images": "1", "with a position": "0"}),
    ],
    ids=["degrees", "near", "unknown", "meters", "nowhere"],
)
def test_figures_count_images_and_measure_their_area(pages, index, latitude, longitude, east, north, figures):
    assert pages.card(placed(index, latitude, longitude, east, north))["figures"] == figures


def test_points_are_those_of_the_index_that_is_served_now(pages, index):
    first = pages.points(index)
    assert (first["database"]["name"], first["database"]["known"]) == ("images of the index", 84)
    assert pages.points(index) is first
    changed = placed(index, [60, 61], [10, 11], [0, 1], [0, 1])
    assert pages.points(changed)["database"]["positions"] == [60, 10, 61, 11]


def test_pages_may_ask_the_service_alone_and_the_host_of_tiles(pages):
    for page in (pages.localize, pages.index):
        assert "default-src 'none'" in page.policy
        assert "img-src 'self' blob: data:; connect-src 'self';" in page.policy
    tiled = ServicePages(max_upload_mb=7, tile_url="https://tiles.example:8443/{z}/{x}/{y}.png")
    assert "img-src 'self' blob: data: https://tiles.example:8443; connect-src 'self';" in tiled.localize.policy
    with pytest.raises(ValueError, match="`tile_url` must be an address with"):
        ServicePages(max_upload_mb=7, tile_url="https://tiles.example/")


def test_pages_ask_for_the_token_and_tell_the_largest_request(pages):
    for page in (pages.localize, pages.index):
        assert 'id="token-form"' in page.content
    assert 'data-max-mb="7"' in pages.localize.content
