"""A service in a thread of the tests."""

import threading
import time
from contextlib import contextmanager

import httpx

from progeo.service.options import ServiceOptions
from progeo.service.server import build_server, listen


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def serving(folder, **options):
    """Serve a place index; gives a client, whose `server` is the server and whose `thread` runs it."""
    listening = listen("127.0.0.1", 0)
    server = build_server(folder, ServiceOptions(device="cpu", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    wait_until(lambda: server.started)
    with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60, trust_env=False) as client:
        client.server, client.thread = server, thread
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join()
