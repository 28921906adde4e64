"""Localize photos with a place index."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from progeo.data.photos import Photo, PhotoImages
from progeo.evaluation.search import Neighbors
from progeo.localization.adaptive import is_uncertain
from progeo.localization.extraction import extract_photos
from progeo.localization.localizations import Localization, Match
from progeo.localization.restriction import Restriction
from progeo.localization.verifying import Verified
from progeo.places.geographic import cell_corners
from progeo.progress import phase
from progeo.verification.matchers import Pair

if TYPE_CHECKING:
    from progeo.localization.place_index import PlaceIndex


def localize_photos(
    index: "PlaceIndex",
    photos: Sequence[Photo],
    *,
    top: int,
    threshold: float,
    among: Restriction | Sequence[Restriction] | None,
    verify: bool | None,
    batch_size: int,
    num_workers: int,
    shows_progress: bool,
) -> list[Localization]:
    """Localize each photo, see `PlaceIndex.localize`."""
    if not photos:
        return []
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "hidden": not shows_progress}
    found = [extract_photos(extractor, photos, **options) for extractor in index.query_extractors]
    errors = {row: error for _, errors_of_one in found for row, error in errors_of_one.items()}
    if len(errors) == len(photos):
        raise ValueError(next(iter(errors.values())))
    below = verified_below(index, verify)
    with phase(f"searching for {len(photos):,} photos", hidden=not shows_progress):
        neighbors = index.search(*(descriptors for descriptors, _ in found), min_count=top, among=among)
    is_restricted = among is not None
    calibration = None if is_restricted else index.metadata.calibration
    confidences = np.full(len(photos), np.nan) if is_restricted else index.confidences(neighbors)
    images = PhotoImages(photos, orientation=index.metadata.orientation)
    verified = None
    if len(chosen := np.setdiff1d(np.flatnonzero(is_uncertain(confidences, below)), list(errors))):
        verified = index.verifier.verified(images.pixels, neighbors, chosen, num_kept=top, hidden=not shows_progress)
        neighbors = verified.neighbors
        if calibration is not None:
            confidences = verified.confidences(index, confidences)
    return localizations_of(
        index,
        [images.name(row) for row in range(len(photos))],
        neighbors,
        top=top,
        confidences=confidences,
        probabilities=index.probabilities(neighbors),
        radius_m=None if calibration is None else calibration.radius_m,
        threshold=threshold,
        errors=errors,
        is_restricted=is_restricted,
        verified=verified,
    )


def verified_below(index: "PlaceIndex", verify: bool | None) -> float:
    """Return the confidence below which photos are verified: 0 verifies none, 1 all with a confidence, infinity all."""
    if verify is not None:
        return np.inf if verify else 0.0
    return 0.0 if index.metadata.verification is None else index.metadata.verification.below


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
    verified: Verified | None = None,
) -> list[Localization]:
    """Convert the neighbors of Q queries to results.

    Args:
        errors: why a query has no result, by row.
        is_restricted: see `Localization`.
        verified: how matches were verified, if any were; `neighbors` are re-ranked by that.
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
        is_verified = verified is not None and bool(verified.is_verified[row])
        if verified is not None and is_verified:
            matches = tuple(_with_lines(match, verified.pairs.get((row, rank))) for rank, match in enumerate(matches))
        where = " near its position or heading: take a larger radius or tolerance" if is_restricted else ""
        error = "" if matches else f"No match was found for {query}{where}."
        results.append(
            Localization(
                query, confidence, radius_m, known, matches, error, is_restricted=is_restricted, verified=is_verified
            )
        )
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


def _with_lines(match: Match, pair: Pair | None) -> Match:
    """Add the inliers of a match that was matched with the photo."""
    return match if pair is None else replace(match, inliers=pair.inliers, lines=tuple(map(tuple, pair.lines.tolist())))


def _known(number: float) -> float | None:
    return None if np.isnan(number) else number
