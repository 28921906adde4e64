"""Connections that are closed where the head of a request, or what follows a refusal, comes too slowly."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    b'{"detail":"The request was not received in time."}'
)


class TimedConnection(H11Protocol):
    """A connection whose peer sends the head of each request in time; `read_upload` times what follows the head."""

    def __init__(self, *arguments: Any, limit_s: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._limit_s = limit_s
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._end is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._end = self.loop.call_later(self._limit_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.write(_ANSWER)
        self.transport.close()
