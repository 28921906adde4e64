"""Commands that are told to end: one sentence and a status, nothing half written, and what was done is used again."""

import signal

import pytest
from running import files_in, kill_before

from progeo.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_evaluation_continues(number, city, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    where = ["--folder", city / "val", "--descriptor_cache", cache, "--num_workers", 1]
    said = kill_before("out/recalls.csv", "evaluate.py", "thumbnail", *where, "--out", out, number=number)
    assert said.endswith("progeo evaluate: interrupted: the same command continues with what is done.\n")
    assert "Traceback" not in said
    assert files_in(out) == {"recalls.json"}  # which are written in this order
    rows = {path: path.stat().st_mtime_ns for path in cache.rglob("rows_*")}
    assert len(rows) == 2
    assert not list(tmp_path.rglob(".*"))
    main(["evaluate", "thumbnail", *map(str, where), "--out", str(out)])
    written = {"recalls.json", "recalls.csv", "recalls.md", "predictions.csv", "report.html"}
    assert files_in(out) == written | {"environment.json", "reproduce.sh"}
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("rows_*")} == rows


@pytest.mark.slow
def test_an_extraction_that_is_interrupted_leaves_no_half_file(city, tmp_path):
    cache = tmp_path / "cache"
    where = ["--folder", city / "val", "--descriptor_cache", cache, "--num_workers", 1, "--out", tmp_path / "out"]
    kill_before("/rows_00000.npy", "evaluate.py", "thumbnail", *where, number=signal.SIGTERM)
    names = {path.name for path in cache.rglob("*") if path.is_file()}
    assert names == {"catalogue.arrow", "description.json", "files.npy"}
