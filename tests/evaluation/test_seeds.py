"""Runs of one configuration over their seeds, with means and deviations that are computed by hand."""

import csv
import json

import pytest

from progeo.evaluation.comparison import Compared
from progeo.evaluation.seeds import Configuration, configurations_of, over_seeds, write_seeds


def run(seed, **changed):
    settings = {"seed": seed, "out": f"runs/{seed}", "text.prompts": f"runs/{seed}/stage1", "training.epochs": 5}
    settings["data.license"] = f"told in run {seed}"
    return {f"settings.{name}": value for name, value in (settings | changed).items()} | {"epoch": 3 + seed}


def test_runs_belong_together_whose_settings_differ_in_the_seed_only():
    provenances = {
        "runs/a_seed0/stage2": run(0),
        "thumbnail": {},
        "runs/b_seed0/stage2": run(0, **{"training.epochs": 9}),
        "runs/a_seed1/stage2": run(1),
        "runs/a_seed12/stage2": run(12),
        "other": {"kind": "CosPlace"},
        "small": run(2) | {"reduced.dim": 8},
    }
    assert configurations_of(provenances) == [
        Configuration(
            "runs/a_seed*/stage2", ("runs/a_seed0/stage2", "runs/a_seed1/stage2", "runs/a_seed12/stage2"), (0, 1, 12)
        ),
        Configuration("thumbnail", ("thumbnail",), ()),
        Configuration("runs/b_seed0/stage2", ("runs/b_seed0/stage2",), (0,)),
        Configuration("other", ("other",), ()),
        Configuration("small", ("small",), (2,)),
    ]


def test_runs_whose_prompts_were_learned_otherwise_are_no_seeds_of_one_configuration():
    def prompts(seed, length):
        return {"stage1.seed": seed, "stage1.out": f"runs/{seed}", "stage1.prompts.context_length": length}

    provenances = {name: run(seed) | prompts(seed, 4) for seed, name in enumerate("ab")}
    assert configurations_of(provenances)[0].encoders == ("a", "b")
    with pytest.raises(ValueError, match=r"a and b differ in stage1\.prompts\.context_length\."):
        configurations_of(provenances | {"b": run(1) | prompts(1, 16)})
    # Those of b are not known.
    assert configurations_of(provenances | {"b": run(1)})[0].encoders == ("a", "b")


@pytest.mark.parametrize(
    ("names", "common"),
    [(("a1", "a11"), "a1*"), (("a0x", "a10x"), "a*0x"), (("x", "y"), "x, y"), (("ab", "b"), "ab, b")],
)
def test_a_configuration_is_named_by_what_its_runs_have_in_common(names, common):
    (found,) = configurations_of({name: run(seed) for seed, name in enumerate(names)})
    assert found.name == common


def test_two_configurations_never_have_the_same_name():
    provenances = {"a1": run(0), "a2": run(1), "a3": run(0, out="x", model="b"), "a4": run(1, model="b")}
    assert [each.name for each in configurations_of(provenances)] == ["a1, a2", "a3, a4"]


@pytest.mark.parametrize(
    ("provenances", "words"),
    [
        (
            {"a": run(0), "b": run(1, **{"training.epochs": 6, "model": "x"}), "c": run(2, **{"training.epochs": 7})},
            "`seeds` needs runs that differ in their seed only: a and c differ in training.epochs.",
        ),
        ({"a": run(0), "thumbnail": {}}, "of a, thumbnail, 1 know the settings that they were trained with."),
        ({"a": run(0), "b": run(0)}, "a, b have the seeds 0, 0: name one of each seed."),
    ],
)
def test_what_is_no_set_of_seeds_is_refused(provenances, words):
    with pytest.raises(ValueError, match="`seeds`") as raised:
        configurations_of(provenances)
    assert str(raised.value).endswith(words)


def compared(encoder, recalls, *, condition="all"):
    return Compared("city", encoder, 8, None, 1.0, recalls, {}, 10, condition=condition)


RUNS = Configuration("a*", ("a0", "a1", "a2"), (0, 1, 7))
ALONE = Configuration("b", ("b",), ())
ROWS = [
    compared("a0", {1: 60.0, 5: 90.0}),
    compared("b", {1: 50.0, 5: 70.0}),
    compared("a1", {1: 62.0, 5: 90.0}),
    compared("a2", {1: 67.0, 5: 90.0}),
]


def test_mean_and_sample_deviation_of_each_recall():
    runs, alone = over_seeds(ROWS, [RUNS, ALONE])
    assert runs.recalls == {1: (60, 62, 67), 5: (90, 90, 90)}
    assert (runs.mean(1), runs.std(1)) == (63, pytest.approx(13**0.5))  # (9 + 1 + 16) / 2
    assert (runs.mean(5), runs.std(5)) == (90, 0)
    assert (alone.mean(1), alone.std(1)) == (50, None)


def test_each_condition_has_a_row(tmp_path):
    night = [compared(row.encoder, {1: row.recalls[1] / 2, 5: 50.0}, condition="night") for row in ROWS]
    found = over_seeds([*ROWS, *night], [RUNS, ALONE])
    assert [(each.condition, each.configuration.name, each.mean(1)) for each in found] == [
        *(("all", "a*", 63), ("all", "b", 50)),
        *(("night", "a*", 31.5), ("night", "b", 25)),
    ]
    assert write_seeds(tmp_path, found).splitlines()[0].startswith("| condition | configuration | seeds |")


def test_the_files_have_mean_deviation_and_each_value(tmp_path):
    text = write_seeds(tmp_path, over_seeds(ROWS, [RUNS, ALONE]), latex=True)
    assert text == (tmp_path / "seeds.md").read_text(encoding="utf-8")
    assert text.splitlines()[:4] == [
        "| configuration | seeds | R@1 | R@5 | R@1 of each seed |",
        "| --- | --- | ---: | ---: | ---: |",
        "| a* | 0, 1, 7 | 63.0 ± 3.6 | 90.0 ± 0.0 | 60.0, 62.0, 67.0 |",
        "| b |  | 50.0 | 70.0 | 50.0 |",
    ]
    with (tmp_path / "seeds.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [rows[0][name] for name in ("configuration", "seeds", "measure", "mean", "std", "values")] == [
        *("a*", "0 1 7", "R@1", "63.00", "3.61", "60.00 62.00 67.00")
    ]
    assert [row["std"] for row in rows] == ["3.61", "0.00", "", ""]
    stored = json.loads((tmp_path / "seeds.json").read_text())
    assert stored[0]["recalls"]["R@1"] == {"mean": 63, "std": pytest.approx(3.605551), "values": [60, 62, 67]}
    lines = (tmp_path / "seeds.tex").read_text().splitlines()
    assert r"a{*} & 3 & 63.0 $\pm$ 3.6 & 90.0 $\pm$ 0.0 \\" in lines
    assert r"b & 1 & 50.0 & 70.0 \\" in lines
