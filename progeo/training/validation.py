"""Validation of an encoder during training: extract descriptors in memory and search them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator

from progeo.data.options import DataOptions
from progeo.datasets.query_sets import QuerySet, load_query_set
from progeo.engine.accelerator import gathered, share_of
from progeo.evaluation.recall import recall_at
from progeo.evaluation.search import nearest_neighbors
from progeo.features.batches import extract_rows
from progeo.features.descriptors import descriptor_extractor
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue
from progeo.training.options import ValidationOptions
from progeo.training.task import Measures

_RECALL_NS = (1, 5, 10, 20)


class Validation(ABC):
    """What an encoder in training is measured by. A row of `VALIDATIONS`; its arguments are those of `Retrieval`."""

    catalogues: Sequence[Catalogue]
    """The images that it is measured on."""

    @abstractmethod
    def measure(self, encoder: Encoder, accelerator: Accelerator) -> Measures:
        """Measure an encoder."""

    @abstractmethod
    def __str__(self) -> str:
        """Say what it is measured on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume; the same encoder gets the same values without any."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Retrieval(Validation):
    """Retrieval recall: the share of queries with a positive among their nearest database images.

    Args:
        options: the images and what counts as a positive.
        data: how images are read.

    Raises:
        ValueError: see `load_query_set`.
    """

    def __init__(self, options: ValidationOptions, data: DataOptions) -> None:
        self.preprocessing, self.data = options.preprocessing, data
        self.query_set = load_query_set(
            options.folder,
            options.database,
            options.queries,
            radius_m=options.positive_radius_m,
            angle_deg=options.positive_angle_deg,
        )
        self.catalogues = (self.query_set.database, self.query_set.queries)

    def measure(self, encoder: Encoder, accelerator: Accelerator) -> Measures:
        """Compute recall@N in percent; R@1 is the primary measure."""
        predictions = retrieve(
            encoder,
            self.query_set,
            accelerator,
            count=max(_RECALL_NS),
            preprocessing=self.preprocessing,
            data=self.data,
        )
        assert self.query_set.positives is not None  # `load_query_set` finds them
        recalls = recall_at(predictions, self.query_set.positives, _RECALL_NS).tolist()
        return Measures({f"R@{n}": recall for n, recall in zip(_RECALL_NS, recalls, strict=True)}, primary="R@1")

    def __str__(self) -> str:
        return f"{len(self.query_set.queries):,} queries, {len(self.query_set.database):,} database images"


VALIDATIONS: dict[str, Callable[[ValidationOptions, DataOptions], Validation]] = {"retrieval": Retrieval}
"""`validation.kind` -> validation."""


def build_validation(options: ValidationOptions, data: DataOptions) -> Validation:
    """Build the validation that the options name.

    Raises:
        ValueError: there is none of that kind, or its images cannot be used.
    """
    if options.kind not in VALIDATIONS:
        raise ValueError(f"`validation.kind` must be one of {', '.join(VALIDATIONS)}, got {options.kind!r}.")
    return VALIDATIONS[options.kind](options, data)


def retrieve(
    encoder: Encoder,
    query_set: QuerySet,
    accelerator: Accelerator,
    *,
    count: int,
    preprocessing: Preprocessing,
    data: DataOptions,
) -> np.ndarray:
    """Extract all descriptors, shared among processes, and search: database rows, best first, int64 (Q, count).

    Raises:
        ValueError: an image cannot be read; the message names it.
    """
    images = ImageOptions(database_preprocessing=preprocessing, orientation=data.orientation)
    extractor = descriptor_extractor(encoder, images, accelerator)

    was_training = encoder.training
    encoder.eval()
    database, queries = (
        _descriptors(extractor, catalogue, accelerator, data=data, what=what)
        for catalogue, what in ((query_set.database, "database"), (query_set.queries, "queries"))
    )
    encoder.train(was_training)
    return nearest_neighbors([database], queries, count).rows


def _descriptors(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    data: DataOptions,
    what: str,
) -> np.ndarray:
    """Extract descriptors of all images, float32 (N, D), independent of batching, as `extract_features` does."""
    mine = share_of(len(catalogue), accelerator)
    descriptors, unreadable = extract_rows(
        extractor.extract,
        extractor.images(catalogue),
        mine,
        extractor.batches(catalogue, mine, data.eval_batch_size),
        width=extractor.width,
        num_workers=data.num_workers,
        what=what,
        hidden=not accelerator.is_main_process,
        filled_to=extractor.full_batch(catalogue, data.eval_batch_size),
    )
    for reason in unreadable.values():
        raise ValueError(reason)
    return gathered(descriptors, len(catalogue), accelerator)
