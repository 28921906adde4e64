"""What is installed is complete: the wheel, built from the source archive, runs the demo in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(tmp_path):
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    files = (path for path in (ROOT / "progeo").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    ours = {path.relative_to(ROOT).as_posix() for path in files}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("progeo/")} == ours
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=empty, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("-c", "import progeo; print(progeo.__file__)").strip() == str(site / "progeo/__init__.py")
    shown = run("-m", "progeo", "demo")
    assert "encoder after stage 2" in shown and "means of the places" in shown
    assert {path.name for path in empty.iterdir()} == {"demo", "runs"}
    assert (empty / "demo/evaluation/trained/report.html").is_file()
