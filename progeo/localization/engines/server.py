"""A collection of a Qdrant server, or of the memory of this process, through `qdrant-client`."""

import os
import time
from collections.abc import Sequence
from functools import cache, cached_property
from json import JSONDecodeError
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np

from progeo.localization.engines.collection import PAYLOAD_INDEXES, Contents, Hit, Points
from progeo.localization.engines.options import MEMORY, Quantization

KEY_VARIABLE, URL_VARIABLE = "QDRANT_API_KEY", "QDRANT_URL"
"""Environment variables of the API key, and of the only server that it is sent to: an index of others may name any."""
_TIMEOUT_S = 60
_WAITS_S = (0.5, 2.0, 8.0)
"""Seconds between tries of a call that fails because the server is not reached or overloaded."""
_OVERLOADED = (408, 429, 500, 502, 503, 504)
_NOT_ALLOWED = (401, 403)
_NO_ANSWER = (JSONDecodeError, AssertionError)
"""What `qdrant-client` raises where an answer is none of Qdrant."""
_MAX_PARTS = 100_000
_OWNER = "progeo_index"


class ServerCollection:
    """A collection of a Qdrant server; see `Collection`."""

    def __init__(self, url: str, name: str, *, waits_s: Sequence[float] = _WAITS_S) -> None:
        """Connect to the server.

        Args:
            url: `http://` or `https://` with host and port, or `:memory:`.
            waits_s: seconds between tries.

        Raises:
            ValueError: the URL has a password, which others could read in the place index.
        """
        from qdrant_client import models

        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"`engine_url` is stored in the place index and must hold no key: give it in the environment variable "
                f"{KEY_VARIABLE}, and only the scheme, host and port of {parts.hostname} here."
            )
        self.types: Any = models
        self.url, self.name = url, name
        self._waits_s = waits_s
        self._is_memory = url == MEMORY
        self._was_reached = False

    @property
    def place(self) -> str:
        """Where the collection is, in words."""
        return f"the collection {self.name} of {self._server[0].lower()}{self._server[1:]}"

    def range_of(self, **limits: float) -> Any:
        """Return a range of numbers, see `Collection`."""
        return self.types.Range(**limits)

    def is_empty(self, field: str) -> Any:
        """Return the condition that a field is not in the payload."""
        return self.types.IsEmptyCondition(is_empty=self.types.PayloadField(key=field))

    def contents(self) -> Contents | None:
        """Return what the collection holds; None if there is none."""
        if not self._call("collection_exists"):
            return None
        config = self._call("get_collection").config
        width = getattr(config.params.vectors, "size", 0)  # 0 for one with several named vectors, which is none of ours
        return Contents(width, (config.metadata or {}).get(_OWNER, ""))

    def create(self, width: int, *, owner: str, quantization: Quantization) -> None:
        """Create the collection unless it exists."""
        models = self.types
        if self.contents() is None:
            vectors = models.VectorParams(
                size=width, distance=models.Distance.EUCLID, on_disk=None if quantization == "none" else True
            )
            try:
                self._call(
                    "create_collection",
                    vectors_config=vectors,
                    quantization_config=self._quantization(quantization),
                    metadata={_OWNER: owner},
                )
            except ValueError:
                if self.contents() is None:  # another process did not create it meanwhile
                    raise
        if self.contents() == Contents(width, ""):
            raise ValueError(f"{self._server} stores no metadata of collections: take Qdrant 1.16 or later.")
        for field, kind in {} if self._is_memory else PAYLOAD_INDEXES.items():
            self._call("create_payload_index", field, models.PayloadSchemaType(kind.lower()))

    def upsert(self, points: Points) -> None:
        """Store points; those of the same identifiers are replaced."""
        batch = self.types.Batch(
            ids=[str(each) for each in points.ids],
            vectors=points.vectors.tolist(),
            payloads=[dict(each) for each in points.payloads],
        )
        self._call("upsert", batch, wait=True)

    def search(
        self, queries: np.ndarray, filters: Sequence[Any], count: int, *, exact: bool, oversampling: float | None
    ) -> list[list[Hit]]:
        """Find the nearest points of each query, see `Collection`."""
        requests = [
            self.types.QueryRequest(
                query=query, filter=allowed, limit=count, params=self._search_params(exact, oversampling)
            )
            for query, allowed in zip(queries.tolist(), filters, strict=True)
        ]
        answers = self._call("query_batch_points", requests, timeout=_TIMEOUT_S)
        return [[Hit(UUID(point.id), point.score) for point in answer.points] for answer in answers]

    def count(self, allowed: Any) -> int:
        """Count the points that a filter allows."""
        return self._call("count", allowed, exact=True).count

    def parts(self) -> dict[str, int]:
        """Count the points of each part."""
        found = self._call("facet", "part", limit=_MAX_PARTS, exact=True)
        return {hit.value: hit.count for hit in found.hits}

    def delete_points(self, ids: Sequence[UUID]) -> None:
        """Delete points; those that are not there are skipped."""
        chosen = self.types.PointIdsList(points=[str(each) for each in ids])
        self._call("delete", chosen, wait=True)

    def delete_part(self, part: str) -> None:
        """Delete all points of a part."""
        types = self.types
        allowed = types.Filter(must=[types.FieldCondition(key="part", match=types.MatchValue(value=part))])
        self._call("delete", types.FilterSelector(filter=allowed), wait=True)

    def flush(self) -> None:
        """Return at once: a server has stored what it confirms."""

    def optimize(self) -> None:
        """Return at once: a server does it meanwhile."""

    @property
    def _server(self) -> str:
        return "Qdrant in the memory of this process" if self._is_memory else f"The Qdrant server at {self.url}"

    @cached_property
    def _client(self) -> Any:
        if self._is_memory:
            return _memory()
        from qdrant_client import QdrantClient

        is_theirs = os.environ.get(URL_VARIABLE, "").rstrip("/") == self.url.rstrip("/")
        key = os.environ.get(KEY_VARIABLE) if is_theirs else None
        return QdrantClient(url=self.url, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)

    def _quantization(self, quantization: Quantization) -> Any:
        models = self.types
        kinds = {
            "none": lambda: None,
            "int8": lambda: models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
            ),
            "binary": lambda: models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
        }
        return kinds[quantization]()

    def _search_params(self, exact: bool, oversampling: float | None) -> Any:
        if self._is_memory:  # which compares all points anyway
            return None
        models = self.types
        quantization = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=oversampling)
        return models.SearchParams(exact=exact, quantization=None if oversampling is None else quantization)

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the client for the collection, again if the server is overloaded or has gone."""
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        for wait in (*self._waits_s, None):
            try:
                answer = getattr(self._client, name)(self.name, *arguments, **named)
                self._was_reached = True
                return answer
            except (ResponseHandlingException, UnexpectedResponse, ResourceExhaustedResponse, *_NO_ANSWER) as error:
                found = self._in_words(error)
                may_pass = isinstance(found, ConnectionError) and (self._was_reached or hasattr(error, "status_code"))
                if wait is None or not may_pass:
                    raise found from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _in_words(self, error: Exception) -> ConnectionError | ValueError:
        """Return the error of a call of `qdrant-client` as one sentence."""
        status, source = getattr(error, "status_code", None), getattr(error, "source", None)
        if isinstance(source or error, _NO_ANSWER) or type(source).__name__ == "ValidationError":  # of pydantic
            return ValueError(
                f"{self.url} does not answer as Qdrant does: is it the address of a Qdrant server of about the version "
                f"of qdrant-client?"
            )
        if status in _NOT_ALLOWED:
            return ValueError(
                f"{self._server} refuses the key: set the environment variables {URL_VARIABLE} to {self.url}, and "
                f"{KEY_VARIABLE} to a key that may read and write {self.name}."
            )
        if status == 404:
            return ValueError(f"There is no {self.place.removeprefix('the ')}: restore it, or build the index anew.")
        if status in _OVERLOADED or source is not None or status is None:
            return ConnectionError(
                f"{self._server} cannot be reached ({source or error}): start it, or correct its address, which is "
                f"`engine_url`, and then in index.json."
            )
        return ValueError(f"{self._server} refused a call for {self.name}: {_reason(error)}.")


@cache
def _memory() -> Any:
    """Return the client whose collections are in the memory of this process, as long as it lives."""
    from qdrant_client import QdrantClient

    return QdrantClient(MEMORY)


def _reason(error: Any) -> str:
    """Return what a server says about a call that it refuses, on one line."""
    try:
        return " ".join(str(error.structured()["status"]["error"]).split()).rstrip(".")
    except (ValueError, LookupError, TypeError):
        return f"status {error.status_code}"
