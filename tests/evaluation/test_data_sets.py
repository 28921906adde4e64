from pathlib import Path

import pytest

from progeo.evaluation.data_sets import as_file_name, data_sets

CITY, OTHER = Path("city/test"), Path("other/test")


@pytest.mark.parametrize(
    ("folders", "protocols", "expected"),
    [
        ([CITY], [], [(None, "city/test", "city_test")]),
        ([CITY, OTHER], ["none", "pitts30k_test"], [(None, "city/test", "city_test"), ("pitts30k_test",) * 3]),
        (
            [CITY, CITY],
            ["sf_xl_test_v1", "sf_xl_test_v2"],
            [("sf_xl_test_v1",) * 3, ("sf_xl_test_v2",) * 3],
        ),
        (
            [CITY, OTHER],
            ["nordland"],
            [("nordland", "nordland, city/test", "nordland"), ("nordland", "nordland, other/test", "nordland")],
        ),
    ],
)
def test_a_protocol_is_that_of_all_folders_or_there_is_one_for_each(folders, protocols, expected):
    found = data_sets(folders, protocols)
    assert [each.folder for each in found] == folders
    assert [(each.protocol, each.name, each.part) for each in found] == expected


@pytest.mark.parametrize(
    ("folders", "protocols", "words"),
    [
        ([], [], "at least one `folder`"),
        ([CITY, OTHER, CITY], ["a", "b"], r"all 3 folders, or one for each in their order; got 2: a, b\. Write none"),
        ([CITY], ["a", "b"], "got 2: a, b"),
        ([CITY, OTHER, CITY], ["a"], "city/test is given twice"),
    ],
)
def test_folders_and_protocols_that_do_not_fit_are_refused(folders, protocols, words):
    with pytest.raises(ValueError, match=words):
        data_sets(folders, protocols)


def test_a_folder_of_results_has_no_name_that_is_too_long():
    (found,) = data_sets([Path("a" * 200, "<b>'" * 120)], [])
    assert found.part == "b_" * 100


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/runs/a city:1", "_runs_a_city_1"),
        ("a" * 300 + "b", "a" * 199 + "b"),
        ("x" + "\u5730" * 100, "\u5730" * 66),  # of 3 bytes each
        ("caf\udce9", "caf_"),
    ],
)
def test_a_name_of_a_folder_fits_into_a_file_system(text, name):
    assert as_file_name(text) == name
