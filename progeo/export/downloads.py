"""Files from a server that nobody vouches for: none holds the call forever, and none sends more than it may."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)


@dataclass(frozen=True)
class Limits:
    """What a server may send, and how long it may take."""

    small_bytes: int = 4_000_000
    """Of a small file, or of the header of weights, which says how many bytes of weights there are."""
    large_bytes: int = 32_000_000_000
    """Of weights."""
    stalled_s: float = 60
    """Without a byte."""
    small_s: float = 60
    """For a small file, from the first connection on."""
    min_bytes_per_s: float = 10_000
    """Of weights, on average."""


class Patience:
    """How long one file is waited for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._allowed_s = limits.small_s
        self._start = time.monotonic()

    def wait_for(self, num_bytes: int) -> None:
        """Wait for so many bytes of weights."""
        self._allowed_s = self._limits.small_s + num_bytes / self._limits.min_bytes_per_s

    def next_wait_s(self) -> float:
        """Seconds that the next byte may take.

        Raises:
            HTTPException: the time is over.
        """
        left_s = self._start + self._allowed_s - time.monotonic()
        if left_s <= 0:
            raise HTTPException(f"it takes longer than {self._allowed_s:,.0f} seconds")
        return min(left_s, self._limits.stalled_s)


@contextmanager
def open_url(url: str, patience: Patience) -> Iterator[HTTPResponse]:
    """Open what lies at a URL of http or https, through the proxies that the environment names.

    Raises:
        OSError, HTTPException: the server cannot be reached, does not have it, is too slow, or sends elsewhere.
    """
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler(), _PatientHTTP(patience), _PatientHTTPS(patience), _Redirects()),
        *(HTTPErrorProcessor(), HTTPDefaultErrorHandler(), UnknownHandler()),
    ):
        opener.add_handler(handler)
    with opener.open(url, timeout=patience.next_wait_s()) as response:
        yield response


class _Redirects(HTTPRedirectHandler):
    """To other addresses of http and https alone; what a redirect says beside the address is not read."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """The request to the new address."""
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPException(f"it is redirected to {newurl}, which is neither http nor https")
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Patient:
    """Connections whose every read is waited for no longer than patience lasts, headers included."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._patience = patience

    def do_open(self, http_class: Any, req: Request, **options: Any) -> HTTPResponse:
        """Send a request; urllib calls this for every address on the way."""

        def connection(host: str, **more: Any) -> HTTPConnection:
            made = http_class(host, **more)
            made.response_class = partial(_PatientResponse, patience=self._patience)
            return made

        req.timeout = self._patience.next_wait_s()
        return super().do_open(connection, req, **options)


class _PatientHTTP(_Patient, HTTPHandler):
    pass


class _PatientHTTPS(_Patient, HTTPSHandler):
    pass


class _PatientResponse(HTTPResponse):
    def __init__(self, sock: Any, *arguments: Any, patience: Patience, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = BufferedReader(_PatientSocket(self.fp.detach(), sock, patience))


class _PatientSocket(RawIOBase):
    """What comes from a socket."""

    def __init__(self, raw: RawIOBase, sock: Any, patience: Patience) -> None:
        self._raw, self._socket, self._patience = raw, sock, patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._patience.next_wait_s())
        try:
            return self._raw.readinto(buffer)
        except OSError as error:  # of the network, which is not to be taken for one of the disk
            self._patience.next_wait_s()
            raise HTTPException(str(error)) from None

    def close(self) -> None:
        self._raw.close()
        super().close()
