"""Evaluation: what an encoder finds for query images in a database, and how much of it is right."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from progeo.config.evaluation import EvaluateSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.crops import nearest_of_crops, votes_of_crops
from progeo.evaluation.measures import first_of_each_panorama
from progeo.evaluation.protocols import load_protocol
from progeo.evaluation.recall import recall_at
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import Neighbours, index_neighbours, index_path, nearest_neighbours, open_index
from progeo.stages.query_set_descriptors import QuerySetDescriptors, descriptors_of, load_described
from progeo.stages.query_sets import conditions_of, load_query_set, positives_by_rule
from progeo.stages.results import write_results

_PARTS_OF_A_PANORAMA = 12


@dataclass(frozen=True)
class Evaluation:
    """What came out for an encoder."""

    facts: Mapping[str, str]
    """What was evaluated on what."""
    recalls: Mapping[int, float]
    """In percent, by N."""
    descriptor_dim: int
    search_ms: float
    """Of an exact search, for each query."""


def evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate an encoder and write recalls, predictions and a report; returns their folder."""
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    evaluate_source(load_described(settings.encoder), settings, accelerator)
    return settings.out


def evaluate_source(
    source: nn.Module | Path, settings: EvaluateSettings, accelerator: Accelerator
) -> Evaluation | None:
    """Do the same with what `load_described` gave for `settings.encoder`; the main process gets what came out."""
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
    radius_m, angle_deg = settings.positive_radius_m, settings.positive_angle_deg
    query_set = load_query_set(
        settings.folder, settings.database, settings.queries, radius_m=radius_m, angle_deg=angle_deg
    )
    if protocol is not None:
        protocol.check(settings.folder, len(query_set.database), len(query_set.queries))
        LOGGER.info("%s; comparable with %s", protocol.what, protocol.comparable)
    conditions = conditions_of(query_set.queries, protocol)
    panoramas = query_set.database.panoramas if settings.one_per_panorama else None
    descriptors = descriptors_of(source, query_set, settings, accelerator)
    if not accelerator.is_main_process:
        return None
    found = _search(settings, query_set.positives, descriptors, panoramas)
    facts = {
        "encoder": settings.encoder,
        "descriptor": f"{descriptors.database.width} dimensions",
        "folder": str(settings.folder),
        "protocol": settings.protocol or "none",
        "database": f"{len(query_set.database):,} images in {settings.database}",
        "queries": f"{len(query_set.queries):,} images in {settings.queries}",
        **descriptors.facts,
        **found.facts,
    }
    recalls = write_results(
        Retrieved(
            query_set.database,
            query_set.queries,
            found.predictions,
            positives_by_rule(query_set, radius_m, settings.radii_m, angle_deg=angle_deg),
            conditions,
        ),
        facts,
        settings.out,
        ns=settings.recall_ns,
        without_positive_missed=settings.without_positive == "missed",
    )
    return Evaluation(facts, recalls, descriptors.database.width, found.exact_ms)


@dataclass(frozen=True)
class _Found:
    """What a search gave."""

    predictions: np.ndarray
    """Database rows of each query, best first, int64 (Q, K); -1 where there is none."""
    exact_ms: float
    """Of an exact search, for each query."""
    facts: Mapping[str, str]
    """Of a compressed index, what it loses and saves."""


def _search(
    settings: EvaluateSettings,
    positives: list[np.ndarray],
    descriptors: QuerySetDescriptors,
    panoramas: np.ndarray | None,
) -> _Found:
    database, count = descriptors.database, max(settings.recall_ns)
    depth = count if panoramas is None else count * _PARTS_OF_A_PANORAMA
    queries = np.concatenate(list(descriptors.queries.parts()))
    wanted = queries.reshape(-1, database.width)

    def predictions(neighbours: Neighbours) -> np.ndarray:
        rows = _of_queries(neighbours, len(queries), settings.query_preprocessing, depth)
        return rows if panoramas is None else first_of_each_panorama(rows, panoramas, count)

    start = time.perf_counter()
    exact = nearest_neighbours(database.parts(), wanted, depth)
    exact_ms = 1e3 * (time.perf_counter() - start) / len(queries)
    if settings.index is None:
        return _Found(predictions(exact), exact_ms, {})
    index = open_index(database, settings.index, probes=settings.probes)
    start = time.perf_counter()
    found = index_neighbours(index, wanted, depth)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(queries)
    counted = [row for row, right in enumerate(positives) if settings.without_positive == "missed" or len(right)]
    won = 0.0
    if counted:  # else the results say that there is nothing to count
        right = [positives[row] for row in counted]
        won = np.subtract(*(recall_at(predictions(each)[counted], right, (1,))[0] for each in (found, exact)))
    megabytes = index_path(database, settings.index).stat().st_size / 1e6
    facts = {
        "index": f"{settings.index}: R@1 {won:+.1f} against exact search",
        "index size": f"{megabytes:,.1f} MB, of {database.num_bytes / 1e6:,.1f} MB of descriptors",
        "index search": f"{milliseconds:.2f} ms a query, exactly {exact_ms:.2f} ms",
    }
    return _Found(predictions(found), exact_ms, facts)


def _of_queries(neighbours: Neighbours, num_queries: int, preprocessing: str, count: int) -> np.ndarray:
    """Predictions int64 (Q, K) of queries that searched once or with each of their crops."""
    rows = neighbours.rows.reshape(num_queries, -1, neighbours.rows.shape[1])
    if rows.shape[1] == 1:
        return rows[:, 0]
    merge = votes_of_crops if preprocessing == "maj_voting" else nearest_of_crops
    return merge(rows, np.square(neighbours.distances).reshape(rows.shape), count)
