from pathlib import Path

import pytest

from progeo.engine.dry_run import DryRun, Phase, Space, checked
from progeo.unwritten import ProblemsError


def run(*spaces):
    found = [Space(f"disk {space[2]}", Path("out"), *space) for space in spaces]
    return DryRun("train", [], [], found)


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ([(6_000_000, 10_000_000, 1), (3_000_000, 10_000_000, 1), (9_000_000, 10_000_000, 2)], None),
        ([(6_000_000, 10_000_000, 1), (11_000_000, 10_000_000, 2)], "disk 2: 11.0 MB in out, only 10.0 MB are free."),
        (
            [(6_000_000, 10_000_000, 1), (5_000_000, 10_000_000, 1), (0, 10_000_000, 1)],
            "disk 1: 6.0 MB in out, 10.0 MB are free. disk 1: 5.0 MB in out, 10.0 MB are free. They are on one disk.",
        ),
    ],
    ids=["all fit", "one does not", "together they do not"],
)
def test_files_on_one_disk_must_fit_together_those_of_several_commands_too(spaces, words):
    runs = [run(spaces[0]), run(*spaces[1:])]
    if words is None:
        assert checked(runs) == runs
    else:
        with pytest.raises(ProblemsError) as raised:
            checked(runs)
        assert str(raised.value) == f"There is not enough space. {words}" and raised.value.result == runs


def test_a_phase_says_how_fast_it_is_and_how_long_it_takes():
    assert str(Phase("steps", 1200, "steps", 600.0)) == "steps: 1,200 steps, 0.5 s each, 10 min"
    assert str(Phase("images", 1000, "images", 2.0)) == "images: 1,000 images, 500 per second, 2 s"
    assert str(Phase("images", 0, "images", 0.0)) == "images: nothing is left to do"
