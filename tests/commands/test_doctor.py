"""`progeo doctor`."""

import json
import sys

import pytest

from progeo.cli import main

QUICK = ("doctor", "--network", "false", "--backbones", "tiny-vit", "--image_sizes", "64", "--batch_sizes", "2", "4")


def test_all_that_is_found_is_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(QUICK)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("progeo ") and f"Python {sys.version.split()[0]}" in shown[0]
    sections = [line for line in shown if line and not line.startswith(" ")][1:]
    assert sections == [
        "packages",
        "devices",
        "disks",
        "extras, installed by pip install 'progeo[NAME]'",
        "memory of training, float32",
    ]
    (extra,) = (line for line in shown if line.startswith("  test "))
    _, state = extra.split("make test and make lint")  # the list of missing packages is long, so it comes last
    assert state.split()[0] in ("installed", "missing:")
    head, row, note = shown[-3:]
    assert head.split() == ["backbone", "pixels", "batch", "2", "batch", "4", "largest", "batch"]
    assert row.split()[:2] == ["tiny-vit", "64"] and "in parentheses" in note
    assert not any(tmp_path.iterdir())


def test_as_json_every_part_is_an_object(capsys):
    main([*QUICK, "--mixed_precision", "bf16", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == [] and found["hubs"] == [] and found["mixed_precision"] == "bf16"
    assert {each["name"] for each in found["packages"]} >= {"torch", "numpy"}
    assert found["devices"][-1]["name"] == "cpu"
    assert {"this folder", "descriptor cache"} <= {each["what"] for each in found["disks"]}
    assert found["fits"][0]["max_batch"] > 4
    assert list(found["fits"][0]["bytes_by_batch"]) == ["2", "4"]


def test_what_is_broken_ends_with_status_1_after_everything_else(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)  # as Python marks a module that cannot be imported
    with pytest.raises(SystemExit) as stop:
        main(QUICK)
    assert str(stop.value.code).startswith("progeo doctor: error: h5py cannot be imported: ")
    shown = capsys.readouterr().out
    assert "\nproblems\n  h5py cannot be imported: " in shown
    assert "memory of training" not in shown and "\ndisks\n" in shown
