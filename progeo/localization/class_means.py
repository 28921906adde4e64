"""Class means: the mean descriptors of the images of each class, as the vectors of a classifier for any encoder."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from progeo.export.classifier import holds_classifier, load_classifier
from progeo.export.weights import encoder_folder, holds_encoder, provenance_of
from progeo.features.options import ClassOptions
from progeo.features.store import ShardedRows
from progeo.models.classifier import MEANS, Classifier
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Partition, build_partition
from progeo.places.geographic import frame_of

MEANS_SCALE = 100.0
"""Factor of the cosines of class means before a softmax: that of Divide&Classify's heads and of CLIP's logits."""
_DEFAULTS: Mapping[str, int] = {"cell_side_m": 20, "heading_bin_deg": 360, "min_images_per_class": 1}
_ONE_GROUP: Mapping[str, int] = {"groups_per_side": 1, "groups_per_heading": 1}


def partition_for_means(catalogue: Catalogue, encoder_name: str, options: ClassOptions) -> Partition:
    """Divide a catalogue into classes, all in one group.

    Args:
        encoder_name: see `load_encoder`; cells are those of its training, if any, where the options name none.

    Raises:
        ValueError: see `build_partition`.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    cells = {**_DEFAULTS, **_cells_of_training(encoder_name), **given}
    return build_partition(catalogue, **cells, **_ONE_GROUP, num_groups=None)


def means_classifier(
    descriptors: ShardedRows, catalogue: Catalogue, partition: Partition, *, encoder_digest: str
) -> Classifier:
    """Build the classifier whose vectors are the mean descriptors of the classes of a partition of one group.

    Args:
        descriptors: (N, D); unreadable images, whose rows are excluded, count in no class.
        catalogue: the N images.
        partition: classes of the N images.
        encoder_digest: digest of the weights of the encoder that extracted the descriptors.

    Raises:
        ValueError: no class has enough readable images.
    """
    if len(descriptors.missing):
        catalogue = catalogue.without(descriptors.missing)
        partition = build_partition(catalogue, **partition.settings)
    (group,) = partition.groups
    labels = np.full(len(catalogue), -1)
    labels[group.rows] = group.labels
    return Classifier(
        kind=MEANS,
        class_ids=group.class_ids,
        weight=class_means(descriptors.parts(), labels, group.num_classes),
        bias=None,
        num_images=np.diff(group.offsets),
        classes_per_group=(group.num_classes,),
        scale=MEANS_SCALE,
        cells=dict(partition.settings),
        fingerprint=partition.fingerprint,
        frame=frame_of(catalogue),
        encoder=encoder_digest,
    )


def class_means(parts: Iterable[np.ndarray], labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute the mean of the L2-normalized descriptors of each class, L2-normalized, float32 (C, D).

    Args:
        parts: consecutive parts of N descriptors, (n, D) each.
        labels: class of each descriptor, int64 (N,); -1 if it is in no class.
        num_classes: C; each class has a descriptor.
    """
    sums, start = np.zeros((num_classes, 0)), 0
    for part in parts:
        here, start = labels[start : start + len(part)], start + len(part)
        if not sums.size:
            sums = np.zeros((num_classes, part.shape[1]))
        order = np.argsort(here, kind="stable")
        order = order[here[order] >= 0]
        present, first = np.unique(here[order], return_index=True)
        if len(present):
            sums[present] += np.add.reduceat(_unit(part[order].astype(np.float64)), first, axis=0)
    return _unit(sums).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalize vectors (n, D)."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _cells_of_training(encoder_name: str) -> dict[str, int]:
    """Return the settings of the cells that an encoder was trained with; none if it has no folder, or they are unknown."""
    if not holds_encoder(Path(encoder_name)):
        return {}
    folder = encoder_folder(Path(encoder_name))
    if holds_classifier(folder):
        cells = load_classifier(folder).cells
    else:
        cells = provenance_of(encoder_name).get("settings", {}).get("cells", {})
    return {name: cells[name] for name in _DEFAULTS if type(cells.get(name)) is int}
