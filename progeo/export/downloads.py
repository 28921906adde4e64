"""Downloads from untrusted servers, with limits on size and time."""

import ipaddress
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener, getproxies, proxy_bypass

from progeo.progress import Progress

INSECURE_VARIABLE = "PROGEO_INSECURE_DOWNLOADS"
"""Environment variable that, set to 1, also allows http and addresses of this machine and private networks."""
_WITH_IPV4_LAST = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96")))
"""Networks of IPv6 whose addresses end in one of IPv4: compatible ones and those that a gateway translates (NAT64)."""
_LENGTH = 8
"""Number of bytes at the beginning of a .safetensors file that hold the length of its header."""
_PART = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits on the size and time of a download."""

    small_bytes: int = 4_000_000
    """Maximum size of a small file, or of the header of a .safetensors file, which holds the size of the weights."""
    large_bytes: int = 32_000_000_000
    """Maximum size of a .safetensors file."""
    stalled_s: float = 60
    """Maximum time without receiving a byte, in seconds."""
    small_s: float = 60
    """Time allowed for a download, connecting included, on top of the time for the bytes received, in seconds."""
    min_bytes_per_s: float = 10_000
    """Minimum average speed: each received byte extends the allowed time by 1 / `min_bytes_per_s` seconds."""


def download(url: str, stream: BinaryIO, path: Path, limits: Limits) -> None:
    """Download an https URL of a public address into a stream, through the proxies set in the environment.

    With PROGEO_INSECURE_DOWNLOADS=1 in the environment, http and addresses of this machine and of private networks are
    allowed too. A daemon thread reads from the server. After a timeout it is abandoned, and ends at its next write,
    when `stream` is closed.

    Args:
        stream: written to; the caller must close it in any case.
        path: final path of the file; its suffix distinguishes weights from small files.

    Raises:
        HTTPException: the address is not allowed, the server cannot be reached, lacks the file, is too slow, or sends
            too much or too little.
        OSError: the stream cannot be written.
    """
    outcome: SimpleQueue[Exception | None] = SimpleQueue()
    bar = Progress(f"downloading {path.name}", unit="bytes")

    def copy() -> None:
        try:
            for part in _received(url, path, limits, bar):
                stream.write(part)
                bar.update(len(part))
        except Exception as error:  # raised again in the waiting thread
            outcome.put(error)
        else:
            outcome.put(None)

    start = time.monotonic()
    Thread(target=copy, daemon=True).start()
    with bar:
        while True:
            allowed_s = limits.small_s + stream.tell() / limits.min_bytes_per_s
            if (left_s := start + allowed_s - time.monotonic()) <= 0:
                raise HTTPException(f"it takes longer than {allowed_s:,.0f} seconds")
            with suppress(Empty):
                if (error := outcome.get(timeout=left_s)) is not None:
                    raise error
                return


def _received(url: str, path: Path, limits: Limits, bar: Progress) -> Iterator[bytes]:
    """Yield the content of a URL in chunks, up to the maximum size, and tell the announced size to a bar.

    Raises:
        HTTPException: the content is longer or shorter than allowed or announced. Network errors are converted to it
            too, so that they are not mistaken for disk errors.
    """
    check_address(url)
    try:
        with build_opener(_Redirects, _PublicHandler).open(url, timeout=limits.stalled_s) as response:
            announced, found = response.length, 0
            bar.expect(announced)
            part, max_bytes = _beginning(response, path, limits)
            if announced is not None and announced > max_bytes:
                raise HTTPException(
                    f"the server announces {announced:,} bytes, a {path.name} like this has at most {max_bytes:,}"
                )
            while part:
                found += len(part)
                if found > max_bytes:
                    raise HTTPException(
                        f"the server sends more than {max_bytes:,} bytes, which a {path.name} like this has at most"
                    )
                yield part
                part = response.read1(_PART)
            if announced is not None and found != announced:  # no error is raised when the connection is lost
                raise HTTPException(f"it broke off after {found:,} of {announced:,} bytes")
    except OSError as error:
        raise HTTPException(str(error)) from None


def _beginning(response: HTTPResponse, path: Path, limits: Limits) -> tuple[bytes, int]:
    """Read the first bytes (of weights, the header); return them and the maximum size of the file in bytes."""
    beginning = response.read(_LENGTH)
    header_bytes = int.from_bytes(beginning, "little")
    if path.suffix != ".safetensors" or not 0 < header_bytes <= limits.small_bytes:
        return beginning, limits.small_bytes
    header = response.read(header_bytes)
    num_bytes = _LENGTH + header_bytes + _bytes_of_tensors(header)
    if num_bytes > limits.large_bytes:
        raise HTTPException(f"its header announces {num_bytes:,} bytes, the limit is {limits.large_bytes:,}")
    if num_bytes > (free := shutil.disk_usage(path.parent).free):
        raise HTTPException(f"its header announces {num_bytes:,} bytes, {path.parent} has room for {free:,}")
    return beginning + header, num_bytes


def _bytes_of_tensors(header: bytes) -> int:
    """Return the number of bytes after a .safetensors header, as the header states it; 0 for an invalid header."""
    try:
        tensors = json.loads(header)
        return max(int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return 0


def check_address(url: str) -> None:
    """Check that a URL is https and its host public, unless PROGEO_INSECURE_DOWNLOADS=1 is set.

    Raises:
        HTTPException: it is not, or it is no http address at all.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise HTTPException(f"{url} is neither http nor https")
    if os.environ.get(INSECURE_VARIABLE) == "1":
        return
    if parts.scheme != "https":
        raise HTTPException(f"{url} is not encrypted: use https, or set {INSECURE_VARIABLE}=1 to allow it")
    if not _is_direct(parts.hostname):  # the proxy finds the host
        addresses = [parts.hostname]
    else:
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise HTTPException(f"{parts.hostname} is not found: {error}") from None
        addresses = [str(place[0]) for *_, place in found]
    for address in addresses:
        _check_public(address)


def _is_direct(host: str) -> bool:
    """Return whether a host is reached without a proxy."""
    return "https" not in getproxies() or bool(proxy_bypass(host))


def _check_public(address: str) -> None:
    """Check that a numeric address is public; names pass."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return
    if isinstance(found, ipaddress.IPv6Address):  # an address of IPv4 may stand in one of IPv6
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and any(found in network for network in _WITH_IPV4_LAST):
            inner = ipaddress.IPv4Address(int(found) % 2**32)
        found = inner or found
    is_local = found.is_multicast or found.is_reserved or getattr(found, "is_site_local", False)
    if is_local or not found.is_global:
        raise HTTPException(
            f"{address} is an address of this machine or of a private network: set {INSECURE_VARIABLE}=1 to allow it"
        )


class _PublicConnection(HTTPSConnection):
    """Connection that ends at once if its host, which may have another address by now, is not public."""

    def connect(self) -> None:
        super().connect()
        is_tunnel = getattr(self, "_tunnel_host", None) is not None  # through a proxy, which may be private
        if os.environ.get(INSECURE_VARIABLE) != "1" and not is_tunnel:
            _check_public(self.sock.getpeername()[0])


class _PublicHandler(HTTPSHandler):
    """Handler of https that uses `_PublicConnection`."""

    def https_open(self, req: Request) -> HTTPResponse:
        """Open an https URL."""
        return self.do_open(_PublicConnection, req)


class _Redirects(HTTPRedirectHandler):
    """Redirect handler that leads to allowed addresses only, and does not read the body of a redirect."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """Create the request to the new address.

        Raises:
            HTTPException: the new address is not allowed, see `check_address`.
        """
        try:
            check_address(newurl)
        except HTTPException as error:
            raise HTTPException(f"it is redirected, and {error}") from None
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)
