"""What stands in a file of settings, and what a command takes it for."""

import re
from pathlib import Path

import pytest
import yaml
from running import parsed

from progeo.config.settings import plain_values
from progeo.config.yaml_files import RENAMED

NEEDED = "out: r\ndata: {train_folder: t}\nvalidation: {folder: v}\n"


@pytest.fixture
def read(tmp_path):
    """Settings of the text or bytes of a file, and the words after it."""

    def settings_of(content, *words, command="train encoder"):
        file = tmp_path / "settings.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        values = parsed(command, "--config", file, *words)
        return values.get("settings", values)

    return settings_of


def setting(settings, name):
    section = name.partition(".")[0]
    if section in getattr(settings, "losses", {}):
        settings = settings.losses
    for part in name.split("."):
        settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
    return settings


TEXTS = ("no", "on", "y", "08", "010", "123", "1.0", "1e5", "1:30", "2024-01-01", "none")
MEANT = {
    "mixed_precision": {"no": "no", "'no'": "no"},
    "resume": {
        **dict.fromkeys(("true", "True", "yes", "on", "y", "Y", "'true'"), True),
        **dict.fromkeys(("false", "no", "off", "n", "FALSE"), False),
    },
    "model.weights": {text: text for text in TEXTS},
    "out": {text: Path(text) for text in TEXTS},
    "text.prompts": {"none": Path("none"), "null": None, "~": None, "": None},
    "encoder.descriptor_dim": {"null": None, "~": None, "none": None, "None": None, "": None, "08": 8, "010": 10},
    "encoder.image_size": {"096": 96, "[224, 096]": (224, 96)},
    "training.encoder_learning_rate": dict.fromkeys(("1e-5", "1.0e-05", "0.00001"), 1e-5),
    "training.iterations_per_epoch": dict.fromkeys(("1e4", "10_000", "10000", "1.0e+4"), 10_000),
    "training.max_gradient_norm": {"1e30": 1e30, "3": 3.0, ".5": 0.5},
    "seed": {"12345678901234567890": 12345678901234567890, "007": 7},
    "encoder.frozen": {"[conv1, 1, no, 08]": ("conv1", "1", "no", "08"), "[]": ()},
    "augmentation.crop_scale": {"[.5, 1e0]": (0.5, 1.0)},
}
"""What is meant by what is written, by setting."""


def test_the_type_of_a_setting_says_what_is_written(read):
    for turn in range(max(map(len, MEANT.values()))):  # a file of many settings: each is read in milliseconds
        rows = {name: list(meant.items())[turn] for name, meant in MEANT.items() if turn < len(meant)}
        lines = [f"{name}: {written}\n" for name, (written, _) in rows.items()]
        settings = read("".join([NEEDED if "out" not in rows else NEEDED.split("\n", 1)[1], *lines]))
        found = {name: (written, setting(settings, name)) for name, (written, _) in rows.items()}
        assert found == rows
        assert all(isinstance(found[name][1], type(meant)) for name, (_, meant) in rows.items())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty: it must give settings as `name: value`"),
        ("# nothing\n", "is empty"),
        ("- out\n", "holds a list: it must give settings"),
        ("out\n", "holds a text: it must give settings"),
        ("out: a\nout: b\n", "names out in line 1 and again in line 2: keep one"),
        ("validation:\n  queries: a\n  database: b\n  queries: c\n", "names queries in line 2 and again in line 4"),
        ("validation: {queries: a}\nvalidation.queries: b\n", "names validation.queries twice: keep one"),
        ("data:\n\tqueries: a\n", r"is not valid YAML in line 2: .*found character '\\t'.*with spaces, not with tabs"),
        ("out: [a\n", "is not valid YAML in line"),
        ("out: a\n---\nout: b\n", "expected a single document"),
        (b"out: caf\xe9\n", "is not valid YAML"),
        ("validation: {query: a}\n", "names validation.query, which is no setting: did you mean validation.queries"),
        ("data: v\n", "gives data the value v: give it settings by name"),
        ("training: {epochs: 1:30}\n", "gives training.epochs the value 1:30, which is no number"),
        ("encoder: {image_size: [1:30, 64]}\n", "gives encoder.image_size the value 1:30, which is no number"),
        ("mixed_precision:\n", "gives no value to mixed_precision: give one, or remove the line"),
        ("encoder: {frozen: ~}\n", "gives no value to encoder.frozen"),
        ("validation: {queries: [a, b]}\n", r"gives validation.queries the value \['a', 'b'\]: it must be one word"),
        ("out: {a: b}\n", r"gives out the value {'a': 'b'}: it must be one word"),
        ("text: {prompts: []}\n", r"gives text.prompts the value \[\]: it must be one word"),
        ("out: !!binary aGk=\n", "uses 'tag:yaml.org,2002:binary' in line 1: write the value without it"),
        ("\nvalidation: {queries: !!set {a}}\n", "uses 'tag:yaml.org,2002:set' in line 2"),
        ("out: !!python/object/apply:os.system [ls]\n", "uses 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ],
)
def test_a_file_that_gives_no_settings_is_refused_by_name(read, tmp_path, content, sentence):
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'settings.yaml'))} .*{sentence}"):
        read(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(read, encoding):
    assert read(NEEDED.replace("out: r", "out: é").encode(encoding)).out == Path("é")


def test_sections_without_settings_and_merged_ones_are_read(read):
    settings = read(f"{NEEDED}text:\nhead: &half {{weight: 0.5}}\ntriplet: {{<<: *half, kind: batch_hard}}\n")
    weights = {name: options.weight for name, options in settings.losses.items() if options.weight}
    assert weights == {"text": 1.0, "head": 0.5, "triplet": 0.5}


def test_what_comes_later_on_the_command_line_wins(read, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("seed: 3\n")
    assert read(NEEDED + "seed: 1\n", "--seed", "2").seed == 2
    assert read(NEEDED + "seed: 1\n", "--seed", "2", f"--config={other}").seed == 3


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("folder", "~/set", Path("/home/me/set")),
        ("folder", "~", Path("~")),
        ("folder", "./~/set", Path("~/set")),
        ("folder", "$HOME/set", Path("$HOME/set")),
        ("folder", "a/~/set", Path("a/~/set")),
        ("folder", "~nobody-of-this-name/set", Path("~nobody-of-this-name/set")),
        ("descriptor_cache", "~/cache", Path("/home/me/cache")),
        ("encoder", "~/encoder", "/home/me/encoder"),
        ("encoder", "open_clip:RN50:~/clip.pt", "open_clip:RN50:/home/me/clip.pt"),
        ("encoder", "hub:~/repository:entry?path=~/x", "hub:/home/me/repository:entry?path=~/x"),
        ("encoder", "https://host/~somebody/encoder", "https://host/~somebody/encoder"),
    ],
)
def test_a_path_below_home_is_found_in_a_file_and_after_an_equals_sign(read, monkeypatch, name, written, meant):
    monkeypatch.setenv("HOME", "/home/me")

    def found(values):
        return vars(values["cache"])[name] if name == "descriptor_cache" else values[name]

    others = [word for word in ("--encoder=e", "--folder=f", "--out=o") if not word.startswith(f"--{name}=")]
    assert found(parsed("evaluate", *others, f"--{name}={written}")) == meant
    assert found(read(f"{name}: '{written}'\n", *others, command="evaluate")) == meant


def test_each_of_several_encoders_may_lie_below_home(read, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = read("folder: f\nout: o\nencoders: [~/a, thumbnail]\n", command="compare")
    assert settings["encoders"] == ("/home/me/a", "thumbnail")


def test_a_run_reads_its_own_settings_back(tmp_path):
    words = ["--out", "./~/r", "--data.train_folder", "08", "--validation.folder", "v", "--mixed_precision", "no"]
    words += ["--training.encoder_learning_rate", "1e-7", "--model.weights", "yes", "--trackers", '["wandb"]']
    settings = parsed("train encoder", *words)["settings"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain_values(settings)))
    assert parsed("train encoder", "--config", file)["settings"] == settings


COMMAND_OF = {"faiss": "evaluate", "at": "prompts show", "prompts.normalized": "train prompts"}


@pytest.mark.parametrize(("former", "name"), RENAMED.items())
def test_a_setting_that_was_renamed_is_refused_with_its_new_name(read, former, name):
    command = COMMAND_OF.get(name, "train encoder")
    section, _, key = former.rpartition(".")
    with pytest.raises(ValueError, match=f"names {former}, which is now called {name}."):
        read(f"{section}: {{{key}: x}}" if section else f"{key}: x", command=command)
    for words in ([f"--{former}", "x"], [f"--{former}=x"]):
        with pytest.raises(ValueError, match=f"--{former} is now called --{name}."):
            read("seed: 1", *words, command=command)


def test_a_command_reads_its_sections_of_a_file_for_all_and_an_unknown_section_is_refused(read):
    both = f"{NEEDED}seed: 1\nprompts: {{epochs: 3}}\ntraining: {{epochs: 4}}\ncells: {{cell_side_m: 15}}\n"
    assert read(both, command="train prompts").prompts.epochs == 3
    assert read(both, command="train encoder").training.epochs == 4
    plan = read(both, command="dataset groups")
    assert (plan.cells.cell_side_m, plan.data.train_folder) == (15, Path("t"))
    with pytest.raises(ValueError, match="--out is required"):  # that of the file is the folder of the run
        read(both, "e", "--folder", "f", command="evaluate")
    assert read("out: r\n", "e", "--folder", "f", command="evaluate")["out"] == Path("r")
    for command in ("train prompts", "train encoder", "dataset groups"):
        with pytest.raises(ValueError, match="names heads, which is no setting: did you mean head"):
            read(f"{both}heads: {{scale: 1}}\n", command=command)
        with pytest.raises(ValueError, match="names batch_size, which is no setting: did you mean"):
            read(f"{both}batch_size: 3\n", command=command)  # `evaluate` has such a setting, training has not


def test_a_name_that_is_a_section_of_training_and_a_setting_elsewhere_is_read_as_what_stands_there(read):
    needed = "folder: f\nout: o\n"
    assert read(f"{needed}encoder: e\ncells: {{cell_side_m: 20}}\n", "--out", "o", command="evaluate")["encoder"] == "e"
    assert read("encoder: {image_size: 64}\n", "e", "--folder=f", "--out=o", command="evaluate")["encoder"] == "e"


@pytest.mark.parametrize(
    ("given", "meant"), [("tiny_resnet", "toy/tiny_resnet"), ("toy/tiny_resnt", "toy/tiny_resnet")]
)
def test_an_almost_right_name_of_a_file_gets_the_nearest_one(given, meant):
    with pytest.raises(FileNotFoundError, match=rf"{given} does not exist; did you mean {meant}\?$"):
        parsed("train encoder", "--config", given)


def test_a_file_is_found_by_its_name_and_an_unknown_name_lists_them():
    by_name = parsed("train encoder", "--config", "toy/tiny_resnet")["settings"]
    assert by_name.model.architecture == "tiny-resnet"
    with pytest.raises(
        FileNotFoundError, match=r"tiny does not exist; by name there are .*progeo_rn50, .*toy/tiny_resnet"
    ):
        parsed("train encoder", "--config", "tiny")


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 12))
MERGES = "m0: &m0 {seed: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join(9 * [f'*m{n - 1}'])}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (LAUGHS, "has more than 100,000 values, with those that its aliases repeat"),
        (MERGES, "has more than 100,000 values, with those that its aliases repeat"),
        ("encoder: {frozen: &a [*a]}\n", "has a value that contains itself"),
        ("encoder: &a {<<: *a}\n", "has a value that contains itself"),
        ("encoder: {frozen: " + "[" * 100_000, "is nested too deeply"),
    ],
    ids=["laughs", "merges", "itself", "merged with itself", "deep"],
)
def test_a_file_that_would_fill_the_memory_is_refused(read, more, sentence):
    with pytest.raises(ValueError, match=rf"^The file of settings .*settings\.yaml {sentence}\.$"):
        read(NEEDED + more)


def test_a_value_may_be_used_twice(read):
    settings = read(NEEDED + "seed: &n 3\ntraining: {batch_size: *n}\n")
    assert (settings.seed, settings.training.batch_size) == (3, 3)
