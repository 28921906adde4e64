"""The script beside results, run by an interpreter that only prints what it is asked for."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from progeo.engine.environment import giving, write_origin, write_script

PRINTING = """#!/bin/sh
pwd
for word; do printf '%s|' "$word"; done
echo
[ "$1" != -c ] || cat
"""
WORDS = ["evaluate", "my encoder", "--folder", "it's", "--out", "results/a"]
HARD_WORDS = ["evaluate", "a\nb", '$HOME `ls` \\ "x"', "straße 東", "caf\udce9", "--out", "a"]
"""Words that a shell or an encoding could change, with a byte that is no UTF-8."""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "python").write_text(PRINTING)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(script, *words, cwd, **variables):
    environment = {**os.environ, "PYTHON": str(Path.cwd().parent / "python"), **variables}
    result = subprocess.run(["sh", str(script), *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.stderr == ""
    return result.stdout.splitlines()


def test_the_script_runs_the_command_as_given_in_its_folder_after_a_check_of_the_data(work):
    with giving(WORDS):
        write_origin(Path("results/a"), "evaluate", {"it's": {"images": 3}})
    folder, check, _, data, again, command = run("a/reproduce.sh", cwd=work / "results")
    assert (folder, again) == (str(work), str(work))
    assert check.startswith("-c|import json, sys")
    assert json.loads(data) == {"it's": {"images": 3}}
    assert command == "-m|progeo|evaluate|my encoder|--folder|it's|--out|results/a|--out|results/a_again|"


def test_another_output_folder_and_more_options_may_follow(work):
    with giving(WORDS):
        write_origin(work / "results/a", "evaluate", {})
    (_, command) = run("results/a/reproduce.sh", "b c", "--num_workers", "0", cwd=work)
    assert command.endswith("|--out|results/a|--out|b c|--num_workers|0|")


def test_a_python_without_progeo_is_named_with_what_to_do(work):
    (work.parent / "python").write_text("#!/bin/sh\necho No module named progeo >&2\nexit 1\n")
    with giving(WORDS):
        write_origin(work / "a", "evaluate", {"city": {"images": 3}})
    python = str(work.parent / "python")
    result = subprocess.run(
        ["sh", "a/reproduce.sh"], env={**os.environ, "PYTHON": python}, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"{python} does not run progeo: activate the environment that has it, or name its interpreter in PYTHON.\n"
    )


def test_results_outside_of_the_folder_do_not_change_it(work):
    with giving(WORDS):
        write_origin(work.parent / "elsewhere", "evaluate", {})
    assert run(work.parent / "elsewhere/reproduce.sh", cwd=work)[0] == str(work)
    assert "# Run it in the folder that" in (work.parent / "elsewhere/reproduce.sh").read_text()


def test_words_arrive_as_they_were_given(work):
    with giving(HARD_WORDS):
        write_origin(Path("a"), "evaluate", {})
    (work.parent / "python").write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > "{work}/arrived"\n')
    run("a/reproduce.sh", cwd=work)
    arrived = os.fsdecode((work / "arrived").read_bytes()).split("\0")
    assert arrived == ["-m", "progeo", *HARD_WORDS, "--out", "a_again", ""]
    stored = json.loads((work / "a/environment.json").read_text(encoding="utf-8"))
    assert stored["command"][1:6] == [*HARD_WORDS[:4], "caf\\udce9"]


def test_the_script_goes_to_the_folder_above_it_wherever_the_shell_looks_for_folders(work):
    (work / "elsewhere/a").mkdir(parents=True)
    with giving(WORDS):
        write_origin(work / "a", "evaluate", {})
    assert run("a/reproduce.sh", cwd=work, CDPATH=str(work / "elsewhere"))[0] == str(work)


@pytest.mark.parametrize(("on_cpu", "device"), [("true", "true"), ("false", "")])
def test_several_processes_are_launched_again_on_the_same_device(on_cpu, device, work, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_USE_CPU", on_cpu)
    with giving(WORDS):
        write_origin(work / "a", "evaluate", {})
    (work.parent / "python").write_text(f"{PRINTING}echo $ACCELERATE_USE_CPU\n")
    (_, command, *said) = run("a/reproduce.sh", cwd=work, ACCELERATE_USE_CPU="")
    assert command.startswith("-m|torch.distributed.run|--standalone|--nproc_per_node|4|-m|progeo|evaluate|")
    assert said == [device]


def test_what_a_command_found_in_its_output_folder_is_named_for_another(work):
    with giving(["train", "encoder", "--out", "a"]):
        write_script(work / "a", "train", Path("a"), {}, inputs=["--text.prompts", "a/stage1"])
    (_, command) = run("a/reproduce.sh", cwd=work)
    assert command == "-m|progeo|train|encoder|--out|a|--text.prompts|a/stage1|--out|a_again|"


def test_the_environment_has_the_command_the_data_and_versions(work):
    with giving(WORDS):
        write_origin(work / "a", "evaluate", {"city": {"images": 3}})
    found = json.loads((work / "a/environment.json").read_text())
    assert found["command"] == ["progeo", *WORDS]
    assert found["data"] == {"city": {"images": 3}}
    script = (work / "a/reproduce.sh").read_text()
    assert f"torch {found['packages']['torch']}" in script
    assert f"Python {found['python']}" in script


def test_what_another_command_made_on_its_way_has_no_script(work):
    with giving(["demo"]):
        write_origin(work / "a", "evaluate", {})
    write_origin(work / "b", "evaluate", {})
    assert {path.name for path in work.rglob("*") if path.is_file()} == {"environment.json"}
