"""The map of a comparison: the queries that encoders differ on, and where each encoder puts the chosen one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from progeo.evaluation.comparison_gallery import Differing, Outcome
from progeo.pages.maps import Detail, Kind, Map, Points, Unit, map_frame
from progeo.pages.page import shown_path

_KINDS: Mapping[Kind, str] = {
    "correct": "found by the best, not by another",
    "wrong": "not by the best, found by another",
}


@dataclass(frozen=True)
class _Places:
    """Positions of a data set in one unit."""

    unit: Unit
    queries: np.ndarray
    """Of the queries that the best encoder reads, (Q, 2)."""
    databases: Mapping[int, np.ndarray]
    """Of each database, or the classes of each encoder, (N, 2), by its identity."""

    def predicted(self, outcome: Outcome) -> np.ndarray:
        """Return where an encoder puts a query, (2,); NaN if it is unknown."""
        retrieved = outcome.retrieved
        found = int(retrieved.predictions[outcome.row, 0])
        return np.full(2, np.nan) if found < 0 else self.databases[id(retrieved.database)][found]


def map_of(listed: Sequence[Differing], names: Mapping[str, str], *, show_paths: bool) -> Map | None:
    """Lay out the map of the listed queries of all data sets; None if no position of a query is known.

    Data sets of which only meters are known, without a zone, are not drawn if degrees of others are known.

    Args:
        names: name of each encoder as the page shows it.
        show_paths: show absolute paths of queries.
    """
    places = {name: _places([each for each in listed if each.data == name]) for name in {row.data for row in listed}}
    unit: Unit = "degrees" if any(each.unit == "degrees" for each in places.values()) else "meters"
    drawn = [each for each in listed if places[each.data].unit == unit]
    positions = np.array([places[each.data].queries[each.outcomes[0].row] for each in drawn]).reshape(-1, 2)
    if not np.isfinite(positions).all(axis=1).any():
        return None
    is_found = np.array([each.outcomes[0].is_found for each in drawn])
    points = []
    verdicts: Mapping[Kind, np.ndarray] = {"correct": is_found, "wrong": ~is_found}
    for kind, chosen in verdicts.items():
        rows = np.flatnonzero(chosen).tolist()
        labels = [shown_path(drawn[row].name, show_paths) for row in rows]
        points.append(Points(_KINDS[kind], kind, positions[rows], [drawn[row].key for row in rows], labels))
    databases = [each for some in places.values() if some.unit == unit for each in some.databases.values()]
    details = {each.key: _detail(each, places[each.data], names) for each in drawn}
    has_classes = listed[0].outcomes[0].retrieved.classes is not None
    name = "centers of classes" if has_classes else "database"
    return Map(unit, np.concatenate(databases), name, [each for each in points if each.labels], details=details)


def _places(listed: Sequence[Differing]) -> _Places:
    retrieved = [each.retrieved for each in listed[0].outcomes]
    databases = {id(each.database): each.database for each in retrieved}
    frame = map_frame(retrieved[0].queries, *databases.values(), great_circle=retrieved[0].great_circle)
    return _Places(frame.unit, frame.positions[0], dict(zip(databases, frame.positions[1:], strict=True)))


def _detail(differing: Differing, places: _Places, names: Mapping[str, str]) -> Detail:
    """Return the first prediction of each encoder for a query."""
    points = []
    for each in differing.outcomes:
        name = names[each.evaluated.encoder]
        kind: Kind = "match" if each.is_found else "found"
        points.append(Points(name, kind, places.predicted(each)[None], labels=[f"first prediction of {name}"]))
    return Detail(points)
