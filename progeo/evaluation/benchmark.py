"""Load a benchmark: its query set, its protocol and the condition of each query."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from progeo.datasets.query_sets import QuerySet, build_query_set
from progeo.engine.log import LOGGER
from progeo.evaluation.options import BenchmarkOptions
from progeo.evaluation.protocols import Protocol, load_protocol
from progeo.evaluation.uploads import check_uploadable
from progeo.places.catalogue import Catalogue, Positions, read_catalogue
from progeo.places.distances import is_wide

_RADII_M = (5.0, 25.0, 100.0)
_WIDE_RADII_M = (1e3, 25e3, 200e3, 750e3, 2500e3)


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


def load_benchmark(
    folder: Path, options: BenchmarkOptions, *, no_labels: bool = False, classes: Catalogue | None = None
) -> Benchmark:
    """Load the query set of a benchmark from a folder.

    Args:
        options: a protocol sets some of them.
        no_labels: positions of the queries are unknown.
        classes: centers of classes, which are used as the database; None reads that of the folder.

    Raises:
        ValueError: the options contradict each other or the protocol, or `build_query_set` refuses the images.
    """
    protocol = None if options.protocol is None else load_protocol(options.protocol)
    options = with_protocol(options)
    if protocol is not None and no_labels and not protocol.upload:
        raise ValueError(f"`protocol` {protocol.name} needs known positions: omit `no_labels` or `protocol`.")
    if not options.recall_ns:
        raise ValueError("`recall_ns` must name at least one N. Use for example 1,5,10,20.")
    if classes is not None and options.one_per_panorama:
        raise ValueError(
            "`one_per_panorama`, which a `protocol` may set, counts views of the database, and `by` classes uses none: "
            "omit one of them."
        )
    database, queries = _read_sides(folder, options, no_labels=no_labels, classes=classes)
    if protocol is not None:
        protocol.check(folder, None if classes is not None else len(database), len(queries))
        if protocol.positives_given and classes is None and queries.positives is None:
            raise ValueError(
                f"`protocol` {protocol.name} needs the positives of each query, and {queries.folder} has none: import "
                f"the data set with `progeo dataset import`."
            )
        if protocol.upload:
            if classes is not None:
                raise ValueError(f"`protocol` {protocol.name} judges database images: omit it, or set `by` to images.")
            check_uploadable(database, queries, options.recall_ns)
        LOGGER.info("%s; comparable with %s", protocol.description, protocol.comparable)
    if no_labels:
        query_set = QuerySet(database, queries, None)
    else:
        query_set = build_query_set(
            database,
            queries,
            radius_m=options.positive_radius_m,
            angle_deg=options.positive_angle_deg,
            great_circle=protocol is None and is_wide(database, queries),
            target="database image" if classes is None else "class",
        )
    if options.radii_m is None:
        options = replace(options, radii_m=_WIDE_RADII_M if query_set.great_circle else _RADII_M)
    panoramas = database.panoramas if options.one_per_panorama else None
    return Benchmark(options, query_set, _conditions(queries, protocol), panoramas)


def with_protocol(options: BenchmarkOptions) -> BenchmarkOptions:
    """Return the options with the values of their protocol, if they name one."""
    return options if options.protocol is None else load_protocol(options.protocol).applied_to(options)


def _read_sides(
    folder: Path, options: BenchmarkOptions, *, no_labels: bool, classes: Catalogue | None
) -> tuple[Catalogue, Catalogue]:
    """Read database and queries; positives stored with the queries are not those of classes."""
    positions: Positions = "ignored" if no_labels else "optional"
    queries = read_catalogue(folder / options.queries, positions=positions)
    if classes is None:
        return read_catalogue(folder / options.database, positions=positions), queries
    if queries.positives is not None:
        queries = replace(queries, table=queries.table.drop_columns(["positives"]), file=None)
    return classes, queries


def _conditions(queries: Catalogue, protocol: Protocol | None) -> np.ndarray:
    """Return the condition of each query as recorded with it, else by the protocol, else ""."""
    found = queries.conditions
    if found is None and protocol is not None:
        found = protocol.conditions_of(queries.table["path"].to_pylist())
    return np.full(len(queries), "") if found is None else found
