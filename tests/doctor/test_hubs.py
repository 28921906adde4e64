import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from progeo.doctor.hubs import HUBS, HubCheck, known_hubs


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_server_is_reached_if_it_answers_anything(server):
    found = HubCheck({server: "all", f"{server}/missing": "none"}).results()
    assert [(each.weights, each.answer) for each in found] == [("all", "reached"), ("none", "reached")]


def test_a_server_that_is_not_there_or_says_nothing_is_told_with_the_reason(server):
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))  # without listening
        addresses = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (silent, closed)]
        found = HubCheck({**dict.fromkeys(addresses, ""), "nonsense": "", server: ""}, timeout_s=0.2).results()
    answers = [each.answer for each in found]
    assert answers[0].startswith("no answer")
    assert answers[1].startswith("not reached: ") and "refused" in answers[1]
    assert answers[2] == "not reached: unknown url type: 'nonsense'"
    assert answers[3] == "reached"


def test_the_servers_are_those_that_the_environment_names(monkeypatch):
    first = next(iter(HUBS))
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert known_hubs() == HUBS
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/")
    mirrored = known_hubs()
    assert next(iter(mirrored)) == "https://mirror.example.org" and first not in mirrored
    assert list(mirrored.values()) == list(HUBS.values())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert list(known_hubs()) == list(HUBS)[1:]
