import dataclasses
from pathlib import Path

import numpy as np
import pytest
from running import build_catalogue

from progeo.places.catalogue import Catalogue
from progeo.places.cells import build_partition, check_same_partition, class_ids, group_ids

PUBLISHED = {"cell_side_m": 10, "heading_bin_deg": 30}
GROUPS = {"groups_per_side": 5, "groups_per_heading": 2}


def catalogue_of(rows):
    """A catalogue of (east, north, heading) rows."""
    names = [f"@{e}@{n}@10@S@@@{i}@@{'' if h is None else h}@@@@@@.jpg" for i, (e, n, h) in enumerate(rows)]
    return build_catalogue(Path("images"), names)


def partition_of(rows, **changes):
    settings = {**PUBLISHED, **GROUPS, "min_images_per_class": 1, "num_groups": 1, **changes}
    return build_partition(catalogue_of(rows), **settings)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((0.0, 0.0, 0.0), (0, 0, 0)),
        ((9.99, 10.0, 29.9), (0, 10, 0)),  # a cell holds its lower edge, not its upper
        ((544051.13, 4174858.97, 60.0), (544050, 4174850, 60)),
        ((-0.01, 5.0, 359.9), (-10, 0, 330)),  # rounding down, not toward zero
        ((5.0, 5.0, 360.0), (0, 0, 0)),  # a full turn is north
        ((5.0, 5.0, -1.0), (0, 0, 330)),  # headings may be negative
        ((5.0, 5.0, -1e-15), (0, 0, 0)),  # rounding to a full turn is north too
        ((5.0, 5.0, np.nan), (0, 0, 0)),  # no heading: one bin
    ],
)
def test_a_class_is_the_cell_and_the_heading_bin_rounded_down(image, expected):
    east, north, heading = (np.array([value]) for value in image)
    ids = class_ids(east, north, heading, **PUBLISHED)
    assert ids.dtype == np.int64
    assert tuple(ids[0]) == expected


@pytest.mark.parametrize(
    ("class_id", "expected"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((40, 50, 30), (4, 0, 1)),  # five cells on, the group comes again; the second bin is the other half
        ((-10, 0, 330), (4, 0, 1)),  # cells left of zero go on counting down
        ((544050, 4174850, 60), (0, 0, 0)),
    ],
)
def test_a_group_is_the_cell_index_modulo_n_and_the_bin_modulo_l(class_id, expected):
    ids = group_ids(np.array([class_id]), **PUBLISHED, **GROUPS)
    assert ids.dtype == np.int64
    assert tuple(ids[0]) == expected


def test_a_heading_that_rounds_to_a_full_turn_is_not_of_the_next_cell():
    (group,) = partition_of([(5, 5, -1e-15), (15, 5, 0)], groups_per_side=1, groups_per_heading=1).groups
    assert group.class_ids.tolist() == [[0, 0, 0], [10, 0, 0]]


def test_two_classes_of_a_group_never_touch():
    rng = np.random.default_rng(0)
    ids = class_ids(*rng.uniform([[0], [0], [0]], [[200], [200], [360]], (3, 5000)), **PUBLISHED)
    ids = np.unique(ids, axis=0)
    groups = group_ids(ids, **PUBLISHED, **GROUPS)
    for group in np.unique(groups, axis=0):
        members = ids[(groups == group).all(axis=1)]
        apart_m = np.abs(members[:, None, :2] - members[None, :, :2]).max(axis=2)
        turn = np.abs(members[:, None, 2] - members[None, :, 2])
        apart_deg = np.minimum(turn, 360 - turn)
        touching = (apart_m < 50) & (apart_deg < 60) & ~np.eye(len(members), dtype=bool)
        assert not touching.any()


def test_every_image_of_a_large_enough_class_is_in_one_group_under_its_label():
    rng = np.random.default_rng(1)
    rows = np.round(rng.uniform([0, 0, 0], [60, 60, 360], (400, 3)), 1)
    partition = partition_of(rows.tolist(), min_images_per_class=2, num_groups=20)
    catalogue = catalogue_of(rows.tolist())
    ids = class_ids(catalogue.east, catalogue.north, catalogue.heading, **PUBLISHED)
    seen = []
    for group in partition.groups:
        np.testing.assert_array_equal(group.class_ids, np.unique(group.class_ids, axis=0))  # sorted, each once
        np.testing.assert_array_equal(ids[group.rows], group.class_ids[group.labels])
        assert np.diff(group.offsets).min() >= 2
        seen.extend(group.rows.tolist())
    assert len(seen) == len(set(seen))
    _, inverse, counts = np.unique(ids, axis=0, return_inverse=True, return_counts=True)
    in_groups = len(np.unique(group_ids(ids[counts[inverse.ravel()] >= 2], **PUBLISHED, **GROUPS), axis=0))
    if in_groups == 20:
        assert len(seen) == (counts[inverse.ravel()] >= 2).sum()


def test_without_a_number_of_groups_all_that_have_a_class_are_there_in_the_order_of_their_ids():
    places = [(east, north, None) for east, north in ((25, 25), (65, 25), (5, 25), (5, 5))]
    alone = (25, 5, None)  # the only image of its group: too few for a class
    partition = partition_of(
        [*places, *places, alone],
        **{"cell_side_m": 20, "heading_bin_deg": 360, "groups_per_side": 2, "groups_per_heading": 1},
        min_images_per_class=2,
        num_groups=None,
    )
    assert [group.class_ids.tolist() for group in partition.groups] == [
        [[0, 0, 0]],
        [[0, 20, 0]],
        [[20, 20, 0], [60, 20, 0]],
    ]
    assert partition.settings["num_groups"] == 3


def test_images_without_any_heading_make_classes_of_cells():
    partition = partition_of([(1, 1, None), (2, 2, None), (11, 1, None)], groups_per_side=1, groups_per_heading=1)
    assert partition.groups[0].class_ids.tolist() == [[0, 0, 0], [10, 0, 0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_groups": 3}, "`num_groups` is 3, but the images form 2 groups with classes"),
        ({"num_groups": 0}, "choose from 1 to 2"),
        ({"min_images_per_class": 9}, "No class has `min_images_per_class` = 9 images: 3 images fell into 2"),
        ({"heading_bin_deg": 7}, "`heading_bin_deg` must divide 360, got 7"),
        ({"cell_side_m": 0}, "`cell_side_m` must be at least 1"),
        ({"groups_per_heading": 5}, "`groups_per_heading` must divide the number of heading bins, 12"),
        ({"groups_per_side": 0}, "`groups_per_side` must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_is_allowed(changes, words):
    with pytest.raises(ValueError, match=words):
        partition_of([(1, 1, 5), (2, 2, 6), (11, 1, 5)], **changes)


def test_headings_of_some_images_only_are_refused_unless_headings_are_not_used():
    rows = [(1, 1, 5), (2, 2, None)]
    with pytest.raises(ValueError, match=r"1 of 2 images .* no heading. Set `heading_bin_deg` to 360"):
        partition_of(rows)
    assert partition_of(rows, heading_bin_deg=360, groups_per_heading=1).groups[0].num_classes == 1


def test_the_fingerprint_follows_classes_and_settings_but_not_extra_images():
    rows = [(1, 1, 5), (55, 1, 5)]
    base = partition_of(rows)
    assert partition_of([*rows, (2, 2, 6)]).fingerprint == base.fingerprint
    assert partition_of([*rows, (105, 1, 5)]).fingerprint != base.fingerprint
    assert partition_of(rows, groups_per_side=1).fingerprint != base.fingerprint


def test_a_partition_that_does_not_match_is_refused_with_what_differs():
    rows = [(1, 1, 5), (55, 1, 5)]
    stored = partition_of(rows).describe()
    check_same_partition(stored, partition_of(rows), "prompts")
    with pytest.raises(ValueError, match=r"prompts was made with `groups_per_side` = 5, now it is 1"):
        check_same_partition(stored, partition_of(rows, groups_per_side=1), "prompts")
    with pytest.raises(ValueError, match=r"made for \[2\] classes per group, the images now give \[3\]"):
        check_same_partition(stored, partition_of([*rows, (105, 1, 5)]), "prompts")
    every = partition_of([*rows, (11, 1, 5)], num_groups=None)
    with pytest.raises(ValueError, match=r"made with `num_groups` = 1, now it is 2"):
        check_same_partition(stored, every, "prompts")
    with pytest.raises(
        ValueError, match=r"made for \[2, 1\] classes per group, the images now give \[1\]: the training"
    ):
        check_same_partition(every.describe(), partition_of([(11, 1, 5)], num_groups=None), "prompts")
    with pytest.raises(ValueError, match="as many classes in other places"):
        check_same_partition(stored, partition_of([(1, 1, 5), (105, 1, 5)]), "prompts")


def test_a_group_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        partition_of([(1, 1, 5)]).groups[0].rows = None


def test_images_without_coordinates_are_refused():
    catalogue = catalogue_of([(0, 0, 0), (5, 5, 0)])
    nowhere = Catalogue(catalogue.folder, catalogue.table.set_column(1, "east", [[np.nan, 5.0]]))
    with pytest.raises(ValueError, match="1 of 2 images of images have no coordinates: they can be evaluated with"):
        build_partition(nowhere, **PUBLISHED, **GROUPS, min_images_per_class=1, num_groups=1)
