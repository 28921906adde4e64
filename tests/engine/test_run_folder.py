import json

import pytest
import yaml

from progeo.engine.run_folder import RunFolder, check_run, is_done, open_run

SETTINGS = {"seed": 0, "cells": {"cell_side_m": 10}, "epochs": 5}


def opened(path, settings, **how):
    run = RunFolder(path)
    check_run(run, settings, **how)
    open_run(run, settings)
    return run


def test_a_new_run_holds_its_settings_its_environment_and_a_log(tmp_path):
    run = opened(tmp_path / "run", SETTINGS, resume=False)
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "environment.json", "log.txt"}
    assert yaml.safe_load(run.config.read_text()) == SETTINGS
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["packages"]["torch"]


def test_a_folder_with_a_run_is_opened_only_to_go_on(tmp_path):
    opened(tmp_path, SETTINGS, resume=False)
    with pytest.raises(ValueError, match="already holds a run: set `resume` to resume it, or name another `out`"):
        opened(tmp_path, SETTINGS, resume=False)
    opened(tmp_path, SETTINGS, resume=True)


def test_a_run_does_not_go_on_with_other_settings_unless_they_may_change_or_it_left_no_checkpoint(tmp_path):
    changed = {**SETTINGS, "cells": {"cell_side_m": 20}, "epochs": 9}
    opened(tmp_path, changed, resume=False)
    (tmp_path / "checkpoints/.unfinished-epoch_000001_step_000000").mkdir(parents=True)
    opened(tmp_path, SETTINGS, resume=True)
    (tmp_path / "checkpoints/epoch_000001_step_000000").mkdir()
    with pytest.raises(ValueError, match=r"other settings: cells.cell_side_m was 10, now 20\. Name another `out`"):
        opened(tmp_path, changed, resume=True, may_change=("epochs",))
    opened(tmp_path, {**SETTINGS, "epochs": 9}, resume=True, may_change=("epochs",))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["epochs"] == 9


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ({"cells": {"cell_side_m": 10, "options": {"power": 3}}}, r"cells\.options\.power was 3, now None"),
        ({"pull": {"weight": 0.5}}, r"not known now: pull\.weight\. Name the `plugin` that adds them"),
    ],
)
def test_a_run_does_not_go_on_without_a_setting_that_it_had(tmp_path, before, sentence):
    opened(tmp_path, {**SETTINGS, **before}, resume=False)
    (tmp_path / "checkpoints/epoch_000001_step_000000").mkdir(parents=True)
    with pytest.raises(ValueError, match=sentence):
        opened(tmp_path, SETTINGS, resume=True)


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        ({}, {}),
        ({"cells": {"cell_side_m": 10, "groups": 2}}, {"cells.groups": 1}),
        ({"most": 3}, {"most": 7}),
        ({"epochs": 9}, {"epochs": 5}),
    ],
)
def test_a_run_from_before_a_setting_had_its_default_and_one_under_a_former_name_its_value(tmp_path, now, changed):
    opened(tmp_path, {**SETTINGS, "max": 7}, resume=False)
    (tmp_path / "checkpoints/epoch_000001_step_000000").mkdir(parents=True)
    defaults = {"seed": 1, "cells.cell_side_m": 20, "cells.groups": 1, "most": 5}
    settings = {**SETTINGS, "most": 7, "cells": {"cell_side_m": 10, "groups": 1}, **now}
    found = []
    opened(
        tmp_path,
        settings,
        resume=True,
        defaults=defaults,
        renamed={"max": "most"},
        may_change=("cells.groups", "most", "epochs"),
        check=lambda run, former: found.append(former),
    )
    assert found == [changed]


@pytest.mark.parametrize(
    ("names", "begun"),
    [
        ([], False),
        (["epoch_000001_step_000010/"], True),
        (["epoch_1000000_step_1000000/"], True),
        (["group_0/epoch_000001_step_000000/"], True),
        (["group_11.safetensors"], True),
        ([".DS_Store", "good/", "before_lr_change/", "epoch_000001_step_000010 copy/", "._group_0.safetensors"], False),
        (["epoch_000001_step_000010", "epoch_000001/", "group_0/", "group_0/mine/", "group_00.safetensors"], False),
        (
            ["group_0/.unfinished-epoch_000001_step_000000/", "group_1.safetensors.bak", "group_1 (1).safetensors"],
            False,
        ),
    ],
)
def test_only_what_the_program_wrote_is_a_state_to_go_on_from(tmp_path, names, begun):
    for name in names:
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    assert RunFolder(tmp_path).begun is begun


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", r"missing the field epoch in \[1\]"),
        ('{"epoch": "1"}', r"expected int, got '1' in \[1\].epoch"),
        ('{"epoch": 1, "group": -1}', r"expected int >= 0, got -1 in \[1\].group"),
        ('{"epoch": 1, "step": 0}', r"expected int >= 1, got 0 in \[1\].step"),
        ("[1]", r"expected object, got \[1\] in \[1\]"),
        ("\udcff", "a line is not JSON"),
    ],
)
def test_a_line_that_is_not_of_an_epoch_is_refused(line, words, tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"epoch": 1, "loss": 0.5})
    with run.metrics.open("a", errors="surrogateescape") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(ValueError, match=rf"metrics.jsonl .*{words}.*Remove that line"):
        run.read_metrics()


@pytest.mark.parametrize(
    ("row", "done"),
    [
        ({"epoch": 2}, True),
        ({"epoch": 3}, False),
        ({"epoch": 2, "step": 20, "steps_per_epoch": 10}, True),
        ({"epoch": 3, "step": 24, "steps_per_epoch": 10}, True),
        ({"epoch": 3, "step": 25, "steps_per_epoch": 10}, False),
    ],
)
def test_lines_of_two_epochs_and_four_steps_are_told_from_later_ones(row, done):
    assert is_done(row, 2, 4) is done


def test_a_line_of_steps_that_lacks_their_number_per_epoch_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"epoch": 1, "step": 2}, durable=False)
    with pytest.raises(ValueError, match="line of another kind"):
        run.keep_metrics(lambda row: is_done(row, 1, 0))


def test_metrics_of_what_is_run_again_are_dropped(tmp_path):
    run = opened(tmp_path, SETTINGS, resume=False)
    for epoch in range(4):
        run.append_metrics({"epoch": epoch, "loss": 0.5})
    with run.metrics.open("a") as stream:
        stream.write('{"epoch": 4, "lo')  # the disk was full
    run.keep_metrics(lambda row: row["epoch"] <= 1)
    run.append_metrics({"epoch": 2, "loss": 0.25})
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        {"epoch": 0, "loss": 0.5},
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": 0.25},
    ]
