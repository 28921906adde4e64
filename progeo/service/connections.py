"""Connections that are limited in number, and closed where a request comes or its answer is taken too slowly."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_CONNECTIONS = 512
"""Half of the files that a process may usually have open."""
_TOO_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    b'{"detail":"The request was not received in time."}'
)
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    b'{"detail":"Too many clients are connected: try again later."}'
)


class TimedConnection(H11Protocol):
    """A connection whose peer sends the head of each request, and takes its answer, in time.

    `read_upload` times what follows the head.
    """

    def __init__(self, *arguments: Any, limit_s: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._limit_s = limit_s
        self._end: asyncio.TimerHandle | None = None
        self._end_of_answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing is paused while anything waits to be taken
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.write(_TOO_MANY)
            transport.close()
        else:
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
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the peer to take what was answered."""
        super().pause_writing()
        self._end_of_answer = self.loop.call_later(self._limit_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Answer more."""
        super().resume_writing()
        if self._end_of_answer is not None:
            self._end_of_answer.cancel()
            self._end_of_answer = None

    def _wait(self) -> None:
        self._end = self.loop.call_later(self._limit_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.write(_TOO_LATE)
        self.transport.close()
