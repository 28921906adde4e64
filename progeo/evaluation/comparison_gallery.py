"""Queries that some encoders find and others miss, as rows of a page: the first predictions of each encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from progeo.evaluation.comparison import Evaluated, shared_queries
from progeo.evaluation.retrieved import Retrieved
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
class Outcome:
    """An encoder's predictions for one query."""

    evaluated: Evaluated
    row: int
    """Row of the predictions."""
    is_found: bool
    """Whether one of the first N predictions is correct."""

    @property
    def retrieved(self) -> Retrieved:
        """The predictions of the encoder for all queries."""
        return self.evaluated.evaluation.retrieved


@dataclass(frozen=True)
class Differing:
    """A query that some encoders find and others miss."""

    key: int
    """Number of its row on the page."""
    data: str
    """Name of the data set."""
    outcomes: Sequence[Outcome]
    """Of each encoder, the one with the highest recall first."""

    @property
    def name(self) -> str:
        """Path of the query in its folder."""
        return self.outcomes[0].retrieved.queries.name(self.outcomes[0].row)

    @property
    def condition(self) -> str:
        """Light or weather of the query; "" where unknown."""
        return str(self.outcomes[0].retrieved.conditions[self.outcomes[0].row])


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
        outcomes = [
            Outcome(*each) for each in zip(here, rows[:, column].tolist(), found[:, column].tolist(), strict=True)
        ]
        differing = Differing(start + int(shared[column]), here[0].data, outcomes)
        groups.setdefault(found[:, column].tobytes(), []).append(differing)
    return list(groups.values())


def gallery_of(
    listed: Sequence[Differing],
    encoders: Mapping[str, str],
    sets: Mapping[str, str],
    *,
    first_n: int,
    show_paths: bool,
    max_pictures: int,
) -> tuple[Gallery, int]:
    """Lay out the rows of queries, each with the first predictions of each encoder.

    Args:
        encoders, sets: name of each encoder and data set as the page shows it, in the order of the page.
        first_n: number of first predictions among which a correct one counts.
        show_paths: show absolute paths of photos.
        max_pictures: number of pictures after which queries are listed by name.

    Returns:
        The rows, and how many of them have pictures.
    """
    page = _Page(encoders, sets, max(_NUM_SHOWN, first_n), show_paths)
    rows, num_pictured = [], 0
    for each in listed:
        is_pictured = page.photos.num_embedded < max_pictures
        num_pictured += is_pictured
        rows.append(page.row(each, is_pictured=is_pictured))
    conditions = sorted({each.condition for each in listed} - {""})
    filters = {
        "data set": list(sets.values()) if len(sets) > 1 else [],
        "found by": list(encoders.values()),
        "missed by": list(encoders.values()),
        "condition": conditions,
    }
    useful = {name: values for name, values in filters.items() if values}
    return Gallery(page.photos, rows, [Measure("rank", "rank"), Measure("distance_m", "meters")], useful), num_pictured


@dataclass(frozen=True)
class _Page:
    """What the rows of a page have in common, see `gallery_of`."""

    encoders: Mapping[str, str]
    sets: Mapping[str, str]
    num_shown: int
    """Predictions of each encoder that are shown."""
    show_paths: bool
    photos: Photos = field(default_factory=Photos)

    def row(self, differing: Differing, *, is_pictured: bool) -> Row:
        """Lay out a query."""
        by_encoder = {each.evaluated.encoder: each for each in differing.outcomes}
        strips = [self._strip(by_encoder[name], shown, is_pictured) for name, shown in self.encoders.items()]
        facets = {
            "data set": self.sets[differing.data],
            "found by": [self.encoders[name] for name, each in by_encoder.items() if each.is_found],
            "missed by": [self.encoders[name] for name, each in by_encoder.items() if not each.is_found],
            "condition": differing.condition,
        }
        first = differing.outcomes[0]
        photo = self._photo(first.retrieved.queries, first.row, is_pictured, has_file=True)
        return Row(differing.key, photo, strips, facets=facets)

    def _strip(self, outcome: Outcome, name: str, is_pictured: bool) -> Strip:
        """Lay out the first predictions of an encoder."""
        found, row = outcome.retrieved, outcome.row
        items = []
        for rank, predicted in enumerate(found.predictions[row, : self.num_shown].tolist()):
            if predicted >= 0:
                photo = self._photo(found.database, predicted, is_pictured, has_file=found.classes is None)
                mark: Mark = "correct" if found.correct[row, rank] else "wrong"
                items.append(Item(photo, mark, (rank + 1, float(found.distances_m[row, rank]))))
        return Strip(f"{name}: {'found' if outcome.is_found else 'missed'}", items)

    def _photo(self, catalogue: Catalogue, row: int, is_pictured: bool, *, has_file: bool) -> int:
        path = catalogue.path(row) if has_file else None
        return self.photos.add(shown_path(catalogue.name(row), self.show_paths), path, embedded=is_pictured)
