"""A server that nobody vouches for: it neither fills the disk nor holds the call, and sends nobody elsewhere."""

import json
import re
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save

from progeo.export import downloads
from progeo.export.downloads import Limits, check_address
from progeo.export.fetch import fetch_folder
from progeo.files import read_json
from progeo.models.weight_files.tensor_files import read_safetensors

LIMITS = Limits(small_bytes=100_000, large_bytes=1_000_000, stalled_s=5, small_s=5, min_bytes_per_s=1_000_000)
WEIGHTS = save({"a": torch.arange(1000.0)})
START = b"HTTP/1.1 200 OK\r\n\r\n"


@contextmanager
def serving(answer):
    """The URL of a server that answers a request for a path by `answer(path, write)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with suppress(OSError):  # whoever asked is gone
                answer(self.path, self.wfile.write)
            self.close_connection = True

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def always(data):
    return lambda path, write: write(data)


def endless(data, part=bytes(10_000), pause_s=0.0):
    """Data, and then more and more."""

    def answer(path, write):
        write(data)
        while True:
            write(part)
            time.sleep(pause_s)

    return answer


def in_chunks(path, write):
    write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        write(b"2710\r\n" + bytes(10_000) + b"\r\n")


def header_of(num_bytes):
    """The beginning of weights that say that they have so many bytes."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """What comes of a file, fetched from such a server; the home of what is kept is the test's own folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("PROGEO_INSECURE_DOWNLOADS", "1")

    def fetched(answer, name="model.json", limits=LIMITS):
        read = read_json if name.endswith(".json") else read_safetensors
        with serving(answer) as address:
            return read(fetch_folder(f"{address}/x", {name: read}, limits=limits) / name)

    return fetched


def test_files_within_the_limits_are_fetched_whole(fetch):
    assert fetch(always(START + b'{"a": 3}')) == {"a": 3}
    found = fetch(always(START + WEIGHTS), "model.safetensors")
    assert torch.equal(found["a"], torch.arange(1000.0))


@pytest.mark.parametrize(
    ("answer", "name", "sentence"),
    [
        (endless(START), "model.json", "the server sends more than 100,000 bytes, which a model.json like this has"),
        (endless(START), "model.safetensors", "the server sends more than 100,000 bytes"),
        (in_chunks, "model.safetensors", "the server sends more than 100,000 bytes"),
        (endless(START + WEIGHTS), "model.safetensors", f"the server sends more than {len(WEIGHTS):,} bytes"),
        (
            endless(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"),
            "model.json",
            "the server announces 200,000 bytes, a model.json like this has at most 100,000",
        ),
        (
            endless(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + WEIGHTS),
            "model.safetensors",
            f"the server announces 200,000 bytes, a model.safetensors like this has at most {len(WEIGHTS):,}",
        ),
        (
            endless(START + header_of(2_000_000)),
            "model.safetensors",
            "its header announces 2,000,0.. bytes, the limit is 1,000,000",
        ),
        (always(START + b"[" * 90_000), "model.json", "the downloaded model.json is corrupt or incomplete"),
        (
            always(START + WEIGHTS[:-1]),
            "model.safetensors",
            "the downloaded model.safetensors is corrupt or incomplete",
        ),
        (
            always(START + header_of(100)[:20]),
            "model.safetensors",
            "the downloaded model.safetensors is corrupt or incomplete",
        ),
        (always(b"HTTP/1.1 404 \x1b[31mred\r\n\r\n"), "model.json", r"HTTP Error 404: \?\[31mred"),
    ],
)
def test_what_is_larger_than_it_may_be_or_not_whole_is_refused_and_not_kept(answer, name, sentence, fetch, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"x/{name} could not be fetched: {sentence}") as caught:
        fetch(answer, name)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_weights_that_the_disk_has_no_room_for_are_not_begun(fetch, tmp_path):
    sentence = "its header announces 1,000,000,000,000,0.. bytes, .* has room for "
    limits = Limits(small_bytes=1000, large_bytes=10**18)
    with pytest.raises(FileNotFoundError, match=sentence):
        fetch(endless(START + header_of(10**15)), "model.safetensors", limits)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_is_full_is_named_and_nothing_is_kept(fetch, full_disk, tmp_path):
    data = save({"a": torch.rand(50_000)})
    with (
        full_disk(),
        pytest.raises(FileNotFoundError, match=r"model\.safetensors could not be written: .*File too large"),
    ):
        fetch(always(START + data), "model.safetensors")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (endless(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x", 0.01), "model.json"),
        (endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0", 0.01), "model.json"),
        (endless(START, b" ", 0.01), "model.json"),
        (endless(START + header_of(900_000), b" ", 0.01), "model.safetensors"),
    ],
    ids=["headers", "length of a chunk", "small file", "weights"],
)
def test_a_server_that_sends_a_byte_now_and_then_is_left(answer, name, fetch, tmp_path):
    limits = Limits(stalled_s=5, small_s=0.2, min_bytes_per_s=10_000_000)
    with pytest.raises(FileNotFoundError, match="could not be fetched: it takes longer than 0 seconds"):
        fetch(answer, name, limits)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_server_that_stops_in_the_middle_is_left(fetch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"could not be fetched: timed out\."):
        fetch(endless(START + WEIGHTS[:-100], b"", 1), "model.safetensors", Limits(stalled_s=0.1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def redirect(address, more=b"\r\n"):
    return b"HTTP/1.1 302 Found\r\nLocation: " + address.encode() + b"\r\n" + more


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/x", "file:///etc/hostname", "data:,{}"])
def test_a_redirect_leads_to_no_other_kind_of_address(address, fetch, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"could not be fetched: .*{address}.* (neither http|not allowed)"):
        fetch(always(redirect(address)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_redirect_is_followed_and_what_comes_with_it_is_not_read(fetch):
    def answer(path, write):
        if path != "/x/model.json":
            return write(START + b"[3]")
        return endless(redirect("/elsewhere"))(path, write)

    assert fetch(answer) == [3]


def test_redirects_without_end_end(fetch):
    with pytest.raises(FileNotFoundError, match=r"could not be fetched: HTTP Error 302: .* infinite loop"):
        fetch(always(redirect("/x/model.json")))


def addresses(*found):
    """A stand-in of `socket.getaddrinfo` that finds these addresses for any name."""
    return lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]


@pytest.mark.parametrize(
    ("url", "found", "sentence"),
    [
        (
            "http://example.com/x",
            ["93.184.216.34"],
            "http://example.com/x is not encrypted: use https, or set PR",
        ),
        (
            "https://example.com/x",
            ["10.0.0.1"],
            "10.0.0.1 is an address of this machine or of a private network: ",
        ),
        ("https://example.com/x", ["93.184.216.34", "127.0.0.1"], "127.0.0.1 is an address of this machine"),
        ("https://example.com/x", ["169.254.169.254"], "169.254.169.254 is an address of this machine"),
        *(
            ("https://example.com/x", [each], f"{each} is an address of this machine")
            for each in ("64:ff9b::a00:1", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "ff02::1", "224.0.0.1")
        ),
        ("https://example.com/x", ["::1"], "::1 is an address of this machine"),
        ("https://example.com/x", ["fe80::1%eth0"], "fe80::1%eth0 is an address of this machine"),
        ("https://example.com/x", ["::ffff:192.168.1.1"], "::ffff:192.168.1.1 is an address of this machine"),
        ("file:///etc/hostname", [], "file:///etc/hostname is neither http nor https"),
        ("ftp://example.com/x", [], "ftp://example.com/x is neither http nor https"),
        ("https:///x", [], "https:///x is neither http nor https"),
    ],
)
def test_only_encrypted_public_addresses_are_fetched(url, found, sentence, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", addresses(*found))
    with pytest.raises(HTTPException, match=f"^{re.escape(sentence)}"):
        check_address(url)
    if url.startswith("http") and found:
        monkeypatch.setenv("PROGEO_INSECURE_DOWNLOADS", "1")
        check_address(url)


def test_a_public_address_is_allowed(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", addresses("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"))
    check_address("https://example.com/x")


def test_an_encoder_is_not_fetched_from_this_machine_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []
    with serving(lambda path, write: asked.append(path)) as address:
        for url in (address, address.replace("http:", "https:")):
            with pytest.raises(FileNotFoundError, match=r"x/model.json could not be .*PROGEO_INSECURE_DOWNLOADS=1 to"):
                fetch_folder(f"{url}/x", {"model.json": read_json})
    assert not asked


def test_a_redirect_leads_to_no_private_address(fetch, monkeypatch):
    checked = []

    def check(url):
        checked.append(url)
        if url.endswith("elsewhere"):
            raise HTTPException(f"{url} is private")

    monkeypatch.setattr(downloads, "check_address", check)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched: it is redirected, and http.*e is private"):
        fetch(always(redirect("/elsewhere")))
    assert len(checked) == 2


def test_a_host_that_moves_to_a_private_address_meanwhile_is_left(monkeypatch):
    class Socket:
        def getpeername(self):
            return "127.0.0.1", 443

    connection = downloads._PublicConnection("example.com")
    monkeypatch.setattr(downloads.HTTPSConnection, "connect", lambda self: setattr(self, "sock", Socket()))
    with pytest.raises(HTTPException, match=r"127\.0\.0\.1 is an address of this machine"):
        connection.connect()
    through_proxy = downloads._PublicConnection("127.0.0.1")
    through_proxy.set_tunnel("example.com")
    through_proxy.connect()
