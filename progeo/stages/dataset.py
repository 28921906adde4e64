"""Sets of images before any training: their index, and what cells and groups make of them."""

from pathlib import Path

import numpy as np

from progeo.config import DatasetGroupsSettings, DatasetIndexSettings
from progeo.engine.log import LOGGER, start_log
from progeo.places.catalogue import index_catalogue, read_catalogue
from progeo.places.cells import Partition, build_partition


def index_dataset(settings: DatasetIndexSettings) -> Path:
    """Write the index of a folder of images and return its path."""
    start_log(None)
    file = index_catalogue(settings.folder)
    LOGGER.info("%s: %s images of %s", file, f"{len(read_catalogue(settings.folder)):,}", settings.folder)
    return file


def plan_groups(settings: DatasetGroupsSettings) -> Partition:
    """Say how many classes and images each group has, before any training; returns all of them."""
    start_log(None)
    catalogue = read_catalogue(settings.folder)
    partition = build_partition(catalogue, **{**vars(settings.cells), "num_groups": None})
    sizes = [np.diff(group.offsets) for group in partition.groups]
    used = sizes[: settings.cells.num_groups]
    rows = [("group", "classes", "images", "images of a class: least", "median", "most")]
    for number, size in enumerate(sizes, 1):
        counts = (number, len(size), size.sum(), size.min(), np.median(size), size.max())
        rows.append(tuple(f"{count:,.15g}" for count in counts))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        LOGGER.info("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    LOGGER.info(
        "%s images; %s of them in the %d groups of classes with at least %d, %s in the first %d",
        f"{len(catalogue):,}",
        f"{sum(size.sum() for size in sizes):,}",
        len(sizes),
        settings.cells.min_images_per_class,
        f"{sum(size.sum() for size in used):,}",
        len(used),
    )
    return partition
