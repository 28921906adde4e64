"""The service over HTTP: answers, refusals, limits, changes of the index, and how it stops."""

import io
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from indexes import command
from PIL import Image
from running import files_in
from serving import serving

import progeo
from progeo.engine.log import LOGGER

TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def lines():
    """All lines that the services of this module log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    for logger in (LOGGER, logging.getLogger("uvicorn")):
        logger.addHandler(handler)
    yield lines
    for logger in (LOGGER, logging.getLogger("uvicorn")):
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def client(served_index, lines):
    limits = {"max_upload_mb": 4, "max_photos": 3, "max_waiting": 4, "upload_s": 1, "answer_s": 5, "reload_s": 0.05}
    with serving(served_index, decoders=1, **limits) as client:
        yield client


def asked(client, *contents, **settings):
    """The answer to photos, given as paths or as bytes."""
    files = [("photos", (each.name, each.read_bytes()) if isinstance(each, Path) else each) for each in contents]
    return client.post("/localize", files=files, data=settings)


def number(client, name):
    """A number of the metrics."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@contextmanager
def stopped_decoders():
    """Processes that decode, which do nothing in the block, as if an image were hard to decode."""
    decoders = multiprocessing.active_children()
    for each in decoders:
        os.kill(each.pid, signal.SIGSTOP)
    try:
        yield decoders
    finally:
        for each in decoders:
            os.kill(each.pid, signal.SIGCONT)


def test_photos_are_localized_as_by_the_index_itself(client, served_index, photos):
    answer = asked(client, *photos[:2], top="3", threshold="0.25")
    assert answer.status_code == 200
    assert answer.json()["generation"] == 0
    expected = progeo.open_index(served_index, device="cpu").localize(photos[:2], top=3)
    for result, right, photo in zip(answer.json()["results"], expected, photos, strict=False):
        first = right.matches[0]
        assert [match["row"] for match in result["matches"]] == [match.row for match in right.matches]
        assert result["photo"] == photo.name
        assert (result["latitude"], result["longitude"]) == (first.latitude, first.longitude)
        assert (result["position"], result["link"]) == (first.position, first.map_link)
        assert (result["known"], result["confidence"], result["verified"], result["error"]) == (None, None, False, "")
        assert result["words"] == "No confidence: the index is not calibrated"
        match = result["matches"][0]
        assert match == {
            "name": Path(first.path).name,
            "latitude": first.latitude,
            "longitude": first.longitude,
            "east_m": first.east_m,
            "north_m": first.north_m,
            "heading_deg": first.heading_deg,
            "distance": pytest.approx(first.distance, abs=1e-5),
            "probability": None,
            "inliers": None,
            "lines": [],
            "corners": None,
            "row": first.row,
            "image": f"/images/{first.row}?generation=0",
        }


def test_geojson_has_a_point_for_each_photo_and_no_path(client, photos, city):
    answer = asked(client, photos[0], format="geojson")
    assert answer.headers["content-type"] == "application/geo+json"
    (feature,) = answer.json()["features"]
    result = asked(client, photos[0]).json()["results"][0]
    assert feature["geometry"] == {"type": "Point", "coordinates": [result["longitude"], result["latitude"]]}
    assert feature["properties"]["match"] == result["matches"][0]["name"]
    assert str(city) not in answer.text


def test_only_images_near_a_position_match(client, photos):
    at = asked(client, photos[0], top="5").json()["results"][0]["matches"][4]
    near = f"{at['latitude']},{at['longitude']},1"
    (result,) = asked(client, photos[0], near=near).json()["results"]
    assert {(match["latitude"], match["longitude"]) for match in result["matches"]} == {
        (at["latitude"], at["longitude"])
    }
    far = asked(client, photos[0], near="10,10,100")
    assert far.status_code == 422
    assert far.json()["detail"].startswith("None of the 84 images of the index lies within 100 m of 10.0, 10.0")


def bomb():
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stream, "PNG")
    return stream.getvalue()


def jpeg(**options):
    stream = io.BytesIO()
    Image.radial_gradient("L").save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (jpeg()[:900], 422, r"^The photo upload cannot be decoded: .*truncated.*\.$"),
        (bomb(), 422, "^The photo upload cannot be decoded: it has more than 50,000,000 pixels"),
        (b"a sentence", 422, "^The photo upload cannot be decoded: it is none of JPEG, PNG, WEBP"),
        (b"", 422, "^The photo upload cannot be decoded"),
        (bytes(50_000_000), 413, "^The request is larger than 4 MB"),
    ],
    ids=["truncated", "bomb", "text", "empty", "50 MB"],
)
def test_a_bad_photo_is_refused_by_a_sentence_and_the_next_one_answered(client, photos, content, status, words):
    answer = asked(client, content)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    pytest.raises(ValueError, _raise, answer.json()["detail"]).match(words)
    assert asked(client, photos[0]).status_code == 200


def _raise(text):
    raise ValueError(text)


def test_a_bad_photo_among_others_is_a_result_with_an_error(client, photos):
    good, bad = asked(client, photos[0], b"a sentence").json()["results"]
    assert good["matches"] and not good["error"]
    assert bad["error"].startswith("The photo upload cannot be decoded")
    assert (bad["words"], bad["matches"], bad["latitude"]) == (bad["error"], [], None)
