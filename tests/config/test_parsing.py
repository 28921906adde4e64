"""Values on the command line: pairs, several numbers, names, switches and plain words."""

from pathlib import Path

import pytest
from running import parsed

from progeo.config.parsing import UsageError

TABLE = ["table", "places.csv", "--out", "own"]


@pytest.mark.parametrize(
    "words",
    [
        [*TABLE, "--columns", "path=photo", "latitude=y=z", "--link", "true"],
        ["--columns", "path=photo", "latitude=y=z", "--link", *TABLE],
        [*TABLE, "--columns", "path=photo", "--link", "true", "--columns", "latitude=y=z"],
        ["--columns=path=photo", "--columns=latitude=y=z", *TABLE, "--link=true"],
        [*TABLE, "--link", "true", "--columns", '{"path": "photo", "latitude": "y=z"}'],
    ],
)
def test_pairs_of_names_and_values_are_one_mapping(words):
    values = parsed("dataset import", *words)
    assert (values["kind"], str(values["source"]), str(values["out"])) == ("table", "places.csv", "own")
    assert values["link"] is True
    assert values["columns"] == {"path": "photo", "latitude": "y=z"}


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["clusters=64", "alpha=1e-4", "shift=false", "kind=a1", "beta=2.0"], ""),
        (['{"clusters": 64, "alpha": 0.0001, "shift": false, "kind": "a1", "beta": 2.0}'], ""),
        ([], "encoder:\n  aggregation_options:\n    {clusters: 64, alpha: 1e-4, shift: false, kind: a1, beta: 2.0}\n"),
    ],
)
def test_numbers_among_the_options_of_an_aggregation_are_numbers(words, file, config, tmp_path):
    (tmp_path / "options.yaml").write_text(file or "seed: 1")
    flags = ["--encoder.aggregation_options", *words] if words else []
    values = parsed("train encoder", "--config", config, "--config", tmp_path / "options.yaml", *flags)
    options = values["settings"].encoder.aggregation_options
    assert options == {"clusters": 64, "alpha": 1e-4, "shift": False, "kind": "a1", "beta": 2.0}
    assert [type(each) for each in options.values()] == [int, float, bool, str, float]


def test_a_template_of_paths_stays_as_it_is():
    assert parsed("dataset import", *TABLE, "--path", "{key}.jpg")["path"] == "{key}.jpg"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--radii_m 5,25.5", "radii_m", (5, 25.5)),
        ("--radii_m=5,25", "radii_m", (5, 25)),
        ("--radii_m 5 25", "radii_m", (5, 25)),
        ("--radii_m 1e1", "radii_m", (10,)),
        ("--radii_m [5,25]", "radii_m", (5, 25)),
        ("--radii_m null", "radii_m", None),
        ("--recall_ns 1", "recall_ns", (1,)),
        ("--recall_ns 1 5 10", "recall_ns", (1, 5, 10)),
        ("--image_size 64,96", "image_size", (64, 96)),
        ("--image_size 64 96", "image_size", (64, 96)),
        ("--image_size 64", "image_size", 64),
        ("--image_size null", "image_size", None),
        ("--faiss OPQ32,IVF1024,PQ32", "faiss", "OPQ32,IVF1024,PQ32"),
        ("--database 1,2", "database", "1,2"),
        ("--no_labels", "no_labels", True),
        ("--no_labels --one_per_panorama", "no_labels", True),
        ("--no_labels --queries x", "queries", "x"),
        ("--no_labels false", "no_labels", False),
        ("--no_labels=false", "no_labels", False),
    ],
)
def test_a_switch_may_stand_alone_and_numbers_need_no_brackets(words, name, value):
    needed = ["--folder", "f", "--out", "o"]
    for order in (["e", *needed, *words.split()], [*words.split(), *needed, "e"], [*needed, *words.split(), "e"]):
        values = parsed("evaluate", *order)
        options = [values, *(vars(values[group]) for group in ("benchmark", "images", "work", "cache"))]
        assert next(each[name] for each in options if name in each) == value
        assert values["encoder"] == "e"


def test_a_switch_of_three_values_or_in_a_section_may_stand_alone():
    assert parsed("import", "file", "--quickgelu")["quickgelu"] is True
    words = ["--out=r", "--data.train_folder=t", "--validation.folder=v", "--training.compile", "--model.mean=.5,.5,.5"]
    settings = parsed("train encoder", *words, "--resume")["settings"]
    assert (settings.training.compile, settings.model.mean, settings.resume) == (True, (0.5, 0.5, 0.5), True)


@pytest.mark.parametrize(
    "frozen",
    [
        "--encoder.frozen conv1,1",
        "--encoder.frozen conv1 1",
        "--encoder.frozen=conv1,1",
        '--encoder.frozen ["conv1","1"]',
    ],
)
@pytest.mark.parametrize("trackers", ["--trackers tensorboard", "--trackers [tensorboard]"])
def test_names_need_no_brackets(frozen, trackers):
    words = ["--out=r", "--data.train_folder=t", "--validation.folder=v", *frozen.split(), *trackers.split()]
    settings = parsed("train encoder", *words)["settings"]
    assert (settings.encoder.frozen, settings.trackers) == (("conv1", "1"), ("tensorboard",))


def test_a_comma_separates_names_but_not_paths():
    values = parsed("compare", "e", "--folder", "city, old", "--protocol", "a, b", "--out", "o")
    assert (values["folder"], values["protocol"]) == ((Path("city, old"),), ("a", "b"))
    values = parsed("compare", "e", "--folder", "a,b", "c", "--out", "o")
    assert values["folder"] == (Path("a,b"), Path("c"))


def test_one_value_of_several_needs_no_brackets_in_a_file(tmp_path):
    (tmp_path / "settings.yaml").write_text("encoders: e\nfolder: city, old\nprotocol: p\nout: o\n")
    values = parsed("compare", "--config", tmp_path / "settings.yaml")
    assert (values["encoders"], values["folder"], values["protocol"]) == (("e",), (Path("city, old"),), ("p",))


@pytest.mark.parametrize("words", ["a,b.jpg c --top 3", "--top 3 a,b.jpg c", "--photos a,b.jpg c --top 3"])
def test_plain_words_are_taken_as_they_are_and_may_stand_anywhere(words):
    values = parsed("localize", *words.split(), "--index", "i")
    assert [str(photo) for photo in values["photos"]] == ["a,b.jpg", "c"]
    assert values["top"] == 3


@pytest.mark.parametrize(
    ("words", "point"),
    [("--at 5.5,1,30", (5.5, 1, 30)), ("--at 5 1", (5, 1)), ("--at=-5,1", (-5, 1)), ("--at -5 -1", (-5, -1))],
)
def test_a_place_is_given_by_its_numbers(words, point):
    assert parsed("prompts show", "run", *words.split())["at"] == point


def test_a_wrong_value_is_named_with_its_file_or_as_given(config, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("training: {batch_size: -4}")
    flags = ["--training.epochs", "x"]
    with pytest.raises(UsageError) as error:
        parsed("train encoder", "--config", config, "--config", file, *flags)
    sentences = str(error.value).split(" --")
    assert [each.partition(", got ")[2] for each in sentences] == [f"-4 in {file}.", "x."]
