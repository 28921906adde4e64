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
from progeo.stages.results import write_results
from progeo.stages.test_descriptors import TestDescriptors, descriptors_of, load_described
from progeo.stages.test_sets import conditions_of, load_test_set, positives_by_rule

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
        names = ("database", "queries", "positive_radius_m", "one_per_panorama")
        settings = replace(settings, **{name: getattr(protocol, name) for name in names})
    test_set = load_test_set(settings.folder, settings.database, settings.queries, radius_m=settings.positive_radius_m)
    if protocol is not None:
        protocol.check(settings.folder, len(test_set.database), len(test_set.queries))
        LOGGER.info("%s; comparable with %s", protocol.what, protocol.comparable)
    conditions = conditions_of(test_set.queries, protocol)
    panoramas = test_set.database.panoramas if settings.one_per_panorama else None
    descriptors = descriptors_of(source, test_set, settings, accelerator)
    if not accelerator.is_main_process:
        return None
    count = max(settings.recall_ns)
    depth = count if panoramas is None else count * _PARTS_OF_A_PANORAMA
    found = _search(settings, test_set.positives, descriptors, depth)
    predictions = found.predictions
    if panoramas is not None:
        predictions = first_of_each_panorama(predictions, panoramas, count)
    facts = {
        "encoder": settings.encoder,
        "descriptor": f"{descriptors.database.width} dimensions",
        "folder": str(settings.folder),
        "protocol": settings.protocol or "none",
        "database": f"{len(test_set.database):,} images in {settings.database}",
        "queries": f"{len(test_set.queries):,} images in {settings.queries}",
        **descriptors.facts,
        **found.facts,
    }
    recalls = write_results(
        Retrieved(
            test_set.database,
            test_set.queries,
            predictions,
            positives_by_rule(test_set, settings.positive_radius_m, settings.radii_m),
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
    settings: EvaluateSettings, positives: list[np.ndarray], descriptors: TestDescriptors, count: int
) -> _Found:
    database = descriptors.database
    queries = np.concatenate(list(descriptors.queries.parts()))
    wanted = queries.reshape(-1, database.width)

    start = time.perf_counter()
    exact = nearest_neighbours(database.parts(), wanted, count)
    exact_ms = 1e3 * (time.perf_counter() - start) / len(queries)
    exact_rows = _of_queries(exact, len(queries), settings.query_preprocessing, count)
    if settings.index is None:
        return _Found(exact_rows, exact_ms, {})
    index = open_index(database, settings.index, probes=settings.probes)
    start = time.perf_counter()
    found = index_neighbours(index, wanted, count)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(queries)
    rows = _of_queries(found, len(queries), settings.query_preprocessing, count)
    won = recall_at(rows, positives, (1,))[0] - recall_at(exact_rows, positives, (1,))[0]
    megabytes = index_path(database, settings.index).stat().st_size / 1e6
    facts = {
        "index": f"{settings.index}: R@1 {won:+.1f} against exact search",
        "index size": f"{megabytes:,.1f} MB, of {database.num_bytes / 1e6:,.1f} MB of descriptors",
        "index search": f"{milliseconds:.2f} ms a query, exactly {exact_ms:.2f} ms",
    }
    return _Found(rows, exact_ms, facts)


def _of_queries(neighbours: Neighbours, num_queries: int, preprocessing: str, count: int) -> np.ndarray:
    """Predictions int64 (Q, K) of queries that searched once or with each of their crops."""
    rows = neighbours.rows.reshape(num_queries, -1, neighbours.rows.shape[1])
    if rows.shape[1] == 1:
        return rows[:, 0]
    merge = votes_of_crops if preprocessing == "maj_voting" else nearest_of_crops
    return merge(rows, np.square(neighbours.distances).reshape(rows.shape), count)
