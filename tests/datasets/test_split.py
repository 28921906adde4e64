from pathlib import Path

import numpy as np
import pytest
from running import build_catalogue

from progeo.datasets.split import every_nth_position, last_of_each_class
from progeo.places.catalogue import read_catalogue
from progeo.places.options import CellOptions

DATA = Path(__file__).parents[3] / "shared/data"
CELLS = CellOptions(
    cell_side_m=10, heading_bin_deg=180, groups_per_side=2, groups_per_heading=1, min_images_per_class=2
)


def street(count, *, headings=(0, 90), order=None):
    """A street of positions 10 m apart, with an image in each direction, whose names sort like the positions."""
    names = [
        f"@{position * 10}@5@10@S@@@@@{heading}@.jpg" for position in range(100, 100 + count) for heading in headings
    ]
    return build_catalogue(Path("street"), names if order is None else [names[index] for index in order])


def test_every_fourth_position_is_held_out_with_all_its_headings():
    assert every_nth_position(street(11), 4).tolist() == [6, 7, 14, 15]


def test_positions_are_counted_by_name_wherever_their_rows_are():
    order = np.random.default_rng(0).permutation(22)
    catalogue = street(11, order=order)
    held_out = every_nth_position(catalogue, 4)
    assert sorted(order[held_out]) == [6, 7, 14, 15]
    assert sorted(set(held_out)) == held_out.tolist()
    kept = catalogue.without(held_out)
    assert len(kept) == 18
    assert {kept.name(row) for row in range(18)}.isdisjoint(catalogue.name(row) for row in held_out)


def test_with_a_seed_as_many_positions_are_drawn_at_random():
    catalogue = street(100)
    drawn = [every_nth_position(catalogue, 4, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].tolist() != drawn[2].tolist() != every_nth_position(catalogue, 4).tolist()
    for rows in drawn:
        assert len(rows) == 50
        assert np.array_equal(rows[::2] + 1, rows[1::2])
        assert not (rows[::2] % 2).any()


@pytest.mark.parametrize("every", [1, 12])
def test_a_share_that_leaves_nothing_is_refused(every):
    with pytest.raises(ValueError, match=rf"`every` must be from 2 to 11, the positions in street, got {every}\."):
        every_nth_position(street(11), every)


def in_cells(*cells):
    """Images in the cells given, in this order, named by their row."""
    names = [f"@{cell * 10 + 1000}@5@10@S@@@{row:02d}@@90@.jpg" for row, cell in enumerate(cells)]
    return build_catalogue(Path("street"), names)


def test_the_last_images_of_each_class_are_held_out():
    catalogue = in_cells(0, 1, 1, 0, 2, 1, 0, 1, 0)
    assert last_of_each_class(catalogue, 1, CELLS).tolist() == [7, 8]
    assert last_of_each_class(catalogue, 2, CELLS).tolist() == [5, 6, 7, 8]


def test_a_class_that_would_be_left_without_images_keeps_them():
    catalogue = in_cells(0, 0, 0, 0, 1, 1, 1)
    assert last_of_each_class(catalogue, 3, CELLS).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="No class has more than `per_class` = 4 images and at least `min"):
        last_of_each_class(catalogue, 4, CELLS)


def test_with_a_seed_images_of_each_class_are_drawn_at_random():
    catalogue = in_cells(*[0, 1] * 50)
    drawn = [last_of_each_class(catalogue, 10, CELLS, seed=seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [sum(row % 2 for row in rows) for rows in drawn] == [10, 10, 10]


@pytest.mark.parametrize(
    ("name", "choose", "counts"),
    [
        ("cambridge_sample", lambda catalogue: every_nth_position(catalogue, 4), (1828, 608)),
        ("sf_xl_sample", lambda catalogue: last_of_each_class(catalogue, 2, CellOptions()), (1200, 300)),
    ],
)
def test_the_samples_are_divided_as_their_description_says(name, choose, counts):
    folder = DATA / name / "train"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    catalogue = read_catalogue(folder)
    rows = choose(catalogue)
    assert (len(catalogue.without(rows)), len(rows)) == counts
