"""Validation of an encoder during training: extract descriptors in memory and search them."""

import numpy as np
from accelerate import Accelerator

from progeo.datasets.query_sets import QuerySet
from progeo.engine.accelerator import gathered, share_of
from progeo.evaluation.search import nearest_neighbors
from progeo.features.batches import extract_rows
from progeo.features.descriptors import descriptor_extractor
from progeo.features.extract import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.image_files import Orientation
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue


def retrieve(
    encoder: Encoder,
    query_set: QuerySet,
    accelerator: Accelerator,
    *,
    count: int,
    preprocessing: Preprocessing,
    batch_size: int,
    num_workers: int,
    orientation: Orientation = "exif",
) -> np.ndarray:
    """Extract all descriptors, shared among processes, and search: database rows, best first, int64 (Q, count).

    Raises:
        ValueError: an image cannot be read; the message names it.
    """
    images = ImageOptions(database_preprocessing=preprocessing, orientation=orientation)
    extractor = descriptor_extractor(encoder, images, accelerator)

    def described(catalogue: Catalogue, what: str) -> np.ndarray:
        return _described(extractor, catalogue, accelerator, batch_size=batch_size, num_workers=num_workers, what=what)

    was_training = encoder.training
    encoder.eval()
    database, queries = described(query_set.database, "database"), described(query_set.queries, "queries")
    encoder.train(was_training)
    return nearest_neighbors([database], queries, count).rows


def _described(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
    what: str,
) -> np.ndarray:
    """Extract descriptors of all images, float32 (N, D), independent of batching, as `extract_features` does."""
    mine = share_of(len(catalogue), accelerator)
    descriptors, unreadable = extract_rows(
        extractor.extract,
        extractor.images(catalogue),
        mine,
        extractor.batches(catalogue, mine, batch_size),
        width=extractor.width,
        num_workers=num_workers,
        what=what,
        hidden=not accelerator.is_main_process,
        filled_to=extractor.full_batch(catalogue, batch_size),
    )
    for reason in unreadable.values():
        raise ValueError(reason)
    return gathered(descriptors, len(catalogue), accelerator)
