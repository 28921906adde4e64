"""Descriptors of the database and the queries: extracted with an encoder, or read from another program's files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.config.evaluation import BenchmarkSettings
from progeo.datasets.query_sets import QuerySet
from progeo.export.weights import load_encoder
from progeo.features.descriptors import described, descriptor_extractor
from progeo.features.store import ShardedRows
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue

_ROWS_AT_ONCE = 2**16


@dataclass(frozen=True)
class QuerySetFeatures:
    """Descriptors of database and queries, excluding images that cannot be read."""

    database: ShardedRows
    """Database descriptors, (N, D)."""
    queries: ShardedRows
    """Query descriptors, (Q, D), or (Q, 5 D) for crops that are searched separately."""
    facts: Mapping[str, str]
    """Facts for the report about how descriptors were extracted."""
    index_folder: Path
    """Folder for an index of the database, never the folder of another program."""


def load_descriptor_source(name: str) -> Encoder | Path:
    """Load the encoder of this name, or return the folder of this name if it holds another program's descriptors."""
    folder = Path(name)
    return folder if (folder / "database_descriptors.npy").is_file() else load_encoder(name)


def descriptors_of(
    source: Encoder | Path, query_set: QuerySet, settings: BenchmarkSettings, accelerator: Accelerator
) -> QuerySetFeatures:
    """Extract the descriptors of database and queries, or read those of another program.

    Args:
        source: a result of `load_descriptor_source`.
        query_set: database and queries.
        settings: preprocessing, image size, orientation and cache.
        accelerator: gives the device, the precision and the processes.

    Raises:
        ValueError: the number of descriptors differs from that of images, or database and queries differ in dimension.
    """
    if isinstance(source, Path):
        return _read_descriptors(source, query_set, index_folder=settings.out)
    return _describe(source, query_set, settings, accelerator)


def _describe(
    encoder: Encoder, query_set: QuerySet, settings: BenchmarkSettings, accelerator: Accelerator
) -> QuerySetFeatures:
    sides = {
        "database": (query_set.database, settings.database_preprocessing),
        "queries": (query_set.queries, settings.query_preprocessing),
    }
    rows, facts = [], {}
    for side, (catalogue, preprocessing) in sides.items():
        extractor = descriptor_extractor(
            encoder, preprocessing, settings.image_size, accelerator, orientation=settings.orientation
        )
        rows.append(described(extractor, catalogue, settings, accelerator))
        facts["image size"] = "{} x {} pixels".format(*extractor.image_size)
        facts[f"{side} preprocessing"] = preprocessing
    if settings.orientation == "ignore":
        facts["orientation"] = "as stored, photos are not turned upright"
    return QuerySetFeatures(*rows, facts, index_folder=rows[0].folder)


def _read_descriptors(folder: Path, query_set: QuerySet, *, index_folder: Path) -> QuerySetFeatures:
    rows = [
        _read_rows(folder / f"{side}_descriptors.npy", images)
        for side, images in (("database", query_set.database), ("queries", query_set.queries))
    ]
    if rows[0].width != rows[1].width:
        raise ValueError(
            f"The descriptors in {folder} have {rows[0].width} dimensions of the database, {rows[1].width} of queries."
        )
    return QuerySetFeatures(*rows, {}, index_folder=index_folder)


def _read_rows(path: Path, images: Catalogue) -> ShardedRows:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    values = np.load(path, mmap_mode="r")
    if values.ndim != 2 or len(values) != len(images):
        raise ValueError(
            f"{path} must hold a row for each of the {len(images):,} images of {images.folder}, got {values.shape}."
        )
    for start in range(0, len(values), _ROWS_AT_ONCE):
        if not np.isfinite(values[start : start + _ROWS_AT_ONCE]).all():
            raise ValueError(f"{path} holds numbers that are not finite, in rows {start} and after.")
    return ShardedRows(
        path.parent,
        num_rows=len(values),
        width=values.shape[1],
        shard_size=len(values),
        dtype=values.dtype.name,
        file_name=path.name,
    )
