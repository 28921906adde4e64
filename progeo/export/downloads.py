"""Files from a server that nobody vouches for: none holds the call forever, and none sends more than it may."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

_LENGTH = 8
"""Bytes at the beginning of a .safetensors file that say the length of its header."""
_PART = 1 << 20


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
    """From the first connection on, beside the time for the bytes that came."""
    min_bytes_per_s: float = 10_000
    """Of what came, on average."""


def download(url: str, stream: BinaryIO, path: Path, limits: Limits) -> None:
    """Write what lies at a URL of http or https, through the proxies that the environment names.

    A thread waits for the server. Where the time is over it is left alone, and ends at the next byte, as `stream` is
    closed then.

    Args:
        url: of the file.
        stream: what is written to; to be closed whatever happens.
        path: of the file as it will be kept, which tells weights from small files.
        limits: of bytes and time.

    Raises:
        HTTPException: the server cannot be reached, does not have it, is too slow, sends too much or too little.
        OSError: it cannot be written.
    """
    outcome: SimpleQueue[Exception | None] = SimpleQueue()

    def copy() -> None:
        try:
            for part in _received(url, path, limits):
                stream.write(part)
        except Exception as error:  # raised again where it is waited for
            outcome.put(error)
        else:
            outcome.put(None)

    start = time.monotonic()
    Thread(target=copy, daemon=True).start()
    while True:
        allowed_s = limits.small_s + stream.tell() / limits.min_bytes_per_s
        if (left_s := start + allowed_s - time.monotonic()) <= 0:
            raise HTTPException(f"it takes longer than {allowed_s:,.0f} seconds")
        with suppress(Empty):
            if (error := outcome.get(timeout=left_s)) is not None:
                raise error
            return


def _received(url: str, path: Path, limits: Limits) -> Iterator[bytes]:
    """What a server sends, part by part, no more than it may be.

    Raises:
        HTTPException: it is more or less; errors of the network too, which are not to be taken for those of the disk.
    """
    try:
        with build_opener(_Redirects).open(url, timeout=limits.stalled_s) as response:
            announced, found = response.length, 0
            part, most = _beginning(response, path, limits)
            if announced is not None and announced > most:
                raise HTTPException(
                    f"the server announces {announced:,} bytes, a {path.name} like this has at most {most:,}"
                )
            while part:
                found += len(part)
                if found > most:
                    raise HTTPException(
                        f"the server sends more than {most:,} bytes, which a {path.name} like this has at most"
                    )
                yield part
                part = response.read1(_PART)
            if announced is not None and found != announced:  # reading ends without a word where the connection does
                raise HTTPException(f"it broke off after {found:,} of {announced:,} bytes")
    except OSError as error:
        raise HTTPException(str(error)) from None


def _beginning(response: HTTPResponse, path: Path, limits: Limits) -> tuple[bytes, int]:
    """The first bytes, of weights their header, and how many bytes there may be in all."""
    beginning = response.read(_LENGTH)
    header_bytes = int.from_bytes(beginning, "little")
    if path.suffix != ".safetensors" or not 0 < header_bytes <= limits.small_bytes:
        return beginning, limits.small_bytes
    header = response.read(header_bytes)
    most = _LENGTH + header_bytes + _bytes_of_tensors(header)
    if most > limits.large_bytes:
        raise HTTPException(f"it says that it has {most:,} bytes, at most {limits.large_bytes:,} are fetched")
    if most > (free := shutil.disk_usage(path.parent).free):
        raise HTTPException(f"it says that it has {most:,} bytes, {path.parent} has room for {free:,}")
    return beginning + header, most


def _bytes_of_tensors(header: bytes) -> int:
    """How many bytes follow the header of a .safetensors file, as it says itself; 0 where it is none."""
    try:
        tensors = json.loads(header)
        return max(int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return 0


class _Redirects(HTTPRedirectHandler):
    """To other addresses of http and https alone; what a redirect says beside the address is not read."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """The request to the new address."""
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPException(f"it is redirected to {newurl}, which is neither http nor https")
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)
