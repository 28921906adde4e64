"""Evaluate an encoder: retrieve database images for queries and measure recall."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.commands.query_set_features import QuerySetFeatures, descriptors_of, load_descriptor_source
from progeo.commands.results import write_found, write_results
from progeo.config.evaluation import EvaluateSettings
from progeo.datasets.query_sets import QuerySet, load_query_set, load_unlabeled, positives_by_rule
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.copies import find_themselves
from progeo.evaluation.crops import nearest_of_crops, votes_of_crops
from progeo.evaluation.metrics import first_of_each_panorama
from progeo.evaluation.protocols import Protocol, load_protocol
from progeo.evaluation.recall import recall_at
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import (
    Neighbors,
    distances_of,
    index_neighbors,
    index_path,
    nearest_neighbors,
    open_index,
)
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue

_PARTS_OF_A_PANORAMA = 12


@dataclass(frozen=True)
class Evaluation:
    """Results of one encoder."""

    facts: Mapping[str, str]
    """Encoder, data set and options of the evaluation."""
    recalls: Mapping[int, float]
    """Recall in percent, by N; empty without labels."""
    descriptor_dim: int
    search_ms: float
    """Duration of an exact search in milliseconds per query."""


def evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate an encoder and write recalls, predictions and a report; returns their folder."""
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    evaluate_source(load_descriptor_source(settings.encoder), settings, accelerator)
    return settings.out


def evaluate_source(source: Encoder | Path, settings: EvaluateSettings, accelerator: Accelerator) -> Evaluation | None:
    """Evaluate a source of `load_descriptor_source`; only the main process gets the result, others None."""
    protocol = None if settings.protocol is None else load_protocol(settings.protocol)
    if protocol is not None:
        if settings.positive_angle_deg is not None:
            raise ValueError(
                f"The protocol {protocol.name} looks at no heading, so that numbers with positive_angle_deg "
                f"{settings.positive_angle_deg:g} could not be compared: leave one of them out."
            )
        names = ("database", "queries", "positive_radius_m", "one_per_panorama")
        settings = replace(settings, **{name: getattr(protocol, name) for name in names})
    if not settings.recall_ns:
        raise ValueError("recall_ns must name at least one N.")
    if settings.no_labels and protocol is not None:
        raise ValueError(f"The protocol {protocol.name} says what is right: leave out --no_labels or --protocol.")
    query_set = _query_set(settings)
    if protocol is not None:
        protocol.check(settings.folder, len(query_set.database), len(query_set.queries))
        LOGGER.info("%s; comparable with %s", protocol.what, protocol.comparable)
    conditions = _conditions(query_set.queries, protocol)
    panoramas = query_set.database.panoramas if settings.one_per_panorama else None
    descriptors = descriptors_of(source, query_set, settings, accelerator)
    if not accelerator.is_main_process:
        return None
    unreadable = _unreadable_in_words(descriptors)
    conditions = np.delete(conditions, descriptors.queries.missing)
    query_set = query_set.without_queries(descriptors.queries.missing)
    found = _search(settings, query_set.positives, descriptors, panoramas)
    facts = {
        "encoder": settings.encoder,
        "descriptor": f"{descriptors.database.width} dimensions",
        "folder": str(settings.folder),
        "protocol": settings.protocol or "none",
        "database": f"{len(query_set.database):,} images in {settings.database}",
        "queries": f"{len(query_set.queries):,} images in {settings.queries}",
        **unreadable,
        **_themselves_in_words(query_set, found.predictions),
        **descriptors.facts,
        **found.facts,
    }
    results = Retrieved(
        query_set.database,
        query_set.queries,
        found.predictions,
        positives_by_rule(
            query_set, settings.positive_radius_m, settings.radii_m, angle_deg=settings.positive_angle_deg
        ),
        conditions,
        found.distances,
    )
    recalls: Mapping[int, float] = {}
    if settings.no_labels:
        write_found(results, facts, settings.out)
    else:
        missed = settings.without_positive == "missed"
        recalls = write_results(results, facts, settings.out, ns=settings.recall_ns, without_positive_missed=missed)
    return Evaluation(facts, recalls, descriptors.database.width, found.exact_ms)


def _query_set(settings: EvaluateSettings) -> QuerySet:
    names = (settings.folder, settings.database, settings.queries)
    if settings.no_labels:
        return load_unlabeled(*names)
    return load_query_set(*names, radius_m=settings.positive_radius_m, angle_deg=settings.positive_angle_deg)


def _unreadable_in_words(descriptors: QuerySetFeatures) -> dict[str, str]:
    """Return a fact for the report if images cannot be read."""
    sides = {"database images, never found": descriptors.database, "queries, skipped": descriptors.queries}
    said = [f"{len(rows.missing):,} of {rows.num_rows:,} {what}" for what, rows in sides.items() if len(rows.missing)]
    return {"unreadable": "; ".join(said)} if said else {}


def _themselves_in_words(query_set: QuerySet, predictions: np.ndarray) -> dict[str, str]:
    """Return a fact and log a warning if queries are database images, whose recall says little about new photos."""
    count = int(find_themselves(query_set.queries, query_set.database, predictions[:, :1]).sum())
    if not count:
        return {}
    said = f"{count:,} of {len(predictions):,} queries are images of the database and find themselves"
    LOGGER.warning("%s: what follows says little of new photos", said)
    return {"queries in the database": said}


@dataclass(frozen=True)
class _Found:
    """Results of a search."""

    predictions: np.ndarray
    """Database rows of each query, best first, int64 (Q, K); -1 where there is none."""
    distances: np.ndarray | None
    """Descriptor distances, (Q, K); None if there is ground truth."""
    exact_ms: float
    """Duration of an exact search in milliseconds per query."""
    facts: Mapping[str, str]
    """Facts for the report about a compressed index: recall lost, size and speed."""


def _search(
    settings: EvaluateSettings,
    positives: list[np.ndarray] | None,
    descriptors: QuerySetFeatures,
    panoramas: np.ndarray | None,
) -> _Found:
    database, count = descriptors.database, max(settings.recall_ns)
    depth = count if panoramas is None else count * _PARTS_OF_A_PANORAMA
    queries = np.concatenate(list(descriptors.queries.parts()))
    wanted = queries.reshape(-1, database.width)

    def predictions(neighbors: Neighbors) -> np.ndarray:
        rows = database.all_rows(_of_queries(neighbors, len(queries), settings.query_preprocessing, depth))
        return rows if panoramas is None else first_of_each_panorama(rows, panoramas, count)

    def found_with(neighbors: Neighbors, facts: Mapping[str, str]) -> _Found:
        rows = predictions(neighbors)
        distances = distances_of(rows, queries, database.complete) if positives is None else None
        return _Found(rows, distances, exact_ms, facts)

    start = time.perf_counter()
    exact = nearest_neighbors(database.parts(), wanted, depth)
    exact_ms = 1e3 * (time.perf_counter() - start) / len(queries)
    if settings.index is None:
        return found_with(exact, {})
    index = open_index(database, settings.index, probes=settings.probes, folder=descriptors.index_folder)
    start = time.perf_counter()
    found = index_neighbors(index, wanted, depth)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(queries)
    both = [predictions(each) for each in (found, exact)]
    if positives is None:
        lost = f"{100 * (both[0][:, 0] == both[1][:, 0]).mean():.1f} % of first predictions are those of exact search"
    else:
        counted = [row for row, right in enumerate(positives) if settings.without_positive == "missed" or len(right)]
        right = [positives[row] for row in counted]
        # Without any query to count, the results report it.
        won = np.subtract(*(recall_at(each[counted], right, (1,))[0] for each in both)) if counted else 0.0
        lost = f"R@1 {won:+.1f} against exact search"
    megabytes = index_path(database, settings.index, descriptors.index_folder).stat().st_size / 1e6
    facts = {
        "index": f"{settings.index}: {lost}",
        "index size": f"{megabytes:,.1f} MB, of {database.num_bytes / 1e6:,.1f} MB of descriptors",
        "index search": f"{milliseconds:.2f} ms a query, exactly {exact_ms:.2f} ms",
    }
    return found_with(found, facts)


def _of_queries(neighbors: Neighbors, num_queries: int, preprocessing: str, count: int) -> np.ndarray:
    """Return predictions int64 (Q, K), merging those of several crops of a query."""
    rows = neighbors.rows.reshape(num_queries, -1, neighbors.rows.shape[1])
    if rows.shape[1] == 1:
        return rows[:, 0]
    merge = votes_of_crops if preprocessing == "maj_voting" else nearest_of_crops
    return merge(rows, np.square(neighbors.distances).reshape(rows.shape), count)


def _conditions(queries: Catalogue, protocol: Protocol | None) -> np.ndarray:
    """Return the condition of each query as recorded with it, else by the protocol, else ""."""
    found = queries.conditions
    if found is None and protocol is not None:
        found = protocol.conditions_of(queries.table["path"].to_pylist())
    return np.full(len(queries), "") if found is None else found
