"""Restrictions of a search as filters of an engine."""

from collections.abc import Collection as Several
from typing import Any

from progeo.localization.engines.collection import Collection
from progeo.localization.restriction import Restriction
from progeo.places.nearby import HeadingRange, Near

_MARGIN_M = 1e-6
"""Engines take points nearer than the radius, and a restriction those at it, too."""


def filter_of(collection: Collection, among: Restriction, *, parts: Several[str] = ()) -> Any:
    """Return the filter of points that a restriction allows; None if it allows all.

    Engines compute distances as `haversine_m` does, on a sphere of the same radius.

    Args:
        parts: keys of the only parts whose points are allowed; empty for all.
    """
    must = [] if among.near is None else [_near(collection, among.near)]
    if among.heading is not None and among.heading.tolerance_deg < 180:
        must.append(_heading(collection, among.heading))
    if parts:
        must.append(_of_parts(collection, parts))
    return collection.types.Filter(must=must) if must else None


def _near(collection: Collection, near: Near) -> Any:
    types = collection.types
    center = types.GeoPoint(lon=near.longitude, lat=near.latitude)
    return types.FieldCondition(
        key="position", geo_radius=types.GeoRadius(center=center, radius=near.radius_m + _MARGIN_M)
    )


def _heading(collection: Collection, allowed: HeadingRange) -> Any:
    """Allow headings from 0 to 360 in one range, or in two across north, and unknown ones."""
    lowest = (allowed.heading_deg - allowed.tolerance_deg) % 360
    highest = (allowed.heading_deg + allowed.tolerance_deg) % 360
    limits = [{"gte": lowest, "lte": highest}] if lowest <= highest else [{"gte": lowest}, {"lte": highest}]
    condition = collection.types.FieldCondition
    ranges = [condition(key="heading", range=collection.range_of(**each)) for each in limits]
    return collection.types.Filter(should=[collection.is_empty("heading"), *ranges])


def _of_parts(collection: Collection, keys: Several[str]) -> Any:
    types = collection.types
    return types.FieldCondition(key="part", match=types.MatchAny(any=sorted(keys)))
