import csv
import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clips import shrunk

from progeo.cli import main
from progeo.file_sets import write_set
from progeo.models.backbones.clip_configurations import ClipConfiguration, named_configuration
from progeo.models.prompts import load_prompt_tower
from progeo.models.state_dicts import weights_digest
from progeo.models.vocabulary import NearestWords
from progeo.training import prompt_words
from progeo.training.prompt_files import load_clip_of_prompts


@pytest.fixture
def stage_1(run, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    return tmp_path / "stage1"


def show(*arguments):
    main(["prompts", "show", *map(str, arguments)])


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_every_vector_of_every_class_gets_its_words_on_screen_and_in_a_csv(stage_1, capsys):
    show(stage_1.parent, "--num_words", 2)
    shown = capsys.readouterr().out
    counts = json.loads((stage_1 / "prompts.json").read_text())["partition"]["classes_per_group"]
    rows = rows_of(stage_1 / "prompts.csv")
    assert len(rows) == sum(counts) * 4 * 2
    first = rows[0]
    ids = load_file(stage_1 / "prompts.safetensors")["group_0.class_ids"]
    assert [int(first[name]) for name in ("group", "east", "north", "heading")] == [1, *ids[0].tolist()]
    assert (first["vector"], first["rank"]) == ("1", "1")
    assert f"class {','.join(map(str, ids[0].tolist()))} of group 1" in shown
    assert f"  vector 1: {first['word']} {float(first['distance']):.3f}"[:-1] in shown
    assert str(stage_1 / "prompts.csv") in shown


def test_words_that_a_spreadsheet_would_run_are_quoted_on_request(stage_1, tmp_path, monkeypatch):
    def nearest(clip, vectors, count):
        return NearestWords([["=", "-", "a"]] * len(vectors), torch.zeros(len(vectors), 3))

    monkeypatch.setattr(prompt_words, "nearest_words", nearest)
    for words, more in ((["=", "-", "a"], []), (["'=", "'-", "a"], ["--spreadsheet_safe"])):
        show(stage_1.parent, "--out", tmp_path / "words.csv", *more)
        assert [row["word"] for row in rows_of(tmp_path / "words.csv")][:3] == words


def test_a_class_is_found_by_any_point_in_its_cell(stage_1, tmp_path):
    ids = load_file(stage_1 / "prompts.safetensors")["group_1.class_ids"]
    east, north, heading = ids[2].tolist()
    show(stage_1, "--at", f"{east + 3.5},{north + 9},{heading + 1}", "--out", tmp_path / "one.csv")
    rows = rows_of(tmp_path / "one.csv")
    assert len(rows) == 4 * 5
    assert {(row["group"], row["east"], row["north"], row["heading"]) for row in rows} == {
        ("2", str(east), str(north), str(heading))
    }


def test_without_a_heading_all_classes_of_the_cell_are_shown(stage_1, tmp_path):
    tensors = load_file(stage_1 / "prompts.safetensors")
    ids = [tuple(row) for group in (0, 1) for row in tensors[f"group_{group}.class_ids"].tolist()]
    first = ids[0]
    show(stage_1, "--at", f"{first[0]},{first[1]}", "--num_words", 1, "--out", tmp_path / "cell.csv")
    assert len(rows_of(tmp_path / "cell.csv")) == 4 * sum(class_id[:2] == first[:2] for class_id in ids)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("0,0", "There is no class at 0,0: the nearest is"),
        ("here", "--at must be 2 or 3 values, each a number, or null, got "),
        ("1,2,3,4", "--at must be 2 or 3 values, each a number, or null, got "),
    ],
)
def test_a_class_that_is_not_there_is_refused(stage_1, wanted, words, capsys):
    with pytest.raises(SystemExit) as stop:
        show(stage_1, "--at", wanted)
    assert words in f"{stop.value.code}{capsys.readouterr().err}"


def test_words_of_another_vocabulary_are_refused(stage_1):
    description = json.loads((stage_1 / "prompts.json").read_text())
    (stage_1 / "prompts.json").write_text(json.dumps({**description, "seed": 5}))
    with pytest.raises(SystemExit, match="were learned with other weights than random of tiny-resnet are now"):
        show(stage_1)


def test_words_are_those_of_the_tokenizer_that_the_recorded_configuration_names(stage_1, hub_cache):
    text, _ = shrunk("ViT-H-14-CLIPA")
    configuration = ClipConfiguration({**named_configuration("tiny-vit").values, "text_cfg": text})
    tower = load_prompt_tower("tiny-vit", "random", configuration=configuration)
    tensors = load_file(stage_1 / "prompts.safetensors")
    words = tower.embedding(torch.tensor(tower.tokenizer.encode("a narrow street.")))
    for name in [name for name in tensors if name.endswith("context")]:
        tensors[name] = words.expand(len(tensors[name]), -1, -1).contiguous()
    description = json.loads((stage_1 / "prompts.json").read_text())
    description |= {"architecture": "tiny-vit", "configuration": configuration.to_json()}
    description["vocabulary"] = weights_digest({"token_embedding": tower.token_embedding.weight})
    write_set(stage_1 / "prompts.json", description, {"prompts.safetensors": partial(save_file, tensors)})
    show(stage_1, "--num_words", 1)
    assert [row["word"] for row in rows_of(stage_1 / "prompts.csv")][:8] == ["a", "narrow", "street", "."] * 2


def test_prompts_of_an_earlier_version_that_read_words_with_another_tokenizer_are_refused(stage_1):
    description = json.loads((stage_1 / "prompts.json").read_text())
    del description["configuration"]
    assert load_clip_of_prompts(written(stage_1, description)).architecture == "tiny-resnet"
    written(stage_1, {**description, "architecture": "ViT-H-14-worldwide-quickgelu"})
    for load in (load_clip_of_prompts, prompt_words.nearest_prompt_words):
        with pytest.raises(ValueError, match=r"prompts.json is of an earlier version, which read words with another"):
            load(stage_1)


def written(folder, description):
    (folder / "prompts.json").write_text(json.dumps(description))
    return folder


def test_a_folder_without_prompts_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="There are no prompts in"):
        show(tmp_path)
