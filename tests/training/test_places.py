"""Whether there is something to learn from the places of a training."""

import pytest
from running import build_catalogue

from progeo.places.cells import build_partition
from progeo.training.places import check_classes


def partition_of(folder, *places):
    """Cells of 20 m, of which every second one east and north is in the same group."""
    cells = {"cell_side_m": 20, "heading_bin_deg": 360, "groups_per_side": 2, "groups_per_heading": 1}
    catalogue = build_catalogue(folder, [f"@{east}@{north}@10@S@.jpg" for east, north in places])
    return build_partition(catalogue, **cells, min_images_per_class=1, num_groups=None)


def test_groups_of_one_class_are_named_and_refused_if_there_are_no_others(tmp_path, caplog):
    check_classes(partition_of(tmp_path, (0, 0), (40, 0), (20, 0), (60, 0)))
    assert not caplog.records
    check_classes(partition_of(tmp_path, (0, 0), (0, 20), (20, 20), (60, 20)))
    assert [record.getMessage()[:24] for record in caplog.records] == ["group 1, 2: a single cla"]
    with pytest.raises(ValueError, match="Every group has a single class, whose cross-entropy is always 0"):
        check_classes(partition_of(tmp_path, (0, 0), (20, 20)))
