"""Localize photos over HTTP."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from progeo.service.options import ServiceOptions

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(*, index: Path, host: str = "127.0.0.1", port: NonNegativeInt = 8000, service: ServiceOptions) -> None:
    """Localize photos that are sent over HTTP, until SIGTERM or Ctrl-C, which finishes the requests that were received.

    Args:
        index: Folder of the place index. Once another command changes it, its new generation is served.
        host: Address to listen at. One that other machines can reach, such as 0.0.0.0, needs a token.
        port: Port to listen at; 0 takes a free one, which the log tells.
        service: How photos are localized, and the limits of requests.

    Raises:
        ValueError: packages are missing, an option is wrong, a token is missing, or the index is corrupt.
        OSError: there is no index in the folder, or the port is taken.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}, not installed: pip install 'progeo[serve]'.")
    from progeo.service.server import check_host, listen, run_server, token_of

    options = replace(service, token=token_of(service))
    check_host(host, options)
    run_server(index, listen(host, int(port)), options)  # sockets take no subclass of int
