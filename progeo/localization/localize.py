"""Localize photos with a place index."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from progeo.data.photos import Photo, Photos
from progeo.evaluation.search import Neighbors
from progeo.localization.extraction import extract_photos, find_photos
from progeo.localization.localizations import Localization, Match
from progeo.places.geographic import cell_corners

if TYPE_CHECKING:
    from progeo.localization.place_index import PlaceIndex


def localize_photos(
    index: "PlaceIndex",
    photos: Photo | Iterable[Photo],
    *,
    top: int,
    threshold: float,
    among: np.ndarray | None,
    batch_size: int,
    num_workers: int,
    shows_progress: bool,
) -> list[Localization]:
    """Localize each photo, see `PlaceIndex.localize`."""
    several = find_photos(photos)
    if not several:
        return []
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "hidden": not shows_progress}
    found = [extract_photos(extractor, several, **options) for extractor in index.query_extractors]
    errors = {row: error for _, errors_of_one in found for row, error in errors_of_one.items()}
    if len(errors) == len(several):
        raise ValueError(next(iter(errors.values())))
    neighbors = index.search(*(descriptors for descriptors, _ in found), min_count=top, among=among)
    is_restricted = among is not None
    calibration = None if is_restricted else index.metadata.calibration
    names = Photos(several)
    return localizations_of(
        index,
        [names.name(row) for row in range(len(several))],
        neighbors,
        top=top,
        confidences=np.full(len(several), np.nan) if is_restricted else index.confidences(neighbors),
        probabilities=index.probabilities(neighbors),
        radius_m=None if calibration is None else calibration.radius_m,
        threshold=threshold,
        errors=errors,
        is_restricted=is_restricted,
    )


def localizations_of(
    index: "PlaceIndex",
    queries: Sequence[str],
    neighbors: Neighbors,
    *,
    top: int,
    confidences: np.ndarray,
    probabilities: np.ndarray | None = None,
    radius_m: float | None = None,
    threshold: float = 0.0,
    errors: Mapping[int, str] | None = None,
    is_restricted: bool = False,
) -> list[Localization]:
    """Convert the neighbors of Q queries to results.

    Args:
        errors: why a query has no result, by row.
        is_restricted: see `Localization`.
    """
    results = []
    for row, query in enumerate(queries):
        if errors and row in errors:
            results.append(Localization(query, error=errors[row]))
            continue
        confidence = None if np.isnan(confidences[row]) else float(confidences[row])
        known = None if confidence is None else confidence >= threshold
        shares = None if probabilities is None else probabilities[row, :top]
        matches = _matches(index, neighbors.rows[row, :top], neighbors.distances[row, :top], shares)
        error = "" if matches else f"No match was found for {query}."
        results.append(Localization(query, confidence, radius_m, known, matches, error, is_restricted=is_restricted))
    return results


def _matches(
    index: "PlaceIndex", rows: np.ndarray, distances: np.ndarray, probabilities: np.ndarray | None
) -> tuple[Match, ...]:
    rows = rows[rows >= 0]
    found = index.catalogue.take(rows)
    images = found.table.to_pylist()
    corners: list[Any] = [None] * len(images)
    if index.metadata.holds_classes:
        degrees = cell_corners(found, side_m=index.metadata.cell_side_m)
        corners = [tuple(map(tuple, cell)) if np.isfinite(cell).all() else None for cell in degrees.tolist()]
    shares = [None] * len(images) if probabilities is None else probabilities.tolist()
    return tuple(
        Match(
            path=image["path"],
            latitude=_known(image["latitude"]),
            longitude=_known(image["longitude"]),
            east_m=_known(image["east"]),
            north_m=_known(image["north"]),
            distance=distance,
            row=row,
            heading_deg=_known(image["heading"]),
            probability=share,
            corners=cell,
        )
        for image, row, distance, share, cell in zip(
            images, rows.tolist(), distances.tolist(), shares, corners, strict=False
        )
    )


def _known(number: float) -> float | None:
    return None if np.isnan(number) else number
