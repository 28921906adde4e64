"""The calls that a place index needs of an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import numpy as np

from progeo.localization.engines.options import Quantization

PAYLOAD_INDEXES = {"part": "Keyword", "position": "Geo", "heading": "Float"}
"""Fields of the payload that filters name, and what they are."""


@dataclass(frozen=True)
class Contents:
    """What a collection holds."""

    width: int
    """Dimensions of its descriptors, D."""
    owner: str
    """Identifier of the place index that it belongs to; empty if it belongs to none."""


@dataclass(frozen=True)
class Points:
    """Some descriptors, each with an identifier and its payload."""

    ids: Sequence[UUID]
    vectors: np.ndarray
    """float32 (n, D)."""
    payloads: Sequence[Mapping[str, Any]]


class Hit(NamedTuple):
    """A point that a search found."""

    id: UUID
    distance: float
    """Euclidean distance of its descriptor."""


class Collection(Protocol):
    """The points of a place index in an engine; several threads may search at the same time.

    Raises of all calls:
        ConnectionError: the engine cannot be reached, or is overloaded.
        ValueError: the engine refuses the call.
    """

    types: Any
    """Module with the classes of filters: `Filter`, `FieldCondition`, `MatchAny`, `GeoRadius`, `GeoPoint`."""
    range_type: Any
    """Class of a range of numbers."""

    @property
    def place(self) -> str:
        """Where the collection is, in words."""

    def contents(self) -> Contents | None:
        """Return what the collection holds; None if there is none."""

    def create(self, width: int, *, owner: str, quantization: Quantization) -> None:
        """Create the collection unless it exists."""

    def upsert(self, points: Points) -> None:
        """Store points; those of the same identifiers are replaced."""

    def search(
        self, queries: np.ndarray, filters: Sequence[Any], count: int, *, exact: bool, oversampling: float | None
    ) -> list[list[Hit]]:
        """Find the nearest points of each of Q queries, best first.

        Args:
            queries: float32 (Q, D).
            filters: filter of each query; None for none.
            count: maximum number of points of each query.
            exact: whether all points that a filter allows are compared.
            oversampling: points whose original descriptors are compared, as a multiple of `count`; None if they are
                not quantized.
        """

    def count(self, allowed: Any) -> int:
        """Count the points that a filter allows."""

    def parts(self) -> dict[str, int]:
        """Count the points of each part."""

    def delete_points(self, ids: Sequence[UUID]) -> None:
        """Delete points; those that are not there are skipped."""

    def delete_part(self, part: str) -> None:
        """Delete all points of a part."""

    def flush(self) -> None:
        """Return once what was stored survives a loss of power."""

    def optimize(self) -> None:
        """Make what was stored fast to search."""
