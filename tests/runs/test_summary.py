import re

from written_runs import write_run, write_stage

from progeo.runs.reading import read_stages
from progeo.runs.summary import HEADER, Summaries, different_settings, summarize


def test_a_stage_is_summarized_by_its_best_epoch_after_training_began(tmp_path):
    first, second = map(summarize, read_stages([write_run(tmp_path / "a")]))
    assert (second.measure, second.best, second.best_epoch) == ("val R@1", 55.0, 2)
    assert (second.epochs, second.planned_epochs, second.num_groups) == (3, 3, 0)
    assert (second.loss, second.images_per_s, second.memory_bytes) == (2.0, 107.0, 3e9)
    assert (first.measure, first.best, first.best_epoch) == ("image_to_text_accuracy", 65.0, None)
    assert (first.epochs, first.planned_epochs, first.num_groups, first.loss) == (4, 4, 2, 1.5)
    lines = str(Summaries([first, second])).splitlines()
    assert [re.split(r" {2,}", line) for line in lines] == [
        [*HEADER],
        [
            *("a", "Stage 1, prompts", "4/4 in 2 groups", "image to text accuracy 65.0, mean of the groups"),
            *("1.5", "103", "3.00 GB"),
        ],
        ["a", "Stage 2, encoder", "3/3", "val R@1 55.0, epoch 2", "2", "107", "3.00 GB"],
    ]
    assert lines[0].index("loss") == lines[1].index("1.5 ")


def test_what_is_not_known_yet_has_a_dash(tmp_path):
    step = {"epoch": 1, "step": 50, "steps_per_epoch": 100, "loss": 7.25}
    empty, begun = (
        write_stage(tmp_path / name, {"training": {"epochs": 9}}, rows) for name, rows in (("a", []), ("b", [step]))
    )
    first, second = map(summarize, read_stages([empty, begun]))
    assert first.cells == ["a", "Stage 2, encoder", "0/9", "-", "-", "-", "-"]
    assert second.cells == ["b", "Stage 2, encoder", "0/9", "-", "7.25", "-", "-"]


def test_settings_that_differ_are_those_of_other_texts(tmp_path):
    runs = [
        write_run(tmp_path / name, settings=settings) / "stage2"
        for name, settings in (
            ("a", {"compile": True, "patience": None}),
            ("b", {"compile": False, "patience": 3}),
            ("c", {}),
        )
    ]
    assert different_settings(read_stages(runs)) == {
        "data.train_folder": ["/data/a/train", "/data/b/train", "/data/c/train"],
        "training.compile": ["true", "false", "-"],
        "training.patience": ["null", "3", "-"],
    }
