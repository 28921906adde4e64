"""Queries that some encoders find and others miss, as rows of a page: the first predictions of each encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from progeo.evaluation.comparison import Evaluated, shared_queries
from progeo.pages.gallery import Gallery, Item, Mark, Measure, Photos, Row, Strip
from progeo.pages.page import shown_path
from progeo.places.catalogue import Catalogue

MAX_ROWS = 2000
"""Maximum number of queries that the page lists."""
MAX_PICTURES = 1500
"""Number of pictures in the page after which further queries are listed by name."""
_NUM_SHOWN = 3
"""Predictions of each encoder that are shown."""


@dataclass(frozen=True)
class Finding:
    """An encoder's predictions for one query."""

    evaluated: Evaluated
    row: int
    """Row of the predictions."""
    is_found: bool
    """Whether one of the first N predictions is correct."""


@dataclass(frozen=True)
class Differing:
    """A query that some encoders find and others miss."""

    key: int
    """Number of its row on the page."""
    data: str
    """Name of the data set."""
    findings: Sequence[Finding]
    """Of each encoder, the one with the highest recall first."""

    @property
    def name(self) -> str:
        """Path of the query in its folder."""
        first = self.findings[0]
        return first.evaluated.evaluation.retrieved.queries.name(first.row)


def differing_queries(evaluated: Sequence[Evaluated], first_n: int, best: Sequence[str]) -> list[Differing]:
    """List the queries that some encoders find among their first predictions and others miss.

    They are taken in turn from each data set and each set of encoders that find them, in random order, so that the
    first of them are of all kinds.

    Args:
        first_n: number of first predictions.
        best: name of the best encoder of each data set.
    """
    groups, start = [], 1
    for number, name in enumerate(dict.fromkeys(each.data for each in evaluated)):
        here = sorted((each for each in evaluated if each.data == name), key=lambda each: each.encoder != best[number])
        groups += _groups(here, shared_queries(here), first_n, start)
        start += 1 + max(int(each.query_rows.max()) for each in here)
    return [each for turn in zip_longest(*groups) for each in turn if each is not None]


def _groups(here: Sequence[Evaluated], shared: np.ndarray, first_n: int, start: int) -> list[list[Differing]]:
    """Group the queries of a data set by which encoders find them; keys count from `start` in the order of names."""
    found = np.stack([each.hits_of(shared, first_n) for each in here])
    rows = np.stack([each.rows_of(shared) for each in here])
    mixed = np.random.default_rng(0).permutation(np.flatnonzero(found.any(axis=0) & ~found.all(axis=0)))
    groups: dict[bytes, list[Differing]] = {}
    for column in mixed.tolist():
        findings = [
            Finding(*each) for each in zip(here, rows[:, column].tolist(), found[:, column].tolist(), strict=True)
        ]
        differing = Differing(start + int(shared[column]), here[0].data, findings)
        groups.setdefault(found[:, column].tobytes(), []).append(differing)
    return list(groups.values())


def gallery_of(
    listed: Sequence[Differing], encoders: Sequence[str], *, first_n: int, show_paths: bool, max_pictures: int
) -> tuple[Gallery, int]:
    """Lay out the rows of queries, each with the first predictions of each encoder.

    Args:
        encoders: names of all encoders, in the order of the page.
        first_n: number of first predictions among which a correct one counts.
        show_paths: show absolute paths.
        max_pictures: number of pictures after which queries are listed by name.

    Returns:
        The rows, and how many of them have pictures.
    """
    photos, rows, num_pictured = Photos(), [], 0
    num_shown = max(_NUM_SHOWN, first_n)
    names = {name: shown_path(name, show_paths) for name in encoders}
    for each in listed:
        is_pictured = photos.num_embedded < max_pictures
        num_pictured += is_pictured
        rows.append(_row(each, photos, names, num_shown, is_pictured=is_pictured, show_paths=show_paths))
    conditions = sorted({row.facets["condition"] for row in rows if isinstance(row.facets["condition"], str)} - {""})
    sets = list(dict.fromkeys(shown_path(each.data, show_paths) for each in sorted(listed, key=lambda row: row.key)))
    filters = {"correct by": list(names.values()), "missed by": list(names.values())}
    if len(sets) > 1:
        filters = {"data set": sets, **filters}
    if conditions:
        filters["condition"] = conditions
    measures = [Measure("rank", "rank"), Measure("distance_m", "meters")]
    return Gallery(photos, rows, measures, filters), num_pictured


def _row(
    differing: Differing,
    photos: Photos,
    names: dict[str, str],
    num_shown: int,
    *,
    is_pictured: bool,
    show_paths: bool,
) -> Row:
    by_encoder = {each.evaluated.encoder: each for each in differing.findings}
    strips = []
    for name, shown in names.items():
        finding = by_encoder[name]
        retrieved, row = finding.evaluated.evaluation.retrieved, finding.row
        items = [
            Item(
                _photo(photos, retrieved.database, found, retrieved.classes is None, is_pictured, show_paths),
                _mark(bool(retrieved.correct[row, rank])),
                (rank + 1, float(retrieved.distances_m[row, rank])),
            )
            for rank, found in enumerate(retrieved.predictions[row, :num_shown].tolist())
            if found >= 0
        ]
        strips.append(Strip(f"{shown}: {'correct' if finding.is_found else 'missed'}", items))
    first = differing.findings[0]
    retrieved = first.evaluated.evaluation.retrieved
    facets = {
        "data set": shown_path(differing.data, show_paths),
        "correct by": [names[name] for name, each in by_encoder.items() if each.is_found],
        "missed by": [names[name] for name, each in by_encoder.items() if not each.is_found],
        "condition": str(retrieved.conditions[first.row]),
    }
    photo = _photo(photos, retrieved.queries, first.row, True, is_pictured, show_paths)
    return Row(differing.key, photo, strips, facets=facets)


def _photo(photos: Photos, catalogue: Catalogue, row: int, has_file: bool, is_pictured: bool, show_paths: bool) -> int:
    path = catalogue.path(row) if has_file else None
    return photos.add(shown_path(catalogue.name(row), show_paths), path, embedded=is_pictured)


def _mark(is_correct: bool) -> Mark:
    return "correct" if is_correct else "wrong"
