import http.server
import threading

import numpy as np
import pytest
from qdrant_server import qdrant_server

from progeo.localization.engines.collection import Contents, Points
from progeo.localization.engines.points import point_id
from progeo.localization.engines.server import ServerCollection

POINTS = Points([point_id("00" * 8, 7)], np.ones((1, 2), np.float32), [{"part": "00" * 8}])


def collection(url, **options):
    return ServerCollection(url, "city", waits_s=(0, 0), **options)


def test_a_server_that_is_down_is_one_sentence():
    with pytest.raises(
        ConnectionError, match=r"^The Qdrant server at http://127.0.0.1:1 cannot be reached \(.*refused"
    ):
        collection("http://127.0.0.1:1").contents()


def test_a_server_that_stops_is_waited_for():
    with qdrant_server() as (url, _):
        mine = collection(url)
        mine.contents()
    waits = iter([0, 0])
    mine._waits_s = waits
    with pytest.raises(ConnectionError, match="cannot be reached"):
        mine.contents()
    assert list(waits) == []


def test_a_server_that_is_overloaded_is_tried_again():
    with qdrant_server(failures=[503, 429]) as (url, calls):
        assert collection(url).contents() is None
    assert calls == [("GET", "/exists")] * 3


def test_a_call_that_fails_too_often_or_for_good_is_not_tried_again():
    with qdrant_server(failures=[503, 502, 500]) as (url, calls):
        with pytest.raises(ConnectionError, match="cannot be reached"):
            collection(url).contents()
        assert len(calls) == 3
    with qdrant_server(failures=[422]) as (url, calls):
        with pytest.raises(ValueError, match=r"refused a call for city: out of order\.$"):
            collection(url).contents()
        assert len(calls) == 1


def test_the_key_is_read_from_the_environment_and_a_wrong_one_is_told(monkeypatch):
    with qdrant_server(key="secret") as (url, _):
        monkeypatch.setenv("QDRANT_API_KEY", "wrong")
        monkeypatch.setenv("QDRANT_URL", url)
        with pytest.raises(ValueError, match=f"refuses the key: set the environment variables QDRANT_URL to {url}"):
            collection(url).contents()
        monkeypatch.setenv("QDRANT_API_KEY", "secret")
        mine = collection(url)
        mine.create(2, owner="me", quantization="none")
        assert mine.contents() == Contents(2, "me")
        assert "secret" not in mine.place


def test_the_key_is_sent_to_the_server_that_the_environment_names_only(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with qdrant_server(key="secret") as (url, _):
        monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:6333")
        with pytest.raises(ValueError, match="refuses the key"):
            collection(url).contents()
        monkeypatch.setenv("QDRANT_URL", f"{url}/")
        assert collection(url).contents() is None


def test_a_server_that_stores_no_owner_is_too_old():
    with qdrant_server(metadata=False) as (url, _), pytest.raises(ValueError, match=r"take Qdrant 1\.16 or later"):
        collection(url).create(2, owner="me", quantization="none")


@pytest.mark.parametrize("url", ["https://me:secret@host:6333", "http://host?api-key=secret", "http://host#secret"])
def test_a_url_with_a_key_is_refused(url):
    with pytest.raises(ValueError, match="must hold no key: give it in the environment variable QDRANT_API_KEY"):
        ServerCollection(url, "city")


def test_a_collection_that_is_gone_is_told():
    with (
        qdrant_server() as (url, _),
        pytest.raises(ValueError, match=r"^There is no collection city of the Qdrant server"),
    ):
        collection(url).upsert(POINTS)


def test_a_collection_that_another_process_created_meanwhile_is_taken():
    with qdrant_server(failures=[]) as (url, calls):
        first, second = collection(url), collection(url)
        first.create(2, owner="me", quantization="none")
        second.create(2, owner="other", quantization="none")
        assert second.contents() == Contents(2, "me")
        assert calls.count(("PUT", "")) == 1


@pytest.mark.parametrize("content", [b"<html>Hello</html>", b"{}", b'{"result": {"exists": "maybe"}}'])
def test_a_server_of_another_kind_is_told(content):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        with pytest.raises(ValueError, match="does not answer as Qdrant does: is it the address"):
            collection(f"http://127.0.0.1:{server.server_port}").contents()
    finally:
        server.shutdown()
        server.server_close()
