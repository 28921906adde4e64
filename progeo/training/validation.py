"""Validation of an encoder during training: extract descriptors in memory and search them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator

from progeo.data.options import DataOptions
from progeo.datasets.query_sets import QuerySet, load_query_set
from progeo.engine.accelerator import gathered, share_of
from progeo.engine.log import LOGGER
from progeo.evaluation.classification import lie_in_classes, localization_recall, rank_classes
from progeo.evaluation.recall import recall_at
from progeo.evaluation.search import nearest_neighbors
from progeo.features.batches import extract_rows
from progeo.features.descriptors import descriptor_extractor
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.models.classifier import Classifier
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.geographic import positions_m
from progeo.training.options import TrainerOptions, ValidationOptions
from progeo.training.task import Measures

_RECALL_NS = (1, 5, 10, 20)


class Validation(ABC):
    """What an encoder in training is measured by. A row of `VALIDATIONS`.

    Args:
        options: the images and what counts as a positive.
        data: how images are read.

    Raises:
        ValueError: the images cannot be used.
    """

    catalogues: Sequence[Catalogue] = ()
    """The images that it is measured on."""
    needs_classifier = False
    """Whether it needs the vectors that a loss term learns for the classes."""
    has_measures = True
    """Whether it measures anything, so that an epoch can be the best."""

    def __init__(self, options: ValidationOptions, data: DataOptions) -> None:
        self.options, self.data = options, data

    @abstractmethod
    def measure(self, encoder: Encoder, accelerator: Accelerator, *, classifier: Classifier | None) -> Measures | None:
        """Measure an encoder and the classifier learned with it, None unless the validation needs it."""

    @abstractmethod
    def __str__(self) -> str:
        """Say what it is measured on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume; the same encoder gets the same values without any."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Retrieval(Validation):
    """Retrieval recall: the share of queries with a positive among their nearest database images."""

    def __init__(self, options: ValidationOptions, data: DataOptions) -> None:
        super().__init__(options, data)
        assert options.folder is not None  # it measures
        self.query_set = load_query_set(
            options.folder,
            options.database,
            options.queries,
            radius_m=options.positive_radius_m,
            angle_deg=options.positive_angle_deg,
        )
        self.catalogues = (self.query_set.database, self.query_set.queries)

    def measure(self, encoder: Encoder, accelerator: Accelerator, *, classifier: Classifier | None) -> Measures:
        """Compute recall@N in percent; R@1 is the primary measure."""
        predictions = retrieve(
            encoder,
            self.query_set,
            accelerator,
            count=max(_RECALL_NS),
            preprocessing=self.options.preprocessing,
            data=self.data,
        )
        assert self.query_set.positives is not None  # `load_query_set` finds them
        return _measures("R", recall_at(predictions, self.query_set.positives, _RECALL_NS))

    def __str__(self) -> str:
        return f"{len(self.query_set.queries):,} queries, {len(self.query_set.database):,} database images"


class Classification(Validation):
    """Localization recall: the share of queries near the center of one of the classes with the highest cosines."""

    needs_classifier = True

    def __init__(self, options: ValidationOptions, data: DataOptions) -> None:
        super().__init__(options, data)
        if options.positive_angle_deg is not None:
            raise ValueError(
                "`validation.positive_angle_deg` is not for `validation.kind` classification, which compares positions "
                "only: leave it out."
            )
        assert options.folder is not None  # it measures
        self.queries = read_catalogue(options.folder / options.queries)
        if nowhere := int((~np.isfinite(self.queries.east + self.queries.north)).sum()):
            raise ValueError(
                f"{nowhere:,} of {len(self.queries):,} queries in {self.queries.folder} have no coordinates."
            )
        self.catalogues = (self.queries,)
        self.is_compared = False
        """Whether the queries were compared with the cells of the classes."""

    def measure(self, encoder: Encoder, accelerator: Accelerator, *, classifier: Classifier | None) -> Measures:
        """Compute localization recall LR@N in percent; LR@1 is the primary measure."""
        assert classifier is not None  # it needs one
        if not self.is_compared and not lie_in_classes(self.queries, classifier).any():
            LOGGER.warning(
                "no query of %s lies in the cell of a class: classification only finds photos of training places. Hold "
                "some of these out as queries, see `progeo dataset split`",
                self.queries.folder,
            )
        self.is_compared = True
        preprocessing = self.options.preprocessing
        (descriptors,) = _extract(
            encoder, {"queries": self.queries}, accelerator, preprocessing=preprocessing, data=self.data
        )
        ranked = rank_classes(descriptors, classifier.weight, normalize=True, count=max(_RECALL_NS))
        centers_m, queries_m = positions_m(classifier.catalogue, self.queries)
        radius_m = self.options.positive_radius_m
        recalls = localization_recall(ranked.rows, centers_m, queries_m, ns=_RECALL_NS, radius_m=radius_m)
        return _measures("LR", recalls)

    def __str__(self) -> str:
        return f"{len(self.queries):,} queries, class centers within {self.options.positive_radius_m:g} m"


class NoValidation(Validation):
    """No validation, where nobody knows where photos were taken."""

    has_measures = False

    def measure(self, encoder: Encoder, accelerator: Accelerator, *, classifier: Classifier | None) -> None:
        """Measure nothing."""

    def __str__(self) -> str:
        return "none"


VALIDATIONS: dict[str, type[Validation]] = {
    "retrieval": Retrieval,
    "classification": Classification,
    "none": NoValidation,
}
"""`validation.kind` -> validation."""


def validation_of(options: ValidationOptions) -> type[Validation]:
    """Return the row of `VALIDATIONS` that the options name.

    Raises:
        ValueError: there is none.
    """
    if options.kind not in VALIDATIONS:
        raise ValueError(f"`validation.kind` must be one of {', '.join(VALIDATIONS)}, got {options.kind!r}.")
    return VALIDATIONS[options.kind]


def check_validation(options: ValidationOptions, training: TrainerOptions, *, learns_classes: bool) -> None:
    """Check before any image is read that a configuration gives the validation what it needs, and needs no other.

    Raises:
        ValueError: it does not.
    """
    row = validation_of(options)
    if row.needs_classifier and not learns_classes:
        raise ValueError(
            f"`validation.kind` {options.kind} needs the vectors that a classifier learns for cells, and no loss "
            f"term learns any: set `head.weight` above 0 with `training.batches` classes, or take another kind."
        )
    if row.has_measures and options.folder is None:
        raise ValueError(
            f"Missing settings: `validation.folder`. `validation.kind` {options.kind} needs it; none validates nothing."
        )
    needs_best = {
        "`training.keep` best": training.keep == "best",
        "`training.schedule` plateau": training.schedule == "plateau",
        "`training.patience`": training.patience is not None,
    }
    if not row.has_measures and any(needs_best.values()):
        what = next(name for name, needed in needs_best.items() if needed)
        raise ValueError(
            f"{what} needs a validation, and `validation.kind` is {options.kind}: set `training.keep` last "
            f"and no other setting that asks for the best epoch."
        )


def build_validation(options: ValidationOptions, data: DataOptions) -> Validation:
    """Build the validation that the options name.

    Raises:
        ValueError: there is none of that kind, or its images cannot be used.
    """
    return validation_of(options)(options, data)


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
    catalogues = {"database": query_set.database, "queries": query_set.queries}
    database, queries = _extract(encoder, catalogues, accelerator, preprocessing=preprocessing, data=data)
    return nearest_neighbors([database], queries, count).rows


def _extract(
    encoder: Encoder,
    catalogues: Mapping[str, Catalogue],
    accelerator: Accelerator,
    *,
    preprocessing: Preprocessing,
    data: DataOptions,
) -> list[np.ndarray]:
    """Extract the descriptors of each catalogue, (N, D), by its name on progress bars, shared among processes."""
    images = ImageOptions(database_preprocessing=preprocessing, orientation=data.orientation)
    extractor = descriptor_extractor(encoder, images, accelerator)
    was_training = encoder.training
    encoder.eval()
    found = [_descriptors(extractor, each, accelerator, data=data, what=name) for name, each in catalogues.items()]
    encoder.train(was_training)
    return found


def _measures(name: str, recalls: np.ndarray) -> Measures:
    """Return recalls at each of `_RECALL_NS`, called `name`@N; the first is the primary measure."""
    values = {f"{name}@{n}": recall for n, recall in zip(_RECALL_NS, recalls.tolist(), strict=True)}
    return Measures(values, primary=f"{name}@{_RECALL_NS[0]}")


def _descriptors(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    data: DataOptions,
    what: str,
) -> np.ndarray:
    """Extract descriptors of all images, float32 (N, D), independent of batching, as `extract_features` does."""
    images, mine = extractor.images(catalogue), share_of(len(catalogue), accelerator)
    descriptors, unreadable = extract_rows(
        extractor.extract,
        images,
        mine,
        extractor.batches(images, mine, data.eval_batch_size),
        width=extractor.width,
        num_workers=data.num_workers,
        what=what,
        hidden=not accelerator.is_main_process,
        filled_to=extractor.full_batch(catalogue, data.eval_batch_size),
    )
    for reason in unreadable.values():
        raise ValueError(reason)
    return gathered(descriptors, len(catalogue), accelerator)
