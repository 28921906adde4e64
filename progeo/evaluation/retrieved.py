"""Predictions for many queries, with their correctness and distances in meters."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from progeo.evaluation.classification import ClassScores
from progeo.evaluation.priors import Regions
from progeo.evaluation.recall import correct_predictions
from progeo.image_files import Orientation
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import middle_of, offsets_m
from progeo.places.distances import Distances, distances_between
from progeo.places.geographic import degrees_of, positions_m
from progeo.places.positives import smallest_turns
from progeo.verification.matchers import Pair

_RANGES_M = (0, 5, 10, 25, 50, 100, np.inf)
_WIDE_RANGES_M = (0, 1e3, 25e3, 200e3, 750e3, 2500e3, np.inf)
_RANGES_DEG = (0, 30, 60, 90, 180)


@dataclass(frozen=True)
class Retrieved:
    """Predictions for Q queries."""

    database: Catalogue
    """Database images, or the centers of classes."""
    queries: Catalogue
    predictions: np.ndarray
    """Database rows of each query, best first, int64 (Q, K); -1 where there is none."""
    positives: Mapping[str, list[np.ndarray]]
    """Correct database rows of each query, by the name of a criterion; the first is the main one. Empty without ground
    truth."""
    conditions: np.ndarray
    """Condition (light or weather) of each query, str (Q,); "" where unknown."""
    distances: np.ndarray | None = None
    """Descriptor distances between queries and predictions, (Q, K); required without ground truth."""
    great_circle: bool = False
    """Whether distances follow great circles, see `progeo.places.distances`."""
    classes: ClassScores | None = None
    """Probabilities of classes; None if the database is of images."""
    panoramas: np.ndarray | None = None
    """Panorama of each database image, str (N,), if each counts as one prediction; None if every image counts."""
    pairs: Mapping[tuple[int, int], Pair] = field(default_factory=dict)
    """Predictions that were matched with their query, by query and rank, the first ranks only."""
    regions: Regions | None = None
    """Database images that each query was searched among; None for all."""
    orientation: Orientation = "exif"
    """How images were oriented."""

    @property
    def labeled(self) -> bool:
        """Whether there is ground truth."""
        return bool(self.positives)

    @property
    def criterion(self) -> str:
        """Name of the main criterion for a correct prediction."""
        return next(iter(self.positives))

    @property
    def by_main_criterion(self) -> "Retrieved":
        """The same predictions with the positives of the main criterion only."""
        return replace(self, positives={self.criterion: self.positives[self.criterion]})

    @property
    def measure(self) -> str:
        """Name of recall: R of R@N, or LR of LR@N, localization recall."""
        return "R" if self.classes is None else "LR"

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct by the main criterion, bool (Q, K)."""
        return correct_predictions(self.predictions, self.positives[self.criterion])

    @cached_property
    def positions_m(self) -> tuple[np.ndarray, np.ndarray]:
        """East and north in meters of the database (N, 2) and the queries (Q, 2), for a map; NaN where unknown."""
        if not self.great_circle:
            database_m, queries_m = positions_m(self.database, self.queries)
            return database_m, queries_m
        degrees = [degrees_of(catalogue) for catalogue in (self.database, self.queries)]
        middle = middle_of(*np.concatenate(degrees, axis=1))
        database_m, queries_m = (offsets_m(each, middle) for each in degrees)
        return database_m, queries_m

    @cached_property
    def between(self) -> Distances:
        """Distances between database and queries."""
        return distances_between(self.database, self.queries, great_circle=self.great_circle)

    @cached_property
    def distances_m(self) -> np.ndarray:
        """Meters between each query and its predictions (Q, K), NaN where unknown."""
        return self.between.between(self.predictions)

    def groups(self) -> dict[str, np.ndarray]:
        """Return the rows of all queries and those of each group of `groupings`, int64, by name."""
        groups = {"all": np.arange(len(self.queries))}
        for parts in self.groupings.values():
            groups |= {name: rows for name, rows in parts.items() if name not in groups}
        return groups

    @cached_property
    def groupings(self) -> dict[str, dict[str, np.ndarray]]:
        """Group queries in several ways: rows of queries, int64, by what they are grouped by and by name.

        By condition, by distance to the nearest database image, and by how much the heading of a query differs from the
        nearest heading among its positives. A group is neither empty nor all queries; queries whose distance or heading
        is unknown are in none.
        """
        found = {"condition": self.by_condition, "distance": self._by_distance(), "heading": self._by_heading()}
        parts = {by: self._parts(groups) for by, groups in found.items()}
        return {by: groups for by, groups in parts.items() if groups}

    @property
    def by_condition(self) -> dict[str, np.ndarray]:
        """Rows of the queries of each condition, int64, by name; none if all queries are of one condition."""
        names = [name for name in dict.fromkeys(self.conditions.tolist()) if name and name != "all"]
        return self._parts({name: np.flatnonzero(self.conditions == name) for name in names})

    def _parts(self, groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the groups that are neither empty nor all queries."""
        return {name: rows for name, rows in groups.items() if 0 < len(rows) < len(self.queries)}

    def _by_distance(self) -> dict[str, np.ndarray]:
        """Group queries by distance to the nearest database image or class."""
        if not (np.isfinite(self.between.database).all() and np.isfinite(self.between.queries).all()):
            return {}
        nearest_m, target = self.between.nearest(), "database" if self.classes is None else "nearest class"
        ranges_m, unit, unit_m = (_WIDE_RANGES_M, "km", 1000) if self.great_circle else (_RANGES_M, "m", 1)
        groups = {}
        for low, high in pairwise(ranges_m):
            start, end = f"{low / unit_m:g}", f"{high / unit_m:g}"
            name = f"{start} to {end} {unit}" if np.isfinite(high) else f"{start} {unit} and more"
            groups[f"{name} from the {target}"] = np.flatnonzero((nearest_m >= low) & (nearest_m < high))
        return groups

    def _by_heading(self) -> dict[str, np.ndarray]:
        """Group queries by the smallest difference between their heading and that of a positive."""
        if not self.labeled:
            return {}
        turns_deg = smallest_turns(self.positives[self.criterion], self.database.heading, self.queries.heading)
        bins = np.searchsorted(_RANGES_DEG[1:-1], turns_deg, side="right")  # NaN sorts last, so it is excluded below
        return {
            f"{low} to {high} degrees from a positive": np.flatnonzero((bins == number) & np.isfinite(turns_deg))
            for number, (low, high) in enumerate(pairwise(_RANGES_DEG))
        }
