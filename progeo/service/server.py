"""Run the service in a process: its address, its token, and its graceful stop."""

import math
import os
import re
import socket
from functools import partial
from pathlib import Path

import uvicorn

from progeo.engine.log import LOGGER
from progeo.service.app import build_app
from progeo.service.connections import TimedConnection
from progeo.service.guard import is_local
from progeo.service.options import ServiceOptions

TOKEN_VARIABLE = "PROGEO_TOKEN"
_BACKLOG = 128
"""Maximum number of connections that wait to be accepted, all of which may be accepted at once."""


def token_of(options: ServiceOptions) -> str | None:
    """Return the token of the options or of the environment.

    Raises:
        ValueError: it cannot be a header.
    """
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise ValueError(
            f"`token` (or {TOKEN_VARIABLE}) has letters, digits and signs of ASCII only, and no spaces: make one with "
            f"openssl rand -hex 32."
        )
    return token


def check_host(host: str, options: ServiceOptions) -> None:
    """Refuse an address that other machines can reach, without a token.

    Raises:
        ValueError: there is no token.
    """
    if options.token is None and not is_local(host):
        raise ValueError(
            f"`host` {host} can be reached from other machines: give `token` or the environment variable "
            f"{TOKEN_VARIABLE}, or use 127.0.0.1."
        )


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that requests come to.

    Raises:
        OSError: the address or port cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise OSError(f"{host}, port {port}, cannot be listened at: {error}. Give another --host or --port.") from None


def run_server(folder: Path, listening: socket.socket, options: ServiceOptions) -> None:
    """Serve a place index until the process is asked to stop, then finish the requests that were received.

    Raises:
        FileNotFoundError, ValueError: see `build_app`.
    """
    host, port = listening.getsockname()[:2]
    try:
        server = build_server(folder, options)
        LOGGER.info("listening at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # while the index is opened, or raised again by uvicorn after the graceful stop
        LOGGER.info("stopped")


def build_server(folder: Path, options: ServiceOptions) -> uvicorn.Server:
    """Build the server of the application, which logs no request."""
    return _Server(
        uvicorn.Config(
            build_app(folder, options),
            http=partial(TimedConnection, limit_s=options.upload_s),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            access_log=False,
            log_config=None,
            log_level="error",  # warnings are about what clients send
            backlog=_BACKLOG,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(options.upload_s + options.answer_s),
        )
    )


class _Server(uvicorn.Server):
    """A server that gives up its requests at a second Ctrl-C, and then ends as it does without."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish."""
        await super().shutdown(sockets)
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()
