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
    """Read both catalogues and find the positives of each query.

    Raises:
        ValueError: positives are neither stored nor computable, because names hold no positions; zones make distances
            unknown, see `check_zones`; headings are missing although an angle is given.
    """
    database_images, query_images = sides = [
        read_catalogue(folder / name, positions="optional") for name in (database, queries)
    ]
    if query_images.positives is None:
        for images in sides:
            _check_positions(images)
    check_zones(database_images, query_images)
    positives = find_positives(database_images, query_images, radius_m, angle_deg=angle_deg)
    missing = sum(not len(rows) for rows in positives)
    if missing:
        criterion = criterion_text(radius_m, angle_deg) if query_images.positives is None else "as given"
        LOGGER.warning("%d of %d queries have no database image %s", missing, len(positives), criterion)
    return QuerySet(database_images, query_images, positives)


def load_unlabeled(folder: Path, database: str, queries: str) -> QuerySet:
    """Read both catalogues without ground truth; image names may be arbitrary."""
    database_images, query_images = (read_catalogue(folder / name, positions="ignored") for name in (database, queries))
    return QuerySet(database_images, query_images, None)


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
            by_radius[other_m] = find_positives(query_set.database, query_set.queries, other_m, angle_deg=angle_deg)
    return {criterion_text(radius, angle_deg): rows for radius, rows in by_radius.items()}


def criterion_text(radius_m: float, angle_deg: float | None) -> str:
    """Return the criterion for positives in words."""
    return f"within {radius_m:g} m" + ("" if angle_deg is None else f" and {angle_deg:g} degrees")
