import numpy as np
import pytest

from progeo.places.class_shapes import class_outlines


@pytest.mark.parametrize(
    ("class_id", "bin_deg", "corners"),
    [
        ((100, 40, 0), 360, [(100, 40), (100, 60), (120, 60), (120, 40)]),
        ((100, 40, 0), 90, [(110, 50), (110, 60), (120, 60), (120, 50)]),  # looks to the north-east
        ((100, 40, 180), 90, [(110, 50), (110, 40), (100, 40), (100, 50)]),
        ((-20, 0, 90), 45, [(-10, 10), (0, 10), (0, 10 - 10 * np.tan(np.pi / 8)), (0, 0)]),
    ],
)
def test_a_class_is_the_wedge_of_its_cell_that_its_images_look_to(class_id, bin_deg, corners):
    found = class_outlines(np.array([class_id]), cell_side_m=20, heading_bin_deg=bin_deg)
    np.testing.assert_allclose(found, [corners], atol=1e-9)


@pytest.mark.parametrize("bin_deg", [30, 45, 90])
def test_the_wedges_of_a_cell_fill_it(bin_deg):
    ids = np.array([(0, 0, heading) for heading in range(0, 360, bin_deg)])
    east, north = np.moveaxis(class_outlines(ids, cell_side_m=10, heading_bin_deg=bin_deg), -1, 0)
    areas = ((np.roll(east, -1, 1) * north) - (east * np.roll(north, -1, 1))).sum(1) / 2
    assert areas.sum() == pytest.approx(100)
    assert (areas > 0).all()
