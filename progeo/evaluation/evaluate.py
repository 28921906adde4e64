"""Evaluate an encoder: retrieve database images for queries, measure recall and write the results."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.datasets.query_sets import positives_by_criterion
from progeo.engine.log import LOGGER
from progeo.evaluation.benchmark import load_benchmark
from progeo.evaluation.copies import find_copies
from progeo.evaluation.descriptors import read_descriptors
from progeo.evaluation.options import BenchmarkOptions
from progeo.evaluation.predict import predict
from progeo.evaluation.results import write_results, write_unlabeled_results
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import distances_of
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.extract import FeatureExtractor
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.models.encoder import Encoder


@dataclass(frozen=True)
class Evaluation:
    """Results of one encoder."""

    recalls: Mapping[int, float]
    """Recall in percent, by N; empty without labels."""
    descriptor_dim: int
    search_ms: float
    """Duration of an exact search in milliseconds per query."""


def evaluate_encoder(
    encoder: Encoder | Path,
    folder: Path,
    *,
    name: str,
    out: Path,
    accelerator: Accelerator,
    options: BenchmarkOptions,
    images: ImageOptions,
    work: WorkOptions,
    cache: CacheOptions,
    faiss: str | None = None,
    probes: int = 16,
    no_labels: bool = False,
) -> Evaluation | None:
    """Evaluate an encoder and write its recalls, predictions and a report; only the main process gets the result.

    Args:
        encoder: the encoder, or a folder with another program's `database_descriptors.npy` and
            `queries_descriptors.npy`.
        folder: folder that holds the database and the queries.
        name: name of the encoder in the results.
        faiss: factory string of a compressed index to evaluate, see `open_index`; None searches exactly.
        probes: number of inverted lists of an IVF index that a search visits.
        no_labels: positions of the queries are unknown; write predictions and a report, but no recalls.

    Raises:
        ValueError: the options contradict each other or the protocol, or images or descriptors cannot be used.
        FileNotFoundError: a folder or file does not exist.
    """
    benchmark = load_benchmark(folder, options, no_labels=no_labels)
    options, query_set = benchmark.options, benchmark.query_set
    if isinstance(encoder, Path):
        database, queries = read_descriptors(encoder, query_set)
        extraction: Mapping[str, str] = {}
    else:
        of_database = descriptor_extractor(encoder, images, accelerator)
        of_queries = descriptor_extractor(encoder, images, accelerator, preprocessing=options.query_preprocessing)
        database = extract_descriptors(of_database, query_set.database, accelerator, work=work, cache=cache)
        queries = extract_descriptors(of_queries, query_set.queries, accelerator, work=work, cache=cache)
        extraction = _extraction(of_database, of_queries)
    if not accelerator.is_main_process:
        return None
    benchmark = benchmark.without_queries(queries.missing)
    query_set, vectors = benchmark.query_set, np.concatenate(list(queries.parts()))
    index_folder = out if isinstance(encoder, Path) else None  # write nothing into the folder of another program
    found = predict(database, vectors, benchmark, faiss=faiss, probes=probes, index_folder=index_folder)
    positives = positives_by_criterion(
        query_set, options.positive_radius_m, options.radii_m, angle_deg=options.positive_angle_deg
    )
    distances = distances_of(found.rows, vectors, database.complete) if no_labels else None
    results = Retrieved(query_set.database, query_set.queries, found.rows, positives, benchmark.conditions, distances)
    facts = {
        "encoder": name,
        "descriptor": f"{database.width} dimensions",
        "folder": str(folder),
        "protocol": options.protocol or "none",
        "database": f"{len(query_set.database):,} images in {options.database}",
        "queries": f"{len(query_set.queries):,} images in {options.queries}",
        **_unreadable(database, queries),
        **_copies(results),
        **extraction,
        **found.index_facts,
    }
    recalls: Mapping[int, float] = {}
    if no_labels:
        write_unlabeled_results(results, facts, out)
    else:
        is_missed = options.without_positive == "missed"
        recalls = write_results(results, facts, out, ns=options.recall_ns, without_positive_missed=is_missed)
    return Evaluation(recalls, database.width, found.exact_ms)


def _extraction(database: FeatureExtractor, queries: FeatureExtractor) -> dict[str, str]:
    """Return facts for the report about how descriptors were extracted."""
    facts = {
        "image size": "{} x {} pixels".format(*database.image_size),
        "database preprocessing": database.preprocessing,
        "queries preprocessing": queries.preprocessing,
    }
    if database.orientation == "ignore":
        facts["orientation"] = "as stored, EXIF orientation ignored"
    return facts


def _unreadable(database: ShardedRows, queries: ShardedRows) -> dict[str, str]:
    """Return a fact for the report if images cannot be read."""
    sides = {"database images, never retrieved": database, "queries, skipped": queries}
    texts = [f"{len(rows.missing):,} of {rows.num_rows:,} {what}" for what, rows in sides.items() if len(rows.missing)]
    return {"unreadable": "; ".join(texts)} if texts else {}


def _copies(results: Retrieved) -> dict[str, str]:
    """Return a fact and log a warning if queries are database images, whose recall says little about new photos."""
    count = int(find_copies(results.queries, results.database, results.predictions[:, :1]).sum())
    if not count:
        return {}
    text = f"{count:,} of {len(results.queries):,} queries are images of the database and retrieve themselves"
    LOGGER.warning("%s: these recalls say little about new photos", text)
    return {"queries in the database": text}
