"""Predictions for many queries, with their correctness and distances in meters."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.spatial import cKDTree

from progeo.evaluation.recall import correct_predictions
from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m

_RANGES_M = (0, 5, 10, 25, 50, 100, np.inf)


@dataclass(frozen=True)
class Retrieved:
    """Predictions for Q queries."""

    database: Catalogue
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

    @property
    def labeled(self) -> bool:
        """Whether there is ground truth."""
        return bool(self.positives)

    @property
    def criterion(self) -> str:
        """Name of the main criterion for a correct prediction."""
        return next(iter(self.positives))

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct by the main criterion, bool (Q, K)."""
        return correct_predictions(self.predictions, self.positives[self.criterion])

    @cached_property
    def positions_m(self) -> tuple[np.ndarray, np.ndarray]:
        """East and north in meters of each database image (N, 2) and of each query (Q, 2); NaN where unknown."""
        database_m, queries_m = positions_m(self.database, self.queries)
        return database_m, queries_m

    @cached_property
    def distances_m(self) -> np.ndarray:
        """Meters between each query and its predictions (Q, K), NaN where unknown."""
        database_m, queries_m = self.positions_m
        distances_m = np.linalg.norm(database_m[self.predictions] - queries_m[:, None], axis=2)
        return np.where(self.predictions < 0, np.nan, distances_m)

    def groups(self) -> dict[str, np.ndarray]:
        """Group queries by condition and by distance to the nearest database image: rows of queries, int64, by name."""
        groups = {"all": np.arange(len(self.queries))}
        for condition in dict.fromkeys(self.conditions.tolist()):
            if condition and condition not in groups:  # a condition called `all` gets no group
                groups[condition] = np.flatnonzero(self.conditions == condition)
        database_m, queries_m = self.positions_m
        if not (np.isfinite(database_m).all() and np.isfinite(queries_m).all()):
            return groups
        nearest_m = cKDTree(database_m).query(queries_m)[0]
        for low, high in pairwise(_RANGES_M):
            name = f"{low} to {high} m" if np.isfinite(high) else f"{low} m and more"
            groups[f"{name} from the database"] = np.flatnonzero((nearest_m >= low) & (nearest_m < high))
        return {name: rows for name, rows in groups.items() if name == "all" or 0 < len(rows) < len(self.queries)}
