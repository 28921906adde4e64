"""Evaluation: what an encoder finds for query images in a database, and how much of it is right."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.config.evaluation import EvaluateSettings
from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import build_loader, ordered_batches, read_batches
from progeo.data.shards import ShardedRows
from progeo.engine.accelerator import gathered, share_of, start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.descriptors import extract_descriptors
from progeo.evaluation.measures import first_of_each_panorama
from progeo.evaluation.protocols import Protocol, load_protocol
from progeo.evaluation.recall import recall_at
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import index_neighbours, index_path, nearest_neighbours, open_index
from progeo.export.weights import load_encoder
from progeo.models.clip import as_height_width, weights_digest
from progeo.models.encoder import Encoder, spec_to_json
from progeo.models.preprocessing import resize_image
from progeo.places.catalogue import Catalogue, positions_m, read_catalogue
from progeo.places.positives import positives_within
from progeo.stages.described import Describer, described_once
from progeo.stages.results import write_results

_PARTS_OF_A_PANORAMA = 12


@dataclass(frozen=True)
class TestSet:
    """Queries to be found in a database."""

    database: Catalogue
    queries: Catalogue
    positives: list[np.ndarray]
    """Right database rows of each query."""


def evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate an encoder and write recalls, predictions and a report; returns their folder."""
    start_log(None)
    protocol = None if settings.protocol is None else load_protocol(settings.protocol)
    if protocol is not None:
        names = ("database", "queries", "positive_radius_m", "one_per_panorama")
        settings = replace(settings, **{name: getattr(protocol, name) for name in names})
    accelerator = start_accelerator(settings.mixed_precision)
    encoder = load_encoder(settings.encoder).to(accelerator.device)
    test_set = load_test_set(settings.folder, settings.database, settings.queries, radius_m=settings.positive_radius_m)
    if protocol is not None:
        protocol.check(settings.folder, len(test_set.database), len(test_set.queries))
        LOGGER.info("%s; comparable with %s", protocol.what, protocol.comparable)
    conditions = _conditions(test_set.queries, protocol)
    image_size = as_height_width(settings.image_size) if settings.image_size is not None else encoder.image_size
    panoramas = test_set.database.panoramas if settings.one_per_panorama else None
    count = max(settings.recall_ns)
    describe = partial(
        described_once,
        _describer(encoder, accelerator, settings, image_size),
        accelerator=accelerator,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    database, queries = describe(catalogue=test_set.database).rows, describe(catalogue=test_set.queries).rows
    if accelerator.is_main_process:
        depth = count if panoramas is None else count * _PARTS_OF_A_PANORAMA
        predictions, saved = _search(settings, test_set.positives, database, queries, depth)
        if panoramas is not None:
            predictions = first_of_each_panorama(predictions, panoramas, count)
        facts = {
            "encoder": settings.encoder,
            "descriptor": f"{encoder.descriptor_dim} dimensions",
            "folder": str(settings.folder),
            "protocol": settings.protocol or "none",
            "database": f"{len(test_set.database)} images in {settings.database}",
            "queries": f"{len(test_set.queries)} images in {settings.queries}",
            "image size": f"{image_size[0]} x {image_size[1]} pixels",
            **saved,
        }
        missed = settings.without_positive == "missed"
        found = Retrieved(
            test_set.database,
            test_set.queries,
            predictions,
            _positives(test_set, settings),
            conditions,
        )
        write_results(found, facts, settings.out, ns=settings.recall_ns, without_positive_missed=missed)
    return settings.out


def _describer(
    encoder: nn.Module, accelerator: Accelerator, settings: EvaluateSettings, image_size: tuple[int, int]
) -> Describer:
    @torch.inference_mode()
    def describe(images: Tensor) -> Tensor:
        with accelerator.autocast():
            return encoder(encoder.normalise(images.to(accelerator.device))).float().cpu()

    return Describer(
        describe,
        what="descriptors",
        width=encoder.descriptor_dim,
        dtype=settings.keep_as,
        image_size=image_size,
        depends_on={
            "encoder": spec_to_json(encoder.spec) if isinstance(encoder, Encoder) else settings.encoder,
            "weights": weights_digest(encoder.state_dict()),
        },
        cache=settings.descriptor_cache,
        cache_setting="descriptor_cache",
    )


def _search(
    settings: EvaluateSettings, positives: list[np.ndarray], database: ShardedRows, queries: ShardedRows, count: int
) -> tuple[np.ndarray, dict[str, str]]:
    """Predictions, int64 (Q, count), and of a compressed index what it loses and saves."""
    wanted = np.concatenate(list(queries.parts()))
    start = time.perf_counter()
    exact = nearest_neighbours(database.parts(), wanted, count).rows
    exact_ms = 1e3 * (time.perf_counter() - start) / len(wanted)
    if settings.index is None:
        return exact, {}
    index = open_index(database, settings.index, probes=settings.probes)
    start = time.perf_counter()
    found = index_neighbours(index, wanted, count).rows
    milliseconds = 1e3 * (time.perf_counter() - start) / len(wanted)
    won = recall_at(found, positives, (1,))[0] - recall_at(exact, positives, (1,))[0]
    megabytes = index_path(database, settings.index).stat().st_size / 1e6
    return found, {
        "index": f"{settings.index}: R@1 {won:+.1f} against exact search",
        "index size": f"{megabytes:,.1f} MB, of {database.num_bytes / 1e6:,.1f} MB of descriptors",
        "index search": f"{milliseconds:.2f} ms a query, exactly {exact_ms:.2f} ms",
    }


def load_test_set(folder: Path, database: str, queries: str, *, radius_m: float) -> TestSet:
    """Read both catalogues and find the positives of each query."""
    database_images, query_images = read_catalogue(folder / database), read_catalogue(folder / queries)
    positives = query_images.positives or positives_within(*positions_m(database_images, query_images), radius_m)
    missing = sum(not len(rows) for rows in positives)
    if missing:
        LOGGER.warning("%d of %d queries have no database image within %g m", missing, len(positives), radius_m)
    return TestSet(database_images, query_images, positives)


def retrieve(
    encoder: nn.Module,
    test_set: TestSet,
    accelerator: Accelerator,
    *,
    count: int,
    image_size: tuple[int, int],
    batch_size: int,
    num_workers: int,
) -> np.ndarray:
    """Describe both sides, each process its share, and search: database rows, best first, int64 (Q, count)."""

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
    return nearest_neighbours([database], queries, count).rows


def _positives(test_set: TestSet, settings: EvaluateSettings) -> dict[str, list[np.ndarray]]:
    """Right database rows by every rule, the one that counts most first."""
    if test_set.queries.positives is not None:
        return {"as given": test_set.positives}
    first = settings.positive_radius_m
    places = positions_m(test_set.database, test_set.queries)
    others = {radius: positives_within(*places, radius) for radius in settings.radii_m if radius != first}
    return {f"within {radius:g} m": rows for radius, rows in {first: test_set.positives, **others}.items()}


def _conditions(queries: Catalogue, protocol: Protocol | None) -> np.ndarray:
    """Of each query: as written down with it, or as the protocol tells; "" where neither does."""
    found = queries.conditions
    if found is None and protocol is not None:
        found = protocol.conditions_of(queries.table["path"].to_pylist())
    return np.full(len(queries), "") if found is None else found
