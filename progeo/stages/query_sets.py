"""Query sets: queries to be found in a database, and which of its images are right for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progeo.engine.log import LOGGER
from progeo.evaluation.protocols import Protocol
from progeo.places.catalogue import Catalogue, check_zones, positions_m, read_catalogue
from progeo.places.positives import positives_within


@dataclass(frozen=True)
class QuerySet:
    """Queries to be found in a database."""

    database: Catalogue
    queries: Catalogue
    positives: list[np.ndarray]
    """Right database rows of each query."""


def load_query_set(folder: Path, database: str, queries: str, *, radius_m: float) -> QuerySet:
    """Read both catalogues and find the positives of each query.

    Raises:
        ValueError: positions that nobody can compare, as `check_zones`.
    """
    database_images, query_images = read_catalogue(folder / database), read_catalogue(folder / queries)
    check_zones(database_images, query_images)
    positives = query_images.positives or positives_within(*positions_m(database_images, query_images), radius_m)
    missing = sum(not len(rows) for rows in positives)
    if missing:
        LOGGER.warning("%d of %d queries have no database image within %g m", missing, len(positives), radius_m)
    return QuerySet(database_images, query_images, positives)


def positives_by_rule(query_set: QuerySet, radius_m: float, others_m: tuple[float, ...]) -> dict[str, list[np.ndarray]]:
    """Right database rows by every rule: that of the set, within `radius_m`, first, then within each of `others_m`."""
    if query_set.queries.positives is not None:
        return {"as given": query_set.positives}
    places = positions_m(query_set.database, query_set.queries)
    others = {other_m: positives_within(*places, other_m) for other_m in others_m if other_m != radius_m}
    return {f"within {radius:g} m": rows for radius, rows in {radius_m: query_set.positives, **others}.items()}


def conditions_of(queries: Catalogue, protocol: Protocol | None) -> np.ndarray:
    """Of each query: as written down with it, or as the protocol tells; "" where neither does."""
    found = queries.conditions
    if found is None and protocol is not None:
        found = protocol.conditions_of(queries.table["path"].to_pylist())
    return np.full(len(queries), "") if found is None else found
