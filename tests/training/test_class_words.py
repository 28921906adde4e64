"""Names of places in the prompts of stage 1, through the real command."""

import csv
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from progeo.cli import main
from progeo.models.backbones.clips import load_clip
from progeo.models.prompts import PromptLearner
from progeo.places.catalogue import read_catalogue

WORDS = ("--prompts.initial_words", "a photo", "--prompts.context_length", 2, "--prompts.class_token_position", "front")


@pytest.fixture(scope="module")
def names(city, tmp_path_factory):
    """A table with the street of each image, which is that of its east, but for two, which have no name."""
    file = tmp_path_factory.mktemp("names") / "names.csv"
    write(file, city, lambda column: "" if column in (6, 9) else f'Rue "{column}", Zürich')
    return file


def write(file, city, name):
    catalogue = read_catalogue(city / "train")
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "street"])
        first = catalogue.east.min() // 10
        for row, east in enumerate(catalogue.east.tolist()):
            rows.writerow([catalogue.name(row), name(int(east // 10 - first))])


def stage_1(config, *arguments):
    main(["train", "prompts", "--config", str(config), *map(str, arguments)])


def failure(config, *arguments):
    with pytest.raises(SystemExit) as stop:
        stage_1(config, *arguments)
    return str(stop.value.code)


def prompts_of(run):
    return (run / "stage1/prompts.safetensors").read_bytes()


def test_places_share_a_context_and_differ_by_the_names_of_their_streets(config, names, tmp_path, capsys):
    words = (
        *WORDS,
        "--prompts.shared_context",
        "--prompts.class_names",
        names,
        "--prompts.class_names_column",
        "street",
    )
    stage_1(config, *words, "--out", tmp_path / "whole")
    folder = tmp_path / "whole/stage1"
    description, tensors = json.loads((folder / "prompts.json").read_text()), load_file(folder / "prompts.safetensors")
    first = min(int(each) for index in (0, 1) for each in tensors[f"group_{index}.class_ids"][:, 0].tolist()) // 10
    settings = {name: description[f"{name}"] for name in ("class_names", "class_names_column", "class_token_position")}
    assert settings == {"class_names": str(names), "class_names_column": "street", "class_token_position": "front"}
    assert (description["shared_context"], description["initial_words"]) == (True, "a photo")
    clip = load_clip("tiny-resnet", "random")
    for index, of_group in enumerate(description["class_words"]):
        columns = [int(east) // 10 - first for east in tensors[f"group_{index}.class_ids"][:, 0].tolist()]
        assert of_group == ["" if column in (6, 9) else f'Rue "{column}", Zürich' for column in columns]
        learner = PromptLearner(clip, len(of_group), context_length=2, words=of_group, position="front", shared=True)
        learner.context.data.copy_(tensors[f"group_{index}.context"])
        with torch.no_grad():
            features = learner(torch.arange(len(of_group)))
        torch.testing.assert_close(features, tensors[f"group_{index}.text_features"], rtol=1e-4, atol=1e-5)
    log = (folder / "log.txt").read_text()
    assert re.search(rf"{names}: words for \d of 8 classes, \d different; the others have none", log)
    assert re.search(r"group 1: its 3 classes have 2 different texts, as classes of the same words share", log)
    main(["prompts", "show", str(folder), "--num_words", "1"])
    assert re.search(r'^class \d+,\d+,\d+ of group 1: (Rue "\d+", Zürich|no words)$', capsys.readouterr().out, re.M)
    with (folder / "prompts.csv").open(encoding="utf-8") as stream:
        shown = list(csv.DictReader(stream))
    assert len(shown) == 2 * sum(map(len, description["class_words"]))
    assert [row["class_words"] for row in shown[::2]] == [text for part in description["class_words"] for text in part]
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("checkpoints/group_1.safetensors", "prompts.safetensors", "prompts.json"):
        (tmp_path / "killed/stage1" / name).unlink()
    moved = tmp_path / "moved.csv"
    shutil.copy(names, moved)
    again = (*words, "--out", tmp_path / "killed", "--resume", "true", "--prompts.class_names", moved)
    moved.write_text(names.read_text().replace("Rue", "Via"))
    assert "was begun with other words of its classes: name the table that it was" in failure(config, *again)
    assert "prompts.shared_context was True, now False" in failure(config, *again, "--prompts.shared_context", "false")
    shutil.copy(names, moved)
    stage_1(config, *again)
    assert prompts_of(tmp_path / "killed") == prompts_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--prompts.class_names", "NAMES"),
            r"has no column name; it has image, street\. --prompts.class_names_column is",
        ),
        (("--prompts.class_names", "no.csv"), "There is no table no.csv"),
        (
            ("--prompts.shared_context",),
            "--prompts.shared_context needs --prompts.class_names: without words of its own",
        ),
        (WORDS[4:], "--prompts.class_token_position is for the words of --prompts.class_names, which is null"),
        (
            ("--prompts.initial_words", "a street"),
            "--prompts.initial_words 'a street' are 2 tokens, and --prompts.context",
        ),
        (
            ("--prompts.class_names", "NAMES", *WORDS[4:5], "middle", *WORDS[2:3], "1"),
            "middle needs a --prompts.context_l",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_a_run(config, names, tmp_path, words, sentence):
    words = [names if word == "NAMES" else word for word in words]
    assert re.search(sentence, failure(config, "--out", tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        (
            "very " * 90,
            (),
            r"The words of class \d+,\d+,\d+ are 'very .*: --prompts.template takes 102 tokens, but the text",
        ),
        ("<end_of_text>", (), r"The words of class \d+,\d+,\d+ are '<end_of_text>': they hold a special token"),
        (
            "a",
            ("--prompts.shared_context",),
            "All classes of group 1 have the same words, 'a', and with --prompts.share",
        ),
    ],
)
def test_names_that_cannot_stand_in_prompts_are_refused_with_their_class(config, city, tmp_path, name, more, sentence):
    write(tmp_path / "names.csv", city, lambda column: name)
    table = ("--prompts.class_names", tmp_path / "names.csv", "--prompts.class_names_column", "street")
    assert re.search(sentence, failure(config, "--out", tmp_path / "run", *table, *more))
    assert not (tmp_path / "run").exists()
