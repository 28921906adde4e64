"""A server that answers the calls of `qdrant-client` from its own collections in memory."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qdrant_client import QdrantClient, models


def _create(client, name, body):
    request = models.CreateCollection(**body)
    client.create_collection(name, vectors_config=request.vectors, metadata=request.metadata)
    return True


def _upsert(client, name, body):
    return client.upsert(name, models.PointsBatch(**body).batch)


def _search(client, name, body):
    searches = models.QueryRequestBatch(**body).searches
    plain = [each.model_copy(update={"params": None}) for each in searches]
    return [each.model_dump() for each in client.query_batch_points(name, plain)]


def _delete(client, name, body):
    selector = models.PointIdsList if "points" in body else models.FilterSelector
    return client.delete(name, selector(**body))


def _count(client, name, body):
    return client.count(name, models.CountRequest(**body).filter)


def _facet(client, name, body):
    return client.facet(name, models.FacetRequest(**body).key, limit=1000)


_CALLS = {
    ("GET", "/exists"): lambda client, name, _: {"exists": client.collection_exists(name)},
    ("GET", ""): lambda client, name, _: client.get_collection(name),
    ("PUT", ""): _create,
    ("PUT", "/index"): lambda client, name, _: {"operation_id": 0, "status": "completed"},
    ("PUT", "/points"): _upsert,
    ("POST", "/points/query/batch"): _search,
    ("POST", "/points/delete"): _delete,
    ("POST", "/points/count"): _count,
    ("POST", "/facet"): _facet,
}


@contextmanager
def qdrant_server(*, key=None, failures=(), metadata=True):
    """Serve; gives its URL and the (method, path) of all calls so far.

    Args:
        key: the API key without which it refuses calls.
        failures: status codes of its first answers.
        metadata: whether it stores metadata of collections.
    """
    client, calls, left = QdrantClient(":memory:"), [], list(failures)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            path = re.fullmatch(r"/collections/([^/?]+)([^?]*).*", self.path)
            calls.append((self.command, path[2]))
            body = json.loads(content or "null")
            if not metadata and body:
                body.pop("metadata", None)
            status, result = 200, None
            with lock:
                if left:
                    status, result = left.pop(0), "out of order"
                elif key is not None and self.headers.get("api-key") != key:
                    status, result = 401, "wrong key"
                else:
                    try:
                        found = _CALLS[self.command, path[2]](client, path[1], body)
                        result = getattr(found, "model_dump", lambda **_: found)(mode="json")
                    except ValueError as error:
                        status, result = 404 if "not found" in str(error) else 400, str(error)
            answer = {"result": result, "status": "ok", "time": 0.0}
            if status != 200:
                answer = {"status": {"error": result}, "time": 0.0}
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", calls
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
