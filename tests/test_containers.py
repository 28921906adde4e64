"""The environment of conda-forge and the files of containers have what the package needs."""

import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
NAMES = {
    "torch": "pytorch",
    "open_clip_torch": "open-clip-torch",
    "faiss-cpu": "faiss",
    "opencv-python-headless": "opencv",
}
"""Names that conda-forge has for packages of PyPI, where they differ."""
OF_EXTRAS = {"docstring_parser", "typeshed-client"}
"""Packages that jsonargparse[signatures] brings."""


@pytest.fixture(scope="module")
def setup():
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_environment_has_the_lowest_versions_of_the_package(setup):
    needed = map(Requirement, setup["options"]["install_requires"].split("\n")[1:])
    wanted = {NAMES.get(each.name, each.name): each.specifier for each in needed if each.name != "faiss-gpu"}
    lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    given = {line.split()[0]: SpecifierSet("".join(line.split()[1:])) for line in lines}
    assert given.pop("python") == SpecifierSet(setup["options"]["python_requires"])
    assert given.keys() - wanted.keys() == {"pip", *OF_EXTRAS}
    wanted["opencv"] = SpecifierSet(">=4.10")  # conda-forge has the version of OpenCV without a build number
    assert {name: given[name] for name in wanted} == wanted


def test_the_image_copies_what_the_package_is_built_from_and_no_more():
    copied = re.findall(r"^COPY (?:--chown=\S+ )?(.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.M)
    files = [name for line in copied for name in line.split()]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(files) == sorted(kept)
    assert all((ROOT / name).exists() for name in files)


def test_the_image_serves_with_the_packages_of_the_extra(setup):
    needed = {Requirement(line).name for line in setup["options.extras_require"]["serve"].split("\n")[1:]}
    text = (ROOT / "Dockerfile").read_text().replace("_", "-")
    assert all(re.search(rf"\b{name}\b", text) for name in needed)


def test_the_development_container_is_one_object_of_json():
    assert json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["name"] == "progeo"
