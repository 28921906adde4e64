import pytest

from progeo.cli import main
from progeo.evaluation.protocols import load_protocol, protocol_names


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_says_what_it_is_and_with_what_it_can_be_compared(name):
    protocol = load_protocol(name)
    assert protocol.what
    assert protocol.comparable
    assert protocol.positive_radius_m == 25
    assert 0 < protocol.num_queries <= protocol.num_database


def test_an_unknown_protocol_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no protocol 'pitts30'; there are .*pitts30k_test, sf_xl_test_v1"):
        load_protocol("pitts30")


def test_a_folder_with_other_counts_is_refused_with_both(tmp_path):
    main(["toy-city", str(tmp_path / "toy"), "--num_images", "120", "--image_size", "32"])
    arguments = ["--encoder", "thumbnail", "--folder", str(tmp_path / "toy/val"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments, "--protocol", "pitts30k_test"])
    assert "has 10,000 database images and 6,816 queries" in str(stop.value.code)
    assert "has 12 and 6: its numbers could not be compared" in str(stop.value.code)
    assert not (tmp_path / "out").exists()
