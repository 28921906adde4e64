import json
import math

import pytest
from written_runs import write_run, write_stage

from progeo.runs.curves import averaged_in_words, charts_of
from progeo.runs.reading import MAX_POINTS, final_of_groups, lines, read_stages, short_names


def drawn(chart):
    return {series.name: (list(series.x), list(series.y)) for series in chart.series}


def charts(stages):
    return {chart.title: chart for chart in charts_of(stages)}


def test_a_run_has_its_stages_and_a_stage_is_read_alone(tmp_path):
    run = write_run(tmp_path / "a")
    assert [(each.run, each.title) for each in read_stages([run])] == [
        ("a", "Stage 1, prompts"),
        ("a", "Stage 2, encoder"),
    ]
    (stage,) = read_stages([run / "stage2"])
    assert (stage.run, stage.planned_epochs, stage.groups) == ("stage2", 3, [])
    assert stage.losses == ["loss", "cosface", "image_text"]
    assert stage.rates == ["encoder_learning_rate", "head_learning_rate"]
    assert stage.measures == ["val R@1", "val R@5"]


def test_curves_of_two_runs_are_over_one_another(tmp_path):
    one, two = read_stages([write_run(tmp_path / name, gain=gain) / "stage2" for name, gain in (("a", 0), ("b", 5.0))])
    found = charts([one, two])
    assert list(found) == [
        *("Loss", "Cosface", "Image text", "Encoder learning rate", "Head learning rate"),
        *("R@1", "Throughput", "Memory of the process"),
    ]
    steps = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    loss = (steps, [6.0, 6.0, 3.0, 3.0, 2.0, 2.0])
    assert drawn(found["Loss"]) == {"a/stage2": loss, "b/stage2": loss}
    assert drawn(found["R@1"]) == {
        "a/stage2": ([0.0, 1.0, 2.0, 3.0], [90.0, 40.0, 55.0, 55.0]),
        "b/stage2": ([0.0, 1.0, 2.0, 3.0], [90.0, 40.0, 60.0, 55.0]),
    }
    assert drawn(found["Throughput"])["a/stage2"] == (steps, [102.0, 104.0, 106.0, 108.0, 110.0, 112.0])
    assert drawn(found["Memory of the process"])["a/stage2"][1] == pytest.approx([3.0, 1.0] * 3)


def test_a_single_run_shows_all_its_measures(tmp_path):
    (stage,) = read_stages([write_run(tmp_path / "a") / "stage2"])
    assert list(drawn(charts([stage])["Validation"])) == ["R@1", "R@5"]


def test_few_groups_have_lines_of_their_own_and_many_one_of_means(tmp_path):
    (stage,) = read_stages([write_run(tmp_path / "a") / "stage1"])
    found = drawn(charts([stage])["Loss"])
    assert found == {"stage1, group 1": ([2.0, 4.0], [4.0, 2.0]), "stage1, group 2": ([2.0, 4.0], [3.0, 1.0])}
    rows = [{"group": group, "epoch": 1, "step": 5, "steps_per_epoch": 5, "loss": group} for group in range(9)]
    (many,) = read_stages([write_stage(tmp_path / "many", {"prompts": {"epochs": 1}}, rows)])
    assert drawn(charts([many])["Loss"]) == {"many, mean of 9 groups": ([5.0], [4.0])}


def test_a_run_of_an_earlier_version_shows_its_epochs(tmp_path):
    stages = read_stages([write_run(tmp_path / "new") / "stage2", write_run(tmp_path / "old", rows_of_steps=False)])
    old = stages[2]
    found = charts([old])
    assert list(found) == ["Loss", "Cosface", "Image text", "Validation"]
    assert (found["Loss"].x_label, drawn(found["Loss"])) == ("epoch", {"old": ([1.0, 2.0, 3.0], [6.0, 3.0, 2.0])})
    both = [chart for chart in charts_of([stages[0], old]) if chart.title == "Loss"]
    assert [(chart.x_label, [len(each.x) for each in chart.series]) for chart in both] == [
        ("step", [6, 0]),
        ("epoch", [3, 3]),
    ]


def test_of_many_rows_neighbors_are_averaged_and_it_is_said(tmp_path):
    count = 2 * MAX_POINTS
    rows = [{"epoch": 1, "step": step, "steps_per_epoch": count, "loss": step % 2} for step in range(1, count + 1)]
    stages = read_stages([write_stage(tmp_path / "a", {"training": {"epochs": 1}}, rows)])
    (line,) = lines(stages, "loss")
    assert (len(line.x), line.x[:2], set(line.y)) == (MAX_POINTS, [1.5, 3.5], {0.5})
    assert averaged_in_words(stages) == (
        "Lines have at most 300 points: the longest has 600 rows, and each point is a mean of them."
    )
    (few,) = read_stages([write_stage(tmp_path / "b", {}, rows[:MAX_POINTS])])
    assert averaged_in_words([few]) == ""


def test_what_is_no_finite_number_is_not_drawn(tmp_path):
    values = (2.0, math.nan, math.inf, "3", None, True, 10**400, 4.0)
    rows = [{"epoch": 1, "step": 1 + index, "steps_per_epoch": 9, "loss": each} for index, each in enumerate(values)]
    (line,) = lines(read_stages([write_stage(tmp_path / "a", {}, rows)]), "loss")
    assert (line.x, line.y) == ([1.0, 8.0], [2.0, 4.0])


def test_the_result_of_a_group_is_that_of_its_file_or_of_its_last_epoch(tmp_path):
    run = write_run(tmp_path / "a")
    (stage,) = read_stages([run / "stage1"])
    assert {group: row["image_to_text_accuracy"] for group, row in final_of_groups(stage).items()} == {0: 60, 1: 70}
    (run / "stage1/prompts.json").write_text(json.dumps({"groups": [{"loss": 0.5}, {"loss": 0.25}]}))
    assert [row["loss"] for row in final_of_groups(stage).values()] == [0.5, 0.25]
    (run / "stage1/prompts.json").write_text("[]")
    with pytest.raises(ValueError, match=r"prompts\.json"):
        final_of_groups(stage)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a"], ["a"]),
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/stage2", "runs/b/stage2"], ["a/stage2", "b/stage2"]),
        (["x/a/stage2", "y/a/stage2", "y/b"], ["x/a/stage2", "y/a/stage2", "b"]),
    ],
)
def test_runs_are_named_by_what_tells_them_apart(paths, names, tmp_path):
    assert short_names([tmp_path / path for path in paths]) == names
