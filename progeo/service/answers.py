"""Answers of the service, as types that its documentation shows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from progeo.image_files import Orientation
from progeo.localization.answer_page import confidence_in_words
from progeo.localization.localizations import Localization, Match
from progeo.localization.place_index import PlaceIndex
from progeo.localization.results import feature_collection


@dataclass(frozen=True)
class MatchAnswer:
    """An image or class of the index that matches a photo."""

    name: str
    latitude: float | None
    longitude: float | None
    east_m: float | None
    north_m: float | None
    heading_deg: float | None
    distance: float
    probability: float | None
    inliers: int | None
    lines: Sequence[tuple[float, float, float, float]]
    corners: Sequence[tuple[float, float]] | None
    row: int
    image: str | None
    """Address of its picture."""


@dataclass(frozen=True)
class PhotoAnswer:
    """Where a photo was taken."""

    photo: str
    latitude: float | None
    longitude: float | None
    position: str
    link: str
    confidence: float | None
    radius_m: float | None
    known: bool | None
    words: str
    verified: bool
    error: str
    matches: Sequence[MatchAnswer]


@dataclass(frozen=True)
class Answer:
    """Where the photos of a request were taken."""

    generation: int
    seconds: float
    orientation: Orientation
    """Whether photos were rotated upright by EXIF, or used as stored; lines join points of photos as they were used."""
    results: Sequence[PhotoAnswer]


@dataclass(frozen=True)
class Refusal:
    """Why a request has no answer."""

    detail: str


@dataclass(frozen=True)
class Health:
    """The place index that is served."""

    status: str
    generation: int
    images: int
    of: str


def named(result: Localization, name: str, *, show_paths: bool) -> Localization:
    """Call the photo of a result by its name, and its matches by theirs instead of by their paths."""
    matches = [match if show_paths else replace(match, path=Path(match.path).name) for match in result.matches]
    return replace(result, query=name, error=result.error.replace(result.query, name), matches=tuple(matches))


def answer(index: PlaceIndex, results: Sequence[Localization], *, seconds: float, has_images: bool) -> Answer:
    """Build the answer in JSON of results that are `named`."""
    generation = index.metadata.generation

    def image(match: Match) -> str | None:
        return f"/images/{match.row}?generation={generation}" if has_images else None

    photos = [_of_photo(result, image) for result in results]
    return Answer(generation, round(seconds, 4), index.metadata.orientation, photos)


def _of_photo(result: Localization, image: Callable[[Match], str | None]) -> PhotoAnswer:
    first = result.matches[0] if result.matches else None
    return PhotoAnswer(
        photo=result.query,
        latitude=result.latitude,
        longitude=result.longitude,
        position="none" if first is None else first.position,
        link="" if first is None else first.map_link,
        confidence=result.confidence,
        radius_m=result.radius_m,
        known=result.known,
        words=confidence_in_words(result),
        verified=result.verified,
        error=result.error,
        matches=[_of_match(match, image(match)) for match in result.matches],
    )


def _of_match(match: Match, image: str | None) -> MatchAnswer:
    values = asdict(match)
    return MatchAnswer(name=values.pop("path"), image=image, **values)


def geojson_answer(index: PlaceIndex, results: Sequence[Localization], *, seconds: float) -> dict[str, Any]:
    """Build the answer in GeoJSON of results that are `named`."""
    return {"generation": index.metadata.generation, "seconds": round(seconds, 4), **feature_collection(results)}
