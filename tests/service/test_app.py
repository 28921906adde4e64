"""The service over HTTP: answers, refusals, limits, changes of the index, and how it stops."""

import io
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from running import files_in
from serving import serving, wait_until

import progeo
from progeo.engine.log import LOGGER
from progeo.localization.removing import remove_from_place_index
from progeo.service.queries import Query

TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def client(served_index):
    limits = {"max_upload_mb": 4, "max_photos": 3, "max_waiting": 4, "upload_s": 1, "answer_s": 20, "reload_s": 0.05}
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
    """Ids of the processes that decode, which do nothing in the block, as if an image were hard to decode."""
    decoders = [each.pid for each in multiprocessing.active_children()]
    for each in decoders:
        os.kill(each, signal.SIGSTOP)
    try:
        yield decoders
    finally:
        for each in decoders:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def test_photos_are_localized_as_by_the_index_itself(client, served_index, photos):
    answer = asked(client, *photos[:2], top="3", threshold="0.25")
    assert answer.status_code == 200
    assert (answer.json()["generation"], answer.json()["orientation"]) == (0, "exif")
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


def test_matches_are_verified_where_a_request_wants_it(client, served_index, photos):
    (result,) = asked(client, photos[0], verify="true").json()["results"]
    (right,) = progeo.open_index(served_index, device="cpu").localize(photos[0], verify=True)
    assert result["verified"] is True
    assert [match["row"] for match in result["matches"]] == [match.row for match in right.matches]
    assert [match["inliers"] for match in result["matches"]] == [match.inliers for match in right.matches]
    assert [match["lines"] for match in result["matches"]] == [[*map(list, match.lines)] for match in right.matches]
    assert result["matches"][0]["inliers"] > 0
    assert asked(client, photos[0], verify="false").json()["results"][0]["verified"] is False


def test_decoded_photos_that_wait_take_no_more_memory_than_is_allowed(client, photos, monkeypatch):
    monkeypatch.setattr("progeo.service.localizer._MAX_DECODED_BYTES", 1)
    before, may_go_on = number(client, "progeo_batch_photos_count"), threading.Event()
    localize = Query.localize
    monkeypatch.setattr(Query, "localize", lambda *arguments: may_go_on.wait(20) and localize(*arguments))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, client, photos[0])
        wait_until(lambda: number(client, "progeo_batch_photos_count") > before)
        assert asked(client, photos[0]).status_code == 429
        may_go_on.set()
        assert first.result().status_code == 200
    assert asked(client, photos[0]).status_code == 200


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
    assert far.json()["detail"].startswith("None of the 84 images of the index lies within 100 m of 10, 10")


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
    assert re.search(words, answer.json()["detail"])
    assert asked(client, photos[0]).status_code == 200


def test_a_bad_photo_among_others_is_a_result_with_an_error(client, photos):
    good, bad = asked(client, photos[0], b"a sentence").json()["results"]
    assert good["matches"] and not good["error"]
    assert bad["error"].startswith("The photo upload cannot be decoded")
    assert (bad["words"], bad["matches"], bad["latitude"]) == (bad["error"], [], None)


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"files": [("image", b"")]}, 400, "There is no field 'image': files go into 'photos', and settings are top, "),
        ({"files": [("photos", b"")] * 4}, 413, "There are more than 3 photos in the request."),
        ({"data": {"top": "3"}, "files": [("top", (None, "3"))]}, 400, "The field 'top' is given twice."),
        ({"files": [("top", (None, "3"))]}, 400, "There is no photo: send files in the field 'photos'."),
        ({"content": b"{}"}, 415, "Send a form (multipart/form-data) with the files in the field 'photos'"),
        (
            {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            400,
            "The form is truncated: send it again.",
        ),
        (
            {"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            400,
            "The form is corrupt (multipart/form-data).",
        ),
    ],
)
def test_a_form_that_is_wrong_is_refused_by_a_sentence(client, form, status, words):
    answer = client.post("/localize", **form)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(words)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("top", "0", "`top` is a number of matches from 1 to 100, got '0'."),
        ("top", "1e3", "`top` is a number of matches from 1 to 100, got '1e3'."),
        ("top", "000000001000000", "`top` is a number of matches from 1 to 100, got '000000001000000'."),
        ("threshold", "nan", "`threshold` is a confidence from 0 to 1, such as 0.5, got 'nan'."),
        ("threshold", "1.01", "`threshold` is a confidence from 0 to 1, such as 0.5, got '1.01'."),
        ("threshold", "0_1", "`threshold` is a confidence from 0 to 1, such as 0.5, got '0_1'."),
        ("near", "1,2", "`near`"),
        ("heading", "north", "`heading`"),
        ("verify", "yes", "`verify` is true or false, got 'yes'."),
        ("format", "csv", "`format` is json or geojson, got 'csv'."),
        ("top", "3" * 2000, "The value of the field 'top' is too long."),
    ],
)
def test_a_wrong_setting_is_refused_by_a_sentence(client, photos, setting, value, words):
    answer = asked(client, photos[0], **{setting: value})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(words)


def test_a_request_without_a_length_is_refused_once_it_is_too_large(client):
    def parts():
        yield b'--x\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\n\r\n'
        for _ in range(5):
            yield bytes(1_000_000)

    answer = client.post("/localize", content=parts(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        (b"POST /localize HTTP/1.1\r\nHost: localhost\r\nContent-Le", b"The request was not received in time."),
        (
            b"POST /localize HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\n\r\n--x",
            b"The request was not received within 1 s: send fewer or smaller photos.",
        ),
    ],
    ids=["head", "photos"],
)
def test_a_slow_sender_is_refused_and_others_answered_meanwhile(client, photos, beginning, words):
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as slow:
        slow.sendall(beginning)
        assert asked(client, photos[0]).status_code == 200
        received = b""
        while words not in received and (more := slow.recv(4096)):
            received += more
    assert received.startswith(b"HTTP/1.1 408 ") and words in received


def test_a_client_that_takes_no_answers_is_disconnected(client):
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address, timeout=30) as greedy, pytest.raises(ConnectionError):
        while True:
            greedy.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)


def test_clients_beyond_the_limit_are_refused(client, monkeypatch):
    monkeypatch.setattr("progeo.service.connections._MAX_CONNECTIONS", 0)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as other:
        received = b"".join(iter(lambda: other.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 503 ") and b"Too many clients are connected: try again later." in received


def test_what_clients_send_is_not_logged(client, caplog):
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as wrong:
        wrong.sendall(b"no request\r\n\r\n")
        assert wrong.recv(4096).startswith(b"HTTP/1.1 400 ")
    client.get("/health", headers={"connection": "upgrade", "upgrade": "websocket"})
    logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_too_many_photos_are_refused_until_those_that_wait_are_answered(client, photos):
    with ThreadPoolExecutor(4) as threads:
        with stopped_decoders():
            waiting = [threads.submit(asked, client, photo) for photo in photos[:4]]
            wait_until(lambda: number(client, "progeo_waiting_photos") == 4)
            refused = asked(client, photos[4])
        answers = [each.result() for each in waiting]
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {"detail": "Too many photos wait for their answer: try again later."}
    assert [each.status_code for each in answers] == [200] * 4
    assert [each.json()["results"][0]["photo"] for each in answers] == [photo.name for photo in photos[:4]]
    assert asked(client, photos[4]).status_code == 200


def test_a_decoder_that_is_killed_by_an_image_is_started_again(client, photos):
    before = number(client, "progeo_decoder_restarts_total")
    with ThreadPoolExecutor(1) as threads, stopped_decoders() as decoders:
        waiting = threads.submit(asked, client, photos[0])
        wait_until(lambda: number(client, "progeo_waiting_photos") == 1)
        for each in decoders:
            os.kill(each, signal.SIGKILL)
        answer = waiting.result()
    assert answer.status_code == 422
    assert answer.json() == {"detail": f"The photo {photos[0].name} cannot be decoded: it stopped its decoder."}
    assert asked(client, photos[0]).status_code == 200
    assert number(client, "progeo_decoder_restarts_total") == before + 1


def test_a_photo_is_not_blamed_where_no_decoder_can_be_started(client, photos, monkeypatch):
    for each in multiprocessing.active_children():
        each.kill()
        each.join()

    def refuse(*arguments, **keywords):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("multiprocessing.context.BaseContext.Pipe", refuse)
        for answer in (asked(client, photos[0]), client.get("/images/3")):
            assert answer.status_code == 503
            assert answer.json() == {"detail": "Photos cannot be decoded at the moment: try again later."}
    assert asked(client, photos[0]).status_code == 200


def test_an_image_of_the_index_is_scaled_down_without_metadata(client, served_index):
    answer = client.get("/images/3?generation=0&side=40")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    image = Image.open(io.BytesIO(answer.content))
    assert max(image.size) == 40 and not image.getexif() and "exif" not in image.info
    for missing in ("/images/84", "/images/3?generation=1"):
        refused = client.get(missing)
        assert refused.status_code == 404
        assert refused.json()["detail"].startswith("There is no image")
    assert answer.headers["cache-control"] == "private, max-age=60"
    assert client.get("/images/3").headers["cache-control"] == "no-store"
    assert client.get("/images/3?side=4000").status_code == 422
    assert client.get("/images/-1").status_code == 422


def test_every_answer_has_headers_that_keep_a_browser_safe(client, photos):
    answers = [asked(client, photos[0]), client.get("/health"), client.get("/nothing"), client.get("/docs")]
    assert [each.status_code for each in answers] == [200, 200, 404, 200]
    for each in answers:
        assert each.headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in each.headers["content-security-policy"]
        assert each.headers["x-content-type-options"] == "nosniff"
        assert each.headers["referrer-policy"] == "no-referrer"
        assert each.headers["cache-control"] == "no-store"
    assert answers[2].json() == {"detail": "There is nothing at this address."}
    assert client.get("/localize").json() == {"detail": "This address does not take this method."}


def test_a_page_of_another_host_cannot_use_a_service_without_a_token(client):
    answer = client.get("/health", headers={"host": "evil.example"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Without a token the service answers to localhost")
    answer = client.post("/localize", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403
    assert answer.json() == {"detail": "Without a token the service answers to its own pages only."}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9", 200),
        ("LOCALHOST", 200),
        ("127.0.0.2:9", 200),
        ("[::1]:9", 200),
        ("[::1]", 200),
        ("::1", 400),
        ("[", 400),
        ("[::1", 400),
        ("localhost:abc", 400),
        ("evil@localhost", 400),
        ("192.168.1.5", 400),
        ("localhost.evil.example", 400),
        ("", 400),
    ],
)
def test_without_a_token_only_requests_to_this_machine_are_answered(client, host, status):
    assert client.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"origin": "http://localhost:9"}, 415),
        ({"origin": "http://localhost:9", "sec-fetch-site": "same-origin"}, 415),
        ({"origin": "http://localhost:8"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_without_a_token_only_pages_of_the_service_may_send_photos(client, headers, status):
    assert client.post("/localize", headers={"host": "localhost:9", **headers}).status_code == status


def test_health_and_metrics_tell_numbers(client, photos):
    assert client.head("/health").status_code == 200
    assert client.get("/health/").status_code == 404
    assert client.get("/health").json() == {"status": "ok", "generation": 0, "images": 84, "of": "images"}
    before = number(client, 'progeo_photos_total{answer="no confidence"}')
    errors = number(client, 'progeo_photos_total{answer="error"}')
    asked(client, *photos[:3])
    asked(client, b"no photo")
    asked(client, b"no photo", b"no photo")
    assert number(client, 'progeo_photos_total{answer="error"}') == errors + 3
    assert number(client, 'progeo_photos_total{answer="no confidence"}') == before + 3
    assert number(client, "progeo_index_images ") == 84
    assert number(client, "progeo_waiting_photos ") == 0


def test_the_interface_is_documented_offline(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/localize", "/images/{row}", "/health", "/metrics"}
    form = document["paths"]["/localize"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert list(form["properties"]) == ["photos", "top", "threshold", "near", "heading", "verify", "format"]
    assert "HTTPValidationError" not in document["components"]["schemas"]  # refusals are one sentence each
    page = client.get("/docs").text
    for text in ("POST /localize", "GET /images/{row}", "Minimum confidence of a known position", "radius_m"):
        assert text in page
    assert "<script src" not in page and '<link rel="stylesheet' not in page


def test_a_changed_index_is_served_without_dropping_a_request(served_index, photos, tmp_path):
    folder = shutil.copytree(served_index, tmp_path / "index")
    with serving(folder, decoders=1, reload_s=0.05) as client:
        codes = set()

        def ask():
            while client.get("/health").json()["generation"] == 0:
                codes.add(asked(client, photos[0]).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        remove_from_place_index(folder, lambda part: np.array([3]))
        asking.join()
        assert codes == {200}
        assert asked(client, photos[0]).json()["generation"] == 1
        assert [client.get(f"/images/3?generation={each}").status_code for each in (0, 1, 2)] == [200, 404, 404]
        assert client.get("/images/4?generation=1").status_code == 200
        assert number(client, "progeo_index_images") == 83
        assert number(client, 'progeo_index_reloads_total{result="opened"}') == 1
        (folder / "index_1.json").write_text("{")
        (folder / "index.json").write_text("{")
        wait_until(lambda: number(client, 'progeo_index_reloads_total{result="failed"}') == 1)
        assert asked(client, photos[0]).json()["generation"] == 1


def test_a_service_that_is_stopped_answers_what_it_has_received(served_index, photos):
    with serving(served_index, decoders=1, token=TOKEN, no_images=True, show_paths=True) as client:
        assert {client.get(path).status_code for path in ("/health", "/metrics", "/images/1")} == {401}
        assert client.get("/health", headers={"authorization": "Bearer other"}).json() == {
            "detail": 'Give the token of the service in the header "Authorization: Bearer TOKEN".'
        }
        assert [client.get(path).status_code for path in ("/docs", "/openapi.json")] == [200, 200]
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert client.get("/health", headers={"host": "proxy.example"}).status_code == 200
        assert client.get("/images/1").status_code == 404
        with ThreadPoolExecutor(1) as threads, stopped_decoders():
            waiting = threads.submit(asked, client, photos[0])
            wait_until(lambda: number(client, "progeo_waiting_photos") == 1)
            client.server.should_exit = True
            wait_until(lambda: not client.server.servers[0].is_serving())
            with pytest.raises(httpx.ConnectError):
                httpx.get(client.base_url, trust_env=False)
            assert client.thread.is_alive()
        answer = waiting.result()
        client.thread.join()
    assert answer.status_code == 200
    match = answer.json()["results"][0]["matches"][0]
    assert Path(match["name"]).is_file() and match["image"] is None


def test_a_service_that_is_stopped_twice_gives_up_its_requests_by_a_sentence(served_index, photos, caplog):
    with serving(served_index, decoders=1) as client, ThreadPoolExecutor(1) as threads:
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(caplog.handler)
        with stopped_decoders():
            waiting = threads.submit(asked, client, photos[0])
            wait_until(lambda: number(client, "progeo_waiting_photos") == 1)
            client.server.should_exit = client.server.force_exit = True
            answer = waiting.result()
        client.thread.join()
        logger.removeHandler(caplog.handler)
    assert (answer.status_code, answer.json()) == (503, {"detail": "The service was stopped."})
    assert caplog.text == ""


def test_no_photo_is_stored_or_logged(client, served_index, full_disk, caplog):
    before = files_in(served_index)
    photo = jpeg(comment=b"a secret comment") + bytes(2_000_000)
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.DEBUG), full_disk():
        assert client.post("/localize", files={"photos": ("a secret name.jpg", photo)}).status_code == 200
        assert client.post("/localize", files={"photos": ("a secret name.jpg", photo[:500])}).status_code == 422
    LOGGER.removeHandler(caplog.handler)
    assert "secret" not in caplog.text
    assert files_in(served_index) == before


def test_a_sender_that_leaves_is_counted_and_not_logged_as_a_failure(client, caplog):
    before = number(client, 'progeo_requests_total{method="POST",route="/localize",status="499"}')
    LOGGER.addHandler(caplog.handler)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
        leaving.sendall(
            b"POST /localize HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000\r\n\r\n--x"
        )
    name = 'progeo_requests_total{method="POST",route="/localize",status="499"}'
    wait_until(lambda: number(client, name) == before + 1)
    LOGGER.removeHandler(caplog.handler)
    assert "failed" not in caplog.text


def test_a_sender_that_leaves_gives_up_its_place_among_those_that_wait(client, photos):
    with ThreadPoolExecutor(1) as threads, stopped_decoders():
        decoded = threads.submit(asked, client, photos[0])
        wait_until(lambda: number(client, "progeo_waiting_photos") == 1)
        request = client.build_request("POST", "/localize", files={"photos": photos[1].read_bytes()})
        with socket.create_connection((client.base_url.host, client.base_url.port)) as leaving:
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            leaving.sendall(f"POST /localize HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            wait_until(lambda: number(client, "progeo_waiting_photos") == 2)
        wait_until(lambda: number(client, "progeo_waiting_photos") == 1)
    assert decoded.result().status_code == 200


def test_a_photo_that_takes_too_long_is_given_up_and_its_decoder_started_again(served_index, photos):
    with serving(served_index, decoders=1, answer_s=4) as client:
        with stopped_decoders():
            answer = asked(client, photos[0])
        assert answer.status_code == 422
        assert answer.json() == {"detail": f"The photo {photos[0].name} cannot be decoded: it took more than 2 s."}
        assert number(client, "progeo_decoder_restarts_total") == 1
        assert asked(client, photos[0]).status_code == 200
