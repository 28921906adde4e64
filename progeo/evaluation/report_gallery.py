"""The rows of a report: each query beside its predictions and, if it failed, the best correct candidate."""

from collections.abc import Mapping

import numpy as np

from progeo.evaluation.missed import Missed
from progeo.evaluation.retrieved import Retrieved
from progeo.pages.gallery import Gallery, Item, Mark, Measure, Order, Photos, Row, Strip
from progeo.pages.page import shown_path
from progeo.places.catalogue import Catalogue

MAX_ROWS = 20_000
"""Maximum number of queries that a report lists."""
_WITH_PICTURES, _BY_NAME = "with pictures", "by name only"


def query_gallery(
    found: Retrieved,
    queries: np.ndarray,
    *,
    pictured: np.ndarray,
    missed: Missed | None,
    num_shown: int,
    show_paths: bool,
) -> Gallery:
    """Lay out the rows of queries.

    Args:
        queries: rows of queries in the order of the page.
        pictured: those of them that are shown with pictures.
        missed: the best correct candidates of failed queries.
        num_shown: predictions of each query.
        show_paths: show absolute names.
    """
    photos, predicted = Photos(found.orientation), found.predictions[:, :num_shown]
    facets = _facets(found, pictured)
    of_missed = {} if missed is None else _missed_items(found, missed)
    with_picture = np.concatenate([predicted[pictured].ravel(), [row for row, _ in of_missed.values()]])
    listed = np.union1d(predicted[queries], with_picture).astype(np.int64)
    candidates = _added(photos, found.database, listed[listed >= 0], with_picture, found.classes is None, show_paths)
    photo_of = _added(photos, found.queries, queries, pictured, True, show_paths)
    measures, values = _measures(found), _values(found, num_shown)
    has_picture = set(pictured.tolist())
    lines = {shown: pair.lines for shown, pair in found.pairs.items() if shown[0] in has_picture}
    rows = []
    for query in queries.tolist():
        ranked = predicted[query].tolist()
        items = [
            Item(
                candidates[row],
                mark_of(found, query, rank),
                values[query, rank].tolist(),
                lines[query, rank].tolist() if (query, rank) in lines else (),
            )
            for rank, row in enumerate(ranked)
            if row >= 0
        ]
        strips = [Strip("Predictions", items)]
        row, told = of_missed.get(query, (-1, []))
        if row >= 0 and row not in ranked:
            strips.append(
                Strip(
                    missed_title(found), [Item(candidates[row], "correct", told + [None] * (len(measures) - len(told)))]
                )
            )
        texts = {name: str(each[query]) for name, each in facets.items()}
        rows.append(Row(query, photo_of[query], strips, mark_of(found, query, 0), texts, _note(found, query)))
    filters = {name: _distinct(name, each[queries], found) for name, each in facets.items()}
    useful = {name: texts for name, texts in filters.items() if len(texts) > 1 or name == "verdict"}
    return Gallery(photos, rows, measures, useful, _orders(found))


def mark_of(found: Retrieved, query: int, rank: int) -> Mark:
    """Return whether a prediction is correct; "" without ground truth."""
    if not found.labeled:
        return ""
    return "correct" if found.correct[query, rank] else "wrong"


def missed_title(found: Retrieved) -> str:
    """Return the name of what `Missed` holds."""
    return "Nearest correct image, missed" if found.classes is None else "Best class with a correct center, missed"


def shown_names(catalogue: Catalogue, rows: np.ndarray, *, show_paths: bool) -> list[str]:
    """Return the names of images at some rows as a page shows them."""
    return [shown_path(name, show_paths) for name in catalogue.table["path"].take(rows).to_pylist()]


def _added(
    photos: Photos, catalogue: Catalogue, rows: np.ndarray, pictured: np.ndarray, has_files: bool, show_paths: bool
) -> dict[int, int]:
    """Add images to the photos of the page, and return the number of each by its row."""
    with_picture = set(pictured.tolist())
    names = shown_names(catalogue, rows, show_paths=show_paths)
    return {
        row: photos.add(name, catalogue.path(row) if has_files else None, embedded=row in with_picture)
        for row, name in zip(rows.tolist(), names, strict=True)
    }


def _measures(found: Retrieved) -> list[Measure]:
    value = Measure("probability_percent", "percent")
    if found.classes is None:
        value = Measure("descriptor_distance", "descriptor")
    inliers = [Measure("matched_points", "inliers")] if found.pairs else []
    return [Measure("rank", "rank"), Measure("distance_m", "meters"), value, *inliers]


def _values(found: Retrieved, num_shown: int) -> np.ndarray:
    """Return the values of all measures of the first predictions, (Q, num_shown, M); NaN where there is none."""
    predicted = found.predictions[:, :num_shown]
    values = np.full((*predicted.shape, len(_measures(found))), np.nan)
    values[:, :, 0] = np.arange(1, predicted.shape[1] + 1)
    values[:, :, 1] = found.distances_m[:, :num_shown]
    if found.classes is not None:
        values[:, :, 2] = 100 * found.classes.probabilities[:, : predicted.shape[1]]
    elif found.distances is not None:
        values[:, :, 2] = found.distances[:, :num_shown]
    for (query, rank), pair in found.pairs.items():
        if rank < num_shown:
            values[query, rank, 3] = pair.inliers
    return values


def _missed_items(found: Retrieved, missed: Missed) -> dict[int, tuple[int, list[float]]]:
    """Return the row of the best correct candidate of each query, and its rank, meters and descriptor distance."""
    meters = found.between.of_pairs(missed.rows, missed.queries)
    told = np.stack([missed.ranks, meters, missed.values * (1 if found.classes is None else 100)], axis=1)
    return {
        query: (row, values)
        for query, row, values in zip(missed.queries.tolist(), missed.rows.tolist(), told.tolist(), strict=True)
    }


def _facets(found: Retrieved, pictured: np.ndarray) -> dict[str, np.ndarray]:
    """Return the value of each filter for every query, str (Q,); "" where it has none."""
    count = len(found.queries)
    facets: dict[str, np.ndarray] = {}
    if found.labeled:
        facets["verdict"] = np.where(found.correct[:, 0], "correct", "wrong")
    for by, groups in found.groupings.items():
        facets[by] = np.full(count, "", object)
        for name, rows in groups.items():
            facets[by][rows] = name
    facets["pictures"] = np.full(count, _BY_NAME, object)
    facets["pictures"][pictured] = _WITH_PICTURES
    return facets


def _distinct(by: str, texts: np.ndarray, found: Retrieved) -> list[str]:
    """Return the values of a filter in the order of the page."""
    present = set(texts.tolist())
    known = {"verdict": ["wrong", "correct"], "pictures": [_WITH_PICTURES, _BY_NAME]}
    return [text for text in known.get(by, found.groupings.get(by, ())) if text in present]


def _orders(found: Retrieved) -> Mapping[str, Order]:
    if found.labeled:
        return {"worst first": "given", "worst last": "reversed", "by name": "name"}
    return {"nearest first": "given", "nearest last": "reversed", "by name": "name"}


def _note(found: Retrieved, query: int) -> str:
    if not found.labeled or len(found.positives[found.criterion][query]):
        return ""
    return f"The database has no {'image' if found.classes is None else 'class'} {found.criterion}."
