"""What is installed is complete: the wheel, built from the source archive, runs the demo in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_trains_evaluates_and_localizes_in_an_environment_of_its_own(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True)
    (wheel,), (source,) = (list((tmp_path / "dist").glob(ending)) for ending in ("*.whl", "*.tar.gz"))
    with tarfile.open(source) as archive:  # some of the tests alone could not run
        assert not [name for name in archive.getnames() if "/tests" in name]
    files = (path for path in (ROOT / "progeo").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    ours = {path.relative_to(ROOT).as_posix() for path in files}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("progeo/")} == ours
    fresh, empty = tmp_path / "fresh", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    (site,) = fresh.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "--python", fresh / "bin/python", "install", "--no-deps", wheel]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, env=environment, check=True)  # or pip would find the checkout installed there
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # packages that progeo depends on

    def run(program, *words):
        command = [fresh / "bin" / program, *words]
        return subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("python", "-c", "import progeo; print(progeo.__file__)").strip() == str(site / "progeo/__init__.py")
    shown = run("progeo", "demo")
    assert "encoder after stage 2" in shown and "means of the places" in shown
    assert {path.name for path in empty.iterdir()} == {"demo", "runs"}
    assert (empty / "demo/evaluation/trained/report.html").is_file()
    run("progeo", "evaluate", "demo/encoder", "--folder", "demo/city/test", "--out", "results")
    results, demo = (
        json.loads((empty / name / "recalls.json").read_text()) for name in ("results", "demo/evaluation/trained")
    )
    assert results["recalls"] == demo["recalls"]
    run("progeo", "index", "build", "demo/encoder", "--folder", "demo/city/test/database", "--out", "city.index")
    photo = min((empty / "demo/city/test/database").rglob("*.jpg"))
    found = json.loads(run("progeo", "localize", str(photo), "--index", "city.index", "--json"))
    assert found["matches"][0]["path"] == str(photo.resolve())


@pytest.mark.slow
def test_an_editable_checkout_is_imported_from_the_folder_that_holds_it(tmp_path):
    checkout = tmp_path / "progeo"  # a folder of this name, without the package, is what Python sees there
    checkout.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / "progeo", checkout / "progeo", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=checkout, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    add = f"import site; site.addsitedir({str(tmp_path / 'site')!r})"
    find = "from importlib.util import find_spec; print(find_spec('progeo').origin)"
    command = [sys.executable, "-S", "-c", f"{add}; {find}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == str(checkout / "progeo/__init__.py")
