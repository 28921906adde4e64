"""Query sets: queries to be localized in a database, and the positives of each query."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import check_zones
from progeo.places.positives import find_positives

LOGGER = logging.getLogger("progeo")


@dataclass(frozen=True)
class QuerySet:
    """Queries and the database that they are searched in."""

    database: Catalogue
    queries: Catalogue
    positives: list[np.ndarray] | None
    """Positives of each query as database rows; None if there is no ground truth."""
    great_circle: bool = False
    """Whether distances follow great circles, see `progeo.places.distances`."""

    def without_queries(self, rows: np.ndarray) -> "QuerySet":
        """Return the query set without the queries at `rows`."""
        if not len(rows):
            return self
        stay = np.delete(np.arange(len(self.queries)), rows)
        positives = None if self.positives is None else [self.positives[row] for row in stay.tolist()]
        return replace(self, queries=self.queries.take(stay), positives=positives)


def load_query_set(
    folder: Path, database: str, queries: str, *, radius_m: float, angle_deg: float | None = None
) -> QuerySet:
    """Read both catalogues and find the positives of each query, see `build_query_set`."""
    sides = (read_catalogue(folder / name, positions="optional") for name in (database, queries))
    return build_query_set(*sides, radius_m=radius_m, angle_deg=angle_deg)


def build_query_set(
    database: Catalogue,
    queries: Catalogue,
    *,
    radius_m: float,
    angle_deg: float | None = None,
    great_circle: bool = False,
    target: str = "database image",
) -> QuerySet:
    """Find the positives of each query.

    Args:
        radius_m, angle_deg, great_circle: see `find_positives`.
        target: what the rows of the database are, for the log.

    Raises:
        ValueError: positives are neither stored nor computable, because names hold no positions; zones make distances
            unknown, see `check_zones`; headings are missing although an angle is given.
    """
    if queries.positives is None:
        for images in (database, queries):
            _check_positions(images)
    elif any(len(rows) and not 0 <= rows.min() <= rows.max() < len(database) for rows in queries.positives):
        raise ValueError(
            f"{queries.folder} names positives that are not among the {len(database)} images of the database."
        )
    if not great_circle:
        check_zones(database, queries)
    positives = find_positives(database, queries, radius_m, angle_deg=angle_deg, great_circle=great_circle)
    missing = sum(not len(rows) for rows in positives)
    if missing:
        criterion = criterion_text(radius_m, angle_deg) if queries.positives is None else "as given"
        LOGGER.warning("%d of %d queries have no %s %s", missing, len(positives), target, criterion)
    return QuerySet(database, queries, positives, great_circle)


def _check_positions(images: Catalogue) -> None:
    placeless = np.flatnonzero(~np.isfinite(images.east + images.north))
    if len(placeless):
        raise ValueError(
            f"{len(placeless):,} of {len(images):,} names in {images.folder} do not say where the image was taken, "
            f"such as {images.name(int(placeless[0]))}: read positions with `progeo dataset import table`, or of "
            f"photos with `progeo dataset import photos`; `progeo evaluate --no_labels` does without positions."
        )


def positives_by_criterion(
    query_set: QuerySet, radius_m: float, others_m: tuple[float, ...], *, angle_deg: float | None = None
) -> dict[str, list[np.ndarray]]:
    """Find the positives by every criterion: the query set's own, within `radius_m`, then within each of `others_m`.

    Returns:
        Database rows of each query, by criterion in words; empty without ground truth, and a single entry if positives
        are stored with the queries.
    """
    if query_set.positives is None:
        return {}
    if query_set.queries.positives is not None:
        return {"as given": query_set.positives}
    by_radius = {radius_m: query_set.positives}
    for other_m in others_m:
        if other_m not in by_radius:
            by_radius[other_m] = find_positives(
                query_set.database,
                query_set.queries,
                other_m,
                angle_deg=angle_deg,
                great_circle=query_set.great_circle,
            )
    return {criterion_text(radius, angle_deg): rows for radius, rows in by_radius.items()}


def criterion_text(radius_m: float, angle_deg: float | None) -> str:
    """Return the criterion for positives in words."""
    radius = f"{radius_m / 1000:g} km" if radius_m >= 1000 else f"{radius_m:g} m"
    return f"within {radius}" + ("" if angle_deg is None else f" and {angle_deg:g} degrees")
