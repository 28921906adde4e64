from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

from progeo.doctor.packages import (
    PURPOSES,
    Package,
    import_failures,
    list_extras,
    problems_of,
    required_packages,
)

METADATA = """\
Metadata-Version: 2.1
Name: progeo
Version: 1
Requires-Dist: numpy>=1.0
Requires-Dist: pillow>=999
Requires-Dist: not-on-any-machine<3,>=2
Requires-Dist: numpy>=999; sys_platform == "nowhere"
Provides-Extra: plot
Requires-Dist: not-on-any-machine-either>=1; extra == "plot"
Requires-Dist: numpy>=1.0; extra == "plot"
Provides-Extra: jpeg
Requires-Dist: numpy>=1.0; extra == "jpeg"
Requires-Dist: not-on-any-machine; sys_platform == "nowhere" and extra == "jpeg"
Provides-Extra: test
Requires-Dist: progeo[jpeg,plot]; extra == "test"
Requires-Dist: pillow>=999; extra == "test"
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A progeo that requires packages which no machine has."""
    (tmp_path / "progeo-1.dist-info").mkdir()
    (tmp_path / "progeo-1.dist-info/METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(tmp_path)


def test_required_packages_are_those_of_this_machine_without_extras(installed):
    assert required_packages() == [
        Package("numpy", version("numpy"), ">=1.0", is_met=True),
        Package("pillow", version("pillow"), ">=999", is_met=False),
        Package("not-on-any-machine", None, "<3,>=2", is_met=False),
    ]


def test_an_extra_tells_what_is_missing_also_of_the_extras_that_it_is_made_of(installed):
    extras = {each.name: each.missing for each in list_extras()}
    assert extras == {
        "jpeg": (),
        "plot": ("not-on-any-machine-either>=1",),
        "test": ("not-on-any-machine-either>=1", "pillow>=999"),
    }
    assert {each.name: each.purpose for each in list_extras()}["plot"] == PURPOSES["plot"]


def test_every_extra_has_a_purpose():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    assert set(setup["options.extras_require"]) <= set(PURPOSES)


def test_what_is_unmet_or_cannot_be_imported_is_a_problem(installed, tmp_path):
    (tmp_path / "broken_module.py").write_text("raise OSError('libcuda.so is missing.\\nMore about it')")
    failures = import_failures(["json", "broken_module", "no_such_module"])
    assert problems_of(required_packages(), failures) == [
        f"pillow {version('pillow')} is not >=999: pip install 'pillow>=999'.",
        "not-on-any-machine is missing: pip install 'not-on-any-machine<3,>=2'.",
        "broken_module cannot be imported: libcuda.so is missing.",
        "no_such_module cannot be imported: No module named 'no_such_module'.",
    ]
    assert problems_of([Package("a", "2", ">=1", is_met=True)], {}) == []
