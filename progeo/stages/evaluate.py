"""Evaluation: recall of an encoder on a folder of database and query images."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from progeo.config import EvaluateSettings
from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import build_loader, ordered_batches, read_batches
from progeo.engine.accelerator import gathered, share_of, start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.descriptors import extract_descriptors
from progeo.evaluation.protocols import load_protocol
from progeo.evaluation.recall import recall_at, right_predictions
from progeo.evaluation.report import write_report
from progeo.evaluation.search import nearest_neighbours
from progeo.export.weights import load_encoder
from progeo.files import replacing, write_json
from progeo.models.clip import as_height_width
from progeo.models.preprocessing import resize_image
from progeo.places.catalogue import Catalogue, positions_m, read_catalogue
from progeo.places.positives import positives_within


@dataclass(frozen=True)
class TestSet:
    """Queries to be found in a database."""

    database: Catalogue
    queries: Catalogue
    positives: list[np.ndarray]
    """Right database rows of each query."""


@dataclass(frozen=True)
class Result:
    """What an encoder reached on a test set."""

    recalls: dict[int, float]
    """Recall@N in percent, by N."""
    predictions: np.ndarray
    """Database rows of each query, best first, int64 (Q, K)."""


def evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate an encoder and write recalls.json, predictions.csv and report.html; returns their folder."""
    start_log(None)
    protocol = None if settings.protocol is None else load_protocol(settings.protocol)
    if protocol is not None:
        names = ("database", "queries", "positive_radius_m")
        settings = replace(settings, **{name: getattr(protocol, name) for name in names})
    accelerator = start_accelerator(settings.mixed_precision)
    encoder = load_encoder(settings.encoder).to(accelerator.device)
    test_set = load_test_set(settings.folder, settings.database, settings.queries, radius_m=settings.positive_radius_m)
    if protocol is not None:
        protocol.check(settings.folder, len(test_set.database), len(test_set.queries))
        LOGGER.info("%s; comparable with %s", protocol.what, protocol.comparable)
    image_size = as_height_width(settings.image_size) if settings.image_size is not None else encoder.image_size
    result = evaluate_encoder(
        encoder,
        test_set,
        accelerator,
        ns=settings.recall_ns,
        image_size=image_size,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    conditions = test_set.queries.conditions
    if protocol is not None and protocol.conditions:
        conditions = protocol.conditions_of(test_set.queries.table["path"].to_pylist())
    by_condition = {} if conditions is None else recalls_by_condition(result, test_set.positives, conditions)
    _write_results(settings, test_set, result, by_condition, image_size)
    LOGGER.info("%s: %s", settings.folder, recalls_in_words(result.recalls))
    for condition, recalls in by_condition.items():
        LOGGER.info("  %s: %s", condition, recalls_in_words(recalls))
    LOGGER.info("report: %s", settings.out / "report.html")
    return settings.out


def load_test_set(folder: Path, database: str, queries: str, *, radius_m: float) -> TestSet:
    """Read both catalogues and find the positives of each query."""
    database_images, query_images = read_catalogue(folder / database), read_catalogue(folder / queries)
    positives = query_images.positives or positives_within(*positions_m(database_images, query_images), radius_m)
    missing = sum(not len(rows) for rows in positives)
    if missing:
        LOGGER.warning("%d of %d queries have no database image within %g m", missing, len(positives), radius_m)
    return TestSet(database_images, query_images, positives)


def evaluate_encoder(
    encoder: nn.Module,
    test_set: TestSet,
    accelerator: Accelerator,
    *,
    ns: tuple[int, ...],
    image_size: tuple[int, int],
    batch_size: int,
    num_workers: int,
) -> Result:
    """Describe both sides, each process its share, search, and take recall@N."""

    def described(catalogue: Catalogue, description: str) -> np.ndarray:
        images = CatalogueImages(catalogue, partial(resize_image, size=image_size))
        mine = share_of(len(images), accelerator)
        loader = build_loader(images, ordered_batches(mine, batch_size), num_workers=num_workers)
        descriptors = extract_descriptors(
            lambda batch: encoder(encoder.normalise(batch)),
            read_batches(loader),
            accelerator,
            num_images=len(mine),
            dim=encoder.descriptor_dim,
            description=description,
        )
        return gathered(descriptors, len(images), accelerator)

    was_training = encoder.training
    encoder.eval()
    database, queries = described(test_set.database, "database"), described(test_set.queries, "queries")
    encoder.train(was_training)
    predictions = nearest_neighbours(database, queries, max(ns)).rows
    recalls = recall_at(predictions, test_set.positives, ns)
    return Result(dict(zip(ns, recalls.tolist(), strict=True)), predictions)


def recalls_by_condition(
    result: Result, positives: list[np.ndarray], conditions: np.ndarray
) -> dict[str, dict[int, float]]:
    """Recall@N in percent of the queries of each condition, by its name and how many they are."""
    recalls = {}
    for condition in dict.fromkeys(conditions.tolist()):
        rows = np.flatnonzero(conditions == condition)
        values = recall_at(result.predictions[rows], [positives[row] for row in rows], tuple(result.recalls))
        name = f"{condition or 'of no condition'} ({len(rows)} queries)"
        recalls[name] = dict(zip(result.recalls, values.tolist(), strict=True))
    return recalls


def recalls_in_words(recalls: dict[int, float]) -> str:
    """Recalls as `R@1 81.2, R@5 93.4`."""
    return ", ".join(f"R@{n} {recall:.1f}" for n, recall in recalls.items())


def _named(recalls: Mapping[int, float]) -> dict[str, float]:
    return {f"R@{n}": recall for n, recall in recalls.items()}


def _write_results(
    settings: EvaluateSettings,
    test_set: TestSet,
    result: Result,
    by_condition: Mapping[str, dict[int, float]],
    image_size: tuple[int, int],
) -> None:
    database, queries = test_set.database, test_set.queries
    database_m, queries_m = positions_m(database, queries)
    distances_m = np.linalg.norm(database_m[result.predictions] - queries_m[:, None], axis=2)
    right = right_predictions(result.predictions, test_set.positives)
    given = queries.positives is not None
    settings.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "encoder": settings.encoder,
        "folder": str(settings.folder),
        "protocol": settings.protocol or "none",
        "database": f"{len(database)} images in {settings.database}",
        "queries": f"{len(queries)} images in {settings.queries}",
        "image size": f"{image_size[0]} x {image_size[1]} pixels",
        "right": "as given with the queries" if given else f"within {settings.positive_radius_m:g} m",
    }
    write_json(
        settings.out / "recalls.json",
        {
            **facts,
            "recalls": _named(result.recalls),
            "recalls_by_condition": {name: _named(recalls) for name, recalls in by_condition.items()},
        },
    )
    _write_predictions(settings.out / "predictions.csv", test_set, result.predictions, right, distances_m)
    write_report(
        settings.out / "report.html",
        title=f"{settings.encoder} on {settings.folder}",
        facts=facts | {name: recalls_in_words(recalls) for name, recalls in by_condition.items()},
        recalls=result.recalls,
        query_paths=[queries.path(row) for row in range(len(queries))],
        database_paths=[database.path(row) for row in range(len(database))],
        predictions=result.predictions,
        right=right,
        rule="was given with the query" if given else f"lies within {settings.positive_radius_m:g} m of the query",
        distances_m=distances_m,
    )


def _write_predictions(
    path: Path, test_set: TestSet, predictions: np.ndarray, right: np.ndarray, distances_m: np.ndarray
) -> None:
    query_paths, database_paths = test_set.queries.table["path"], test_set.database.table["path"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["query", "rank", "database", "distance_m", "right"])
        for query, found in enumerate(predictions):
            for rank, row in enumerate(found):
                writer.writerow(
                    [
                        query_paths[query],
                        rank + 1,
                        database_paths[int(row)],
                        "" if np.isnan(distances_m[query, rank]) else f"{distances_m[query, rank]:.2f}",
                        int(right[query, rank]),
                    ]
                )
