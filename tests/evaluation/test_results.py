import json

import numpy as np
import pyarrow as pa
import pytest

from progeo.evaluation.results import write_results
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue

FACTS = {"encoder": "e", "folder": "f", "protocol": "none", "descriptor": "8 dimensions"}


def images(folder, count):
    names = pa.array([f"{row}.jpg" for row in range(count)], pa.large_string())
    columns = {name: np.full(count, np.nan) for name in ("east", "north", "heading")}
    return Catalogue(folder, pa.table({"path": names, **columns, "zone": np.zeros(count, np.int8)}))


@pytest.mark.parametrize(
    ("panoramas", "is_missed", "expected"),
    [
        (None, True, (2 / 4 + 1 / 4) / 3),
        (None, False, (2 / 4 + 1 / 4) / 2),
        (["a", "a", "b", "c"], True, (1 / 3 + 1 / 3) / 3),
        (["a", "a", "b", "c"], False, 1 / 3),
    ],
)
def test_chance_counts_panoramas_and_queries_without_a_positive_as_recall_does(
    tmp_path, panoramas, is_missed, expected
):
    positives = [np.array([0, 1]), np.array([2]), np.array([], np.int64)]
    found = Retrieved(
        images(tmp_path, 4),
        images(tmp_path, 3),
        np.array([[0], [0], [0]]),
        {"as given": positives},
        np.array([""] * 3),
        np.ones((3, 1)),
        panoramas=None if panoramas is None else np.array(panoramas),
    )
    recalls = write_results(found, FACTS, tmp_path, ns=(1,), without_positive_missed=is_missed)
    assert recalls == {1: pytest.approx(100 / 3 if is_missed else 50)}
    assert json.loads((tmp_path / "recalls.json").read_text())["chance"] == {"R@1": pytest.approx(100 * expected)}
