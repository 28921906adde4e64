"""Small classifiers for tests."""

from collections.abc import Sequence

import numpy as np

from progeo.models.classifier import Classifier
from progeo.places.cells import group_ids
from progeo.places.geographic import Frame

SAN_FRANCISCO = Frame(10, "north")


def classifier_of(
    ids: Sequence[Sequence[int]], dim: int = 4, *, kind: str = "cosface", frame: Frame = SAN_FRANCISCO, **cells: int
) -> Classifier:
    """Build a classifier of random vectors for class ids, in any order, of cells of 20 m in four groups."""
    settings = {"cell_side_m": 20, "groups_per_side": 2, "heading_bin_deg": 360, "groups_per_heading": 1, **cells}
    class_ids = np.unique(np.array(ids, np.int64), axis=0)
    groups = group_ids(class_ids, **settings)
    _, group_of, counts = np.unique(groups, axis=0, return_inverse=True, return_counts=True)
    random = np.random.default_rng(0)
    return Classifier(
        kind=kind,
        class_ids=class_ids[np.argsort(group_of.reshape(-1), kind="stable")],
        weight=random.standard_normal((len(class_ids), dim), np.float32),
        bias=random.standard_normal(len(class_ids), np.float32) if kind == "linear" else None,
        num_images=np.arange(1, len(class_ids) + 1),
        classes_per_group=tuple(counts.tolist()),
        scale=1.0 if kind == "linear" else 30.0,
        cells={**settings, "min_images_per_class": 1, "num_groups": len(counts)},
        fingerprint="0123456789abcdef",
        frame=frame,
    )
