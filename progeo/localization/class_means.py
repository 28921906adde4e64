"""Class means: the mean descriptors of the images of each class, as the vectors of a classifier for any encoder."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from progeo.evaluation.classification import class_means
from progeo.export.classifier import holds_classifier, load_classifier
from progeo.export.weights import provenance_of
from progeo.features.options import ClassOptions
from progeo.features.store import ShardedRows
from progeo.models.classifier import MEANS, Classifier
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Partition, build_partition
from progeo.places.geographic import frame_of
from progeo.progress import followed

MEANS_SCALE = 100.0
"""Factor of the cosines of class means before a softmax: that of Divide&Classify's heads and of CLIP's logits."""
_DEFAULTS: Mapping[str, int] = {"cell_side_m": 20, "heading_bin_deg": 360, "min_images_per_class": 1}
_ONE_GROUP: Mapping[str, int] = {"groups_per_side": 1, "groups_per_heading": 1}


def extract_class_means(
    catalogue: Catalogue,
    encoder_name: str,
    options: ClassOptions,
    extract: Callable[[Catalogue], ShardedRows],
) -> Classifier:
    """Extract the descriptors of a catalogue and build the classifier of its class means.

    Args:
        encoder_name, options: see `partition_for_means`.
        extract: extracts descriptors (N, D) with that encoder, see `extract_descriptors`.

    Raises:
        ValueError: no class has enough readable images; see also `build_partition`.
    """
    partition = partition_for_means(catalogue, encoder_name, options)  # before the hours of extraction
    return means_classifier(extract(catalogue), catalogue, partition)


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


def means_classifier(descriptors: ShardedRows, catalogue: Catalogue, partition: Partition) -> Classifier:
    """Build the classifier whose vectors are the mean descriptors of the classes of a partition of one group.

    Args:
        descriptors: (N, D); unreadable images, whose rows are excluded, count in no class.
        catalogue: the N images.
        partition: classes of the N images.

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
        weight=class_means(
            followed(descriptors.parts(), "class means", total=len(descriptors), size=len), labels, group.num_classes
        ),
        bias=None,
        num_images=np.diff(group.offsets),
        classes_per_group=(group.num_classes,),
        scale=MEANS_SCALE,
        cells=dict(partition.settings),
        fingerprint=partition.fingerprint,
        frame=frame_of(catalogue),
    )


def _cells_of_training(encoder_name: str) -> dict[str, int]:
    """Return the settings of the cells that an encoder was trained with; none if they are unknown."""
    if holds_classifier(Path(encoder_name)):
        cells = load_classifier(encoder_name).cells
    else:
        cells = provenance_of(encoder_name).get("settings", {}).get("cells", {})
    return {name: cells[name] for name in _DEFAULTS if type(cells.get(name)) is int}
