import numpy as np
import pytest
import utm
from classifiers import classifier_of

from progeo.places.geographic import Frame, positions_m


def test_classes_are_a_catalogue_of_the_centers_of_their_cells():
    classifier = classifier_of([(549120, 4180920, 0), (549140, 4180920, 0), (549160, 4180940, 0)])
    expected = [(549130, 4180930), (549150, 4180930), (549170, 4180950)]
    order = [expected.index(tuple(center)) for center in classifier.centers_m.tolist()]
    catalogue = classifier.catalogue
    assert [catalogue.name(row) for row in range(3)] == [
        f"cell {expected[row][0] - 10} {expected[row][1] - 10}" for row in order
    ]
    np.testing.assert_array_equal(np.stack([catalogue.east, catalogue.north], axis=1), classifier.centers_m)
    assert catalogue.zone.tolist() == [10, 10, 10]
    assert np.isnan(catalogue.heading).all()
    degrees = [utm.to_latlon(*expected[row], 10, "S") for row in order]
    np.testing.assert_allclose(catalogue.degrees.T, degrees, atol=1e-9)


def test_an_odd_side_has_its_center_half_a_meter_further():
    classifier = classifier_of([(15, 30, 0)], cell_side_m=15)
    assert classifier.centers_m.tolist() == [[22.5, 37.5]]


def test_classes_with_heading_bins_are_named_and_face_the_middle_of_their_bin():
    classifier = classifier_of([(0, 20, 270), (0, 20, 90)], heading_bin_deg=90, cell_side_m=20, groups_per_heading=4)
    catalogue = classifier.catalogue
    assert [catalogue.name(row) for row in range(2)] == ["cell 0 20 90", "cell 0 20 270"]
    assert catalogue.heading.tolist() == [135, 315]


@pytest.mark.parametrize(
    ("frame", "ids", "utm_m", "zone", "degrees"),
    [
        (Frame(56, "south"), (500_000, 6_000_000, 0), (500_010, 6_000_010), 56, (56, False)),
        (Frame(0, "north", several_zones=True), (31_500_000, 20, 0), (500_010, 30), 31, (31, True)),
        (Frame(31, "both"), (500_000, -20, 0), (500_010, 9_999_990), 31, (31, False)),
        (Frame(31, "both"), (500_000, 0, 0), (500_010, 10), 31, (31, True)),
        (Frame(0, None), (500_000, 40, 0), (500_010, 50), 0, None),
        (Frame(31, None), (500_000, 40, 0), (500_010, 50), 31, None),
    ],
)
def test_centers_are_utm_coordinates_of_the_frame(frame, ids, utm_m, zone, degrees):
    catalogue = classifier_of([ids], frame=frame).catalogue
    assert (catalogue.east[0], catalogue.north[0]) == utm_m
    assert catalogue.zone.tolist() == [zone]
    found = [catalogue.table[name][0].as_py() for name in ("latitude", "longitude")]
    if degrees is None:
        assert np.isnan(found).all()
        assert catalogue.degrees is None
    else:
        number, is_northern = degrees
        np.testing.assert_allclose(found, utm.to_latlon(*utm_m, number, northern=is_northern), atol=1e-9)


def test_classes_on_both_sides_of_the_equator_are_next_to_each_other():
    classifier = classifier_of([(500_000, -20, 0), (500_000, 0, 0)], frame=Frame(31, "both"))
    (positions,) = positions_m(classifier.catalogue)
    np.testing.assert_allclose(np.abs(np.diff(positions[:, 1])), 20, atol=1e-6)


def test_the_scale_of_a_linear_head_is_the_mean_length_of_its_vectors():
    linear, cosface = (classifier_of([[0, 0, 0], [20, 0, 0], [40, 0, 0]], kind=kind) for kind in ("linear", "cosface"))
    lengths = [float(sum(value**2 for value in row)) ** 0.5 for row in linear.weight.tolist()]
    assert linear.cosine_scale == pytest.approx(sum(lengths) / 3)
    assert cosface.cosine_scale == cosface.scale == 30
