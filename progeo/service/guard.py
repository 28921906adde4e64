"""What holds for all requests: who may ask, safe headers, counts, and an answer to whatever goes wrong."""

import asyncio
import ipaddress
import re
import secrets
import time
from collections.abc import Mapping
from types import MappingProxyType

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from progeo.engine.log import LOGGER
from progeo.service.metrics import Metrics

PUBLIC = ("/", "/index", "/docs", "/openapi.json")
"""Paths that are served without a token: they hold nothing of the index."""
_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::[0-9]+)?")
"""A name or address in the header `Host`: one of IPv6 in brackets, or another, and a port."""
_GONE = 499
"""Status in the metrics of a request whose sender left before its answer."""
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)
"""Headers of every answer that does not give them itself."""


def is_local(host: str) -> bool:
    """Return whether a name or address always leads to this machine."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests without the token, or of pages of other hosts where there is none."""

    def __init__(self, app: ASGIApp, *, token: str | None, metrics: Metrics) -> None:
        self._app = app
        self._token = token
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            answer = self._refusal(scope) or self._app
            await answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = _GONE
        except asyncio.CancelledError:  # the service stops, and its time to finish requests is over
            if not status:
                await _sentence(503, "The service was stopped.")(scope, receive, send_with_headers)
        except Exception:
            LOGGER.exception("a request failed")
            if not status:
                await _sentence(500, "The service failed: its log tells why.")(scope, receive, send_with_headers)
        route = getattr(scope.get("route"), "path", "other")
        method = "other" if route == "other" or status == 405 else scope["method"]
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self._token is None:
            return _refusal_of_page(scope["method"], headers)
        kind, _, given = headers.get("authorization", "").partition(" ")
        is_right = kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._token.encode())
        if is_right or scope["path"] in PUBLIC:
            return None
        return _sentence(
            401,
            'Give the token of the service in the header "Authorization: Bearer TOKEN".',
            {"WWW-Authenticate": "Bearer"},
        )


def _refusal_of_page(method: str, headers: Headers) -> JSONResponse | None:
    """Refuse what a page of another host has a browser of this machine ask, also under a name that leads here."""
    host = headers.get("host", "")
    found = _HOST.fullmatch(host)
    if not found or not is_local(found[1] or found[2]):
        return _sentence(400, "Without a token the service answers to localhost and addresses such as 127.0.0.1 only.")
    is_own = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    # Browsers that do not send that header send the origin of what sends photos.
    is_own = is_own and headers.get("origin", f"http://{host}") in (f"http://{host}", f"https://{host}")
    if method == "POST" and not is_own:
        return _sentence(403, "Without a token the service answers to its own pages only.")
    return None


def _sentence(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
