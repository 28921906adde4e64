"""Write localizations as CSV, GeoJSON, JSON or HTML files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from progeo.files import write_csv, write_json
from progeo.localization.localize import Localization, Match


def _flat(result: Localization, match: Match | None) -> dict[str, Any]:
    """Flatten a result to one row with one of its matches."""
    values = dict.fromkeys(field.name for field in fields(Match)) if match is None else asdict(match)
    del values["corners"]
    return {
        "photo": result.query,
        "latitude": values.pop("latitude"),
        "longitude": values.pop("longitude"),
        "confidence": result.confidence,
        "known": result.known,
        "match": values.pop("path"),
        **values,
        "error": result.error,
    }


def _first(result: Localization) -> Match | None:
    return result.matches[0] if result.matches else None


def _write_csv(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    rows = [_flat(result, _first(result)) for result in results]
    write_csv(path, [[*rows[0]], *([*row.values()] for row in rows)], spreadsheet_safe=options.spreadsheet_safe)


def _write_geojson(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    """Write the first match of each query as a point, or each of its classes as a polygon, with its rank."""
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
    write_json(path, {"type": "FeatureCollection", "features": features})


def _write_json(path: Path, results: Sequence[Localization], options: WritingOptions = _DEFAULTS) -> None:
    write_json(path, [asdict(result) for result in results])


WRITERS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        ".csv": _write_csv,
        ".geojson": _write_geojson,
        ".json": _write_json,
        ".html": write_answer_page,
    }
)
"""Suffix of a file -> function that writes results to it: `(path, results, options)`, of which it takes what it needs."""
