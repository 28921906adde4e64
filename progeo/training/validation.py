"""Validation of an encoder during training: extract descriptors in memory and search them."""

from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from progeo.data.options import DataOptions
from progeo.datasets.query_sets import QuerySet
from progeo.engine.accelerator import gathered, share_of
from progeo.evaluation.recall import recall_at
from progeo.evaluation.search import nearest_neighbors
from progeo.features.batches import extract_rows
from progeo.features.descriptors import descriptor_extractor
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.image_files import Orientation
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue

_RECALL_NS = (1, 5, 10, 20)


@dataclass(frozen=True)
class Validation:
    """Retrieval recall of an encoder on validation images."""

    query_set: QuerySet
    preprocessing: Preprocessing
    data: DataOptions
    """How images are read."""

    def recalls(self, encoder: Encoder, accelerator: Accelerator) -> dict[int, float]:
        """Compute recall@N in percent, by N."""
        predictions = retrieve(
            encoder,
            self.query_set,
            accelerator,
            count=max(_RECALL_NS),
            preprocessing=self.preprocessing,
            batch_size=self.data.eval_batch_size,
            num_workers=self.data.num_workers,
            orientation=self.data.orientation,
        )
        assert self.query_set.positives is not None  # `load_query_set` finds them
        return dict(zip(_RECALL_NS, recall_at(predictions, self.query_set.positives, _RECALL_NS).tolist(), strict=True))


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

    was_training = encoder.training
    encoder.eval()
    database, queries = (
        _descriptors(extractor, catalogue, accelerator, batch_size=batch_size, num_workers=num_workers, what=what)
        for catalogue, what in ((query_set.database, "database"), (query_set.queries, "queries"))
    )
    encoder.train(was_training)
    return nearest_neighbors([database], queries, count).rows


def _descriptors(
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
