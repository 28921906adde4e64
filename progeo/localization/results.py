"""Write localizations to files: the table of formats, with the writers of CSV, GeoJSON and JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from progeo.files import write_csv, write_json
from progeo.localization.answer_page import write_answer_page
from progeo.localization.gpx import write_gpx
from progeo.localization.kml import write_kml
from progeo.localization.localizations import Frame, Localization, Match
from progeo.localization.place_index import PlaceIndex


@dataclass(frozen=True)
class WritingOptions:
    """What the writers of results may need besides them."""

    spreadsheet_safe: bool = False
    """Write an apostrophe in front of formulas in CSV, also in that of a page, see `write_csv`."""
    show_paths: bool = False
    """Show absolute paths on a page, in GPX and in KML."""
    index: PlaceIndex | None = None
    """The index that was searched, for the map of a page; None writes a page without a map."""
    by_text: bool = False
    """Whether queries are sentences instead of paths of photos."""


_DEFAULTS = WritingOptions()


def feature_collection(results: Sequence[Localization]) -> dict[str, Any]:
    """Convert results to GeoJSON: the first match of each as a point, or each of its classes as a polygon."""
    features = []
    for result in results:
        classes = [match for match in result.matches if match.corners is not None]
        if not classes:
            properties = _flat(result, _first(result))
            position = [properties.pop("longitude"), properties.pop("latitude")]
            geometry = None if None in position else {"type": "Point", "coordinates": position}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        for rank, match in enumerate(classes, 1):
            corners = match.corners or ()
            geometry = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
            properties = {"rank": rank, **_flat(result, match)}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def _flat(result: Localization, match: Match | None) -> dict[str, Any]:
    """Flatten a result to one row with one of its matches."""
    values = dict.fromkeys(field.name for field in fields(Match)) if match is None else asdict(match)
    for name in ("corners", "row", "lines"):
        del values[name]
    return {
        "photo": result.query,
        "latitude": values.pop("latitude"),
        "longitude": values.pop("longitude"),
        "confidence": result.confidence,
        "known": result.known,
        "verified": result.verified,
        "match": values.pop("path"),
        **values,
        "error": result.error,
        **({} if result.frame is None else _of_frame(result.frame)),
    }


def _of_frame(frame: Frame) -> dict[str, Any]:
    alone = {} if frame.alone is None else vars(frame.alone)
    return {
        "seconds": frame.seconds,
        "alone_latitude": alone.get("latitude"),
        "alone_longitude": alone.get("longitude"),
        "alone_match": alone.get("path"),
    }


def _first(result: Localization) -> Match | None:
    return result.matches[0] if result.matches else None


def _write_csv(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    rows = [_flat(result, _first(result)) for result in results]
    write_csv(path, [[*rows[0]], *([*row.values()] for row in rows)], spreadsheet_safe=options.spreadsheet_safe)


def _write_geojson(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    write_json(path, feature_collection(results))


def _write_json(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    write_json(path, [asdict(result) for result in results])


def _write_page(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    index = options.index
    write_answer_page(
        path,
        results,
        catalogue=None if index is None else index.images,
        cell_side_m=0 if index is None else index.metadata.cell_side_m,
        orientation="exif" if index is None else index.metadata.orientation,
        by_text=options.by_text,
        show_paths=options.show_paths,
        spreadsheet_safe=options.spreadsheet_safe,
    )


def _write_gpx(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    write_gpx(path, results, show_paths=options.show_paths)


def _write_kml(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    write_kml(path, results, show_paths=options.show_paths)


WRITERS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        ".csv": _write_csv,
        ".geojson": _write_geojson,
        ".json": _write_json,
        ".gpx": _write_gpx,
        ".kml": _write_kml,
        ".html": _write_page,
    }
)
"""Suffix of a file -> function `(path, results, options)` that writes results to it."""
