"""The address and the token of the service, and its process."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from running import ROOT

from progeo.service.options import ServiceOptions
from progeo.service.server import check_host, listen, token_of


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "progeo.example"])
def test_an_address_that_others_can_reach_needs_a_token(host):
    with pytest.raises(ValueError, match=f"`host` {host} can be reached from other machines: give `token` or the"):
        check_host(host, ServiceOptions())
    check_host(host, ServiceOptions(token="secret"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_an_address_of_this_machine_needs_none(host):
    check_host(host, ServiceOptions())


def test_the_token_of_the_options_comes_before_that_of_the_environment(monkeypatch):
    assert token_of(ServiceOptions()) is None
    monkeypatch.setenv("PROGEO_TOKEN", "other")
    assert token_of(ServiceOptions()) == "other"
    assert token_of(ServiceOptions(token="mine")) == "mine"
    with pytest.raises(ValueError, match=r"`token` \(or PROGEO_TOKEN\) has letters, digits and signs of ASCII only"):
        token_of(ServiceOptions(token="two words"))
    assert "mine" not in repr(ServiceOptions(token="mine"))


def test_a_request_that_would_always_be_refused_is_an_error_of_the_options():
    with pytest.raises(
        ValueError, match=r"^`max_photos` must be at most `max_waiting`, got 16 and 15: a request of as "
    ):
        ServiceOptions(max_waiting=15)
    assert ServiceOptions(max_waiting=16).max_photos == 16


def test_a_port_that_is_taken_is_refused_by_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"^127.0.0.1, port {port}, cannot be listened at: .* --host or --port\.$"):
            listen("127.0.0.1", port)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_stopped_and_logs_no_photo(served_index, photos, number):
    command = [sys.executable, "-m", "progeo", "serve", "--index", str(served_index), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROGEO_TOKEN": "secret"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        first = process.stderr.readline()
        address = re.search(r"^listening at (http://127\.0\.0\.1:\d+)/$", first)[1]
        with httpx.Client(base_url=address, headers={"authorization": "Bearer secret"}, trust_env=False) as client:
            for content, status in ((photos[0].read_bytes(), 200), (b"no photo", 422)):
                answer = client.post("/localize", files={"photos": ("a name.jpg", content)}, timeout=60)
                assert answer.status_code == status
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, rest) == (0, "stopped\n")
