"""Load a benchmark: its query set, its protocol and the condition of each query."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from progeo.datasets.query_sets import QuerySet, load_query_set, load_unlabeled
from progeo.engine.log import LOGGER
from progeo.evaluation.options import BenchmarkOptions
from progeo.evaluation.protocols import Protocol, load_protocol
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class Benchmark:
    """A query set and how its predictions are judged."""

    options: BenchmarkOptions
    """Options, with the values of the protocol."""
    query_set: QuerySet
    """Database and queries."""
    conditions: np.ndarray
    """Condition (light or weather) of each query, str (Q,); "" where unknown."""
    panoramas: np.ndarray | None
    """Panorama of each database image, str (N,); None if every image counts as a prediction."""

    def without_queries(self, rows: np.ndarray) -> "Benchmark":
        """Return the benchmark without the queries at `rows`."""
        return replace(
            self, query_set=self.query_set.without_queries(rows), conditions=np.delete(self.conditions, rows)
        )


def load_benchmark(folder: Path, options: BenchmarkOptions, *, no_labels: bool = False) -> Benchmark:
    """Load the query set of a benchmark from a folder.

    Args:
        options: a protocol sets some of them.
        no_labels: positions of the queries are unknown.

    Raises:
        ValueError: the options contradict each other or the protocol, or `load_query_set` refuses the images.
    """
    protocol = None if options.protocol is None else load_protocol(options.protocol)
    if protocol is not None:
        options = protocol.applied_to(options)
    if protocol is not None and no_labels:
        raise ValueError(f"`protocol` {protocol.name} needs known positions: omit `no_labels` or `protocol`.")
    if not options.recall_ns:
        raise ValueError("`recall_ns` must name at least one N. Use for example 1,5,10,20.")
    sides = (folder, options.database, options.queries)
    if no_labels:
        query_set = load_unlabeled(*sides)
    else:
        query_set = load_query_set(*sides, radius_m=options.positive_radius_m, angle_deg=options.positive_angle_deg)
    if protocol is not None:
        protocol.check(folder, len(query_set.database), len(query_set.queries))
        LOGGER.info("%s; comparable with %s", protocol.description, protocol.comparable)
    panoramas = query_set.database.panoramas if options.one_per_panorama else None
    return Benchmark(options, query_set, _conditions(query_set.queries, protocol), panoramas)


def _conditions(queries: Catalogue, protocol: Protocol | None) -> np.ndarray:
    """Return the condition of each query as recorded with it, else by the protocol, else ""."""
    found = queries.conditions
    if found is None and protocol is not None:
        found = protocol.conditions_of(queries.table["path"].to_pylist())
    return np.full(len(queries), "") if found is None else found
