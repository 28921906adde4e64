"""Runs as a table, a page and a picture, from a run of both stages."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from running import files_in

from progeo.cli import main
from progeo.locks import locked


@pytest.fixture
def printed(capsys):
    """Run the command and return what it printed."""

    def run(*words):
        main(["runs", "show", *map(str, words), "--quiet"])
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_a_run_is_a_table_and_a_file_of_each_kind(run, printed, tmp_path):
    table = printed(run).splitlines()
    assert [line.split("  ")[0] for line in table] == ["run", "run", "run"]
    assert "4/4 in 2 groups" in table[1] and "3/3" in table[2]
    for name in ("a.html", "a.png", "a.svg"):
        assert printed(run, "--out", tmp_path / name).splitlines() == table
    assert files_in(tmp_path) == {"a.html", "a.png", "a.svg"}
    page = (tmp_path / "a.html").read_text()
    assert 'http-equiv="refresh"' not in page
    assert str(run.parent) not in page
    printed(run, "--out", tmp_path / "a.html", "--show_paths")
    assert str(run.parent) in (tmp_path / "a.html").read_text()


def test_the_table_is_json_if_asked_for(run, printed):
    (stage,) = json.loads(printed(run / "stage2", "--json"))["stages"]
    rows = [json.loads(line) for line in (run / "stage2/metrics.jsonl").read_text().splitlines()]
    assert stage["best"] == max(row["val R@1"] for row in rows[1:])
    assert stage["images_per_s"] is None  # three epochs of two steps


def test_a_run_that_nobody_trains_is_followed_to_its_last_row(run, printed, tmp_path):
    lines = printed(run / "stage2", "--follow").splitlines()
    assert [", ".join(line.split(", ")[1:3]) for line in lines[:4]] == [
        f"stage 2, encoder: epoch {epoch}" for epoch in range(4)
    ]
    assert lines[4].split() == ["run", "stage", "epochs", "best", "loss", "images/s", "memory"]
    assert len(printed(run / "stage2", "--follow", "--out", tmp_path / "a.html").splitlines()) == 2
    assert 'http-equiv="refresh"' not in (tmp_path / "a.html").read_text()


def test_ctrl_c_ends_following_with_a_page_that_does_not_reload(run, printed, tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what it runs beside it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    shutil.copytree(run / "stage2", tmp_path / "run")
    page, reloads = tmp_path / "a.html", []

    def interrupt():
        while not page.exists():
            time.sleep(0.05)
        reloads.append('http-equiv="refresh"' in page.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    with locked(tmp_path / "run"):
        threading.Thread(target=interrupt, daemon=True).start()
        assert len(printed(tmp_path / "run", "--follow", "--out", page).splitlines()) == 2
    assert reloads == [True]
    assert 'http-equiv="refresh"' not in page.read_text()


def sentence(*words):
    with pytest.raises(SystemExit) as stop:
        main(["runs", "show", *map(str, words)])
    return str(stop.value.code)


def test_mistakes_end_in_a_sentence(run, tmp_path):
    assert "Name the runs to show" in sentence("--runs", "[]")
    assert f"{tmp_path} holds no run: name a folder that `progeo train --out` made" in sentence(tmp_path)
    assert "Name each run once" in sentence(run, run)
    assert "--out" in (said := sentence(run, "--out", tmp_path / "a.pdf")) and "must end with .html, .png, .svg" in said


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", "{}\n", "metrics.jsonl is not as progeo writes it: missing the field epoch"),
        ("metrics.jsonl", "x\n", "metrics.jsonl is corrupt: a line is not JSON"),
        ("config.yaml", "[", "config.yaml does not hold the settings of the run"),
        ("prompts.json", "[]", "prompts.json is not as progeo writes it"),
    ],
)
def test_a_corrupt_file_of_a_run_is_named(run, tmp_path, name, content, words):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    (tmp_path / "stage1" / name).write_text(content)
    assert words in sentence(tmp_path)
