"""The map of a report: the database, the queries by their verdict, and where each was put."""

import numpy as np
import pyarrow as pa

from progeo.evaluation.classification import ClassScores
from progeo.evaluation.missed import Missed
from progeo.evaluation.report_gallery import missed_title, shown_names
from progeo.evaluation.retrieved import Retrieved
from progeo.pages.maps import Detail, Kind, Map, Points, Polygons, map_frame
from progeo.places.catalogue import Catalogue
from progeo.places.class_shapes import class_outlines


def query_map(
    found: Retrieved, *, pictured: np.ndarray, missed: Missed | None, num_shown: int, show_paths: bool
) -> Map | None:
    """Lay out the map of all queries; None if the positions of queries, and of classes, are unknown.

    Args:
        pictured: rows of the queries of which all shown predictions, or the best cells, are drawn when they are chosen.
        missed, num_shown, show_paths: as of `query_gallery`.
    """
    if found.classes is None and not np.isfinite(found.between.queries).all(axis=1).any():
        return None
    cells = {} if found.classes is None else _best_cells(found.classes, pictured)
    corners = [] if found.classes is None else [_corner_catalogue(found.classes, cells)]
    frame = map_frame(found.database, found.queries, *corners, great_circle=found.great_circle)
    database, queries = frame.positions[:2]
    details = _candidate_details(found, database, pictured, missed, num_shown)
    if found.classes is not None:
        details = _cell_details(cells, frame.positions[2], details)
    targets = _positions_at(database, found.predictions[:, 0])
    points = []
    for name, kind, rows in _verdicts(found):
        names = shown_names(found.queries, rows, show_paths=show_paths)
        points.append(Points(name, kind, queries[rows], rows.tolist(), names, targets[rows]))
    name = "database" if found.classes is None else "centers of classes"
    return Map(frame.unit, database, name, points, details=details)


def _verdicts(found: Retrieved) -> list[tuple[str, Kind, np.ndarray]]:
    """Return the kinds of queries with their rows; without ground truth those whose position is known at all."""
    if not found.labeled:
        known = np.flatnonzero(np.isfinite(found.between.queries).all(axis=1))
        return [("queries", "query", known)] if len(known) else []
    verdicts: dict[Kind, np.ndarray] = {"correct": found.correct[:, 0], "wrong": ~found.correct[:, 0]}
    return [(f"{kind} queries", kind, np.flatnonzero(chosen)) for kind, chosen in verdicts.items() if chosen.any()]


def _candidate_details(
    found: Retrieved, database: np.ndarray, pictured: np.ndarray, missed: Missed | None, num_shown: int
) -> dict[int, Detail]:
    """Return the shown predictions of queries, and their best correct candidate, as details of the map."""
    details: dict[int, Detail] = {}
    of_missed = {} if missed is None else dict(zip(missed.queries.tolist(), missed.rows.tolist(), strict=True))
    for query in pictured.tolist():
        rows = found.predictions[query, :num_shown]
        ranks = [f"prediction {rank + 1}" for rank in range(len(rows))]
        points = []
        if found.classes is None:  # of classes, cells are drawn
            points.append(Points("predictions", "match", _positions_at(database, rows), labels=ranks))
        if query in of_missed and of_missed[query] not in rows:
            position = database[[of_missed[query]]]
            points.append(Points("best correct candidate", "found", position, labels=[missed_title(found)]))
        details[query] = Detail(points)
    return details


def _positions_at(positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the positions at rows; NaN at -1."""
    return np.where(rows[:, None] < 0, np.nan, positions[rows])


def _best_cells(classes: ClassScores, pictured: np.ndarray) -> dict[int, dict[int, float]]:
    """Return the best cells of queries with their probabilities, by a class of the cell; classes differ in heading."""
    _, first, cell_of = np.unique(classes.classifier.centers_m, axis=0, return_index=True, return_inverse=True)
    cell_of = cell_of.reshape(-1)  # of two dimensions in numpy 2.0
    cells: dict[int, dict[int, float]] = {}
    for query in pictured.tolist():
        cells[query] = {}
        for row, probability in zip(classes.rows[query].tolist(), classes.probabilities[query].tolist(), strict=True):
            if row >= 0:
                cell = int(first[cell_of[row]])
                cells[query][cell] = cells[query].get(cell, 0.0) + probability
    return cells


def _corner_catalogue(classes: ClassScores, cells: dict[int, dict[int, float]]) -> Catalogue:
    """Return the corners of the cells of all queries, four rows for each, as a catalogue of positions."""
    classifier = classes.classifier
    drawn = np.array([cell for of_query in cells.values() for cell in of_query], np.int64)
    corners_m = class_outlines(classifier.class_ids[drawn], cell_side_m=classifier.cell_side_m, heading_bin_deg=360)
    corners_m = corners_m.reshape(-1, 2)
    columns = classifier.frame.columns(corners_m)
    names = pa.array([""] * len(corners_m), pa.large_string())
    heading = np.full(len(corners_m), np.nan)
    return Catalogue(classifier.catalogue.folder, pa.table({"path": names, **columns, "heading": heading}))


def _cell_details(
    cells: dict[int, dict[int, float]], corners: np.ndarray, candidates: dict[int, Detail]
) -> dict[int, Detail]:
    """Return details with the cells of each query, whose corners follow one another, below its candidates."""
    details, start = {}, 0
    for query, probabilities in cells.items():
        end = start + 4 * len(probabilities)
        weights = list(probabilities.values())
        labels = [f"{100 * weight:.1f} %" for weight in weights]
        polygons = Polygons(
            "best cells", 0, corners[start:end].reshape(-1, 4, 2), labels, np.minimum(weights, 1.0).tolist()
        )
        details[query] = Detail(candidates[query].points, [polygons])
        start = end
    return details
