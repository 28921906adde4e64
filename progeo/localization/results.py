"""Write localizations as CSV, GeoJSON or JSON files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from progeo.files import write_csv, write_json
from progeo.localization.localize import Localization, Match


def _flat(result: Localization) -> dict[str, Any]:
    """Flatten a result to one row with its first match."""
    match = asdict(result.matches[0]) if result.matches else dict.fromkeys(field.name for field in fields(Match))
    return {
        "photo": result.query,
        "latitude": match.pop("latitude"),
        "longitude": match.pop("longitude"),
        "confidence": result.confidence,
        "known": result.known,
        "match": match.pop("path"),
        **match,
        "error": result.error,
    }


def _write_csv(path: Path, results: Sequence[Localization]) -> None:
    rows = [_flat(result) for result in results]
    write_csv(path, [[*rows[0]], *([*row.values()] for row in rows)])


def _write_geojson(path: Path, results: Sequence[Localization]) -> None:
    features = []
    for result in results:
        properties = _flat(result)
        position = [properties.pop("longitude"), properties.pop("latitude")]
        geometry = None if None in position else {"type": "Point", "coordinates": position}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    write_json(path, {"type": "FeatureCollection", "features": features})


WRITERS: Mapping[str, Callable[[Path, Sequence[Localization]], None]] = MappingProxyType(
    {
        ".csv": _write_csv,
        ".geojson": _write_geojson,
        ".json": lambda path, results: write_json(path, [asdict(result) for result in results]),
    }
)
"""Suffix of a file -> function that writes results to it."""
