"""The command that compares encoders, on several data sets."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from running import files_in

from progeo.cli import main
from progeo.evaluation.protocols import load_protocol
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder

RESULTS = {"predictions.csv", "recalls.csv", "recalls.json", "recalls.md", "report.html"}
TABLES = {f"compare.{ending}" for ending in ("csv", "html", "json", "md")} | {"models.md", "compare_pairs.csv"}
ORIGIN = {"environment.json", "reproduce.sh"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def foreign(city, tmp_path_factory):
    """Descriptors of another program for the test set: random ones."""
    folder, rng = tmp_path_factory.mktemp("foreign"), np.random.default_rng(0)
    for side in ("database", "queries"):
        count = len(list((city / "test" / side).iterdir()))
        np.save(folder / f"{side}_descriptors.npy", rng.normal(size=(count, 8)).astype(np.float32))
    return folder


def compare(*words, out, cache):
    main(["compare", *map(str, words), "--out", str(out), "--num_workers", "0", "--descriptor_cache", str(cache)])
    return json.loads((out / "compare.json").read_text())


def test_several_data_sets_stand_in_one_table(city, cache, tmp_path):
    sets = [city / "test", city / "val"]
    table = compare("thumbnail", "open_clip:tiny-vit:random", "--folder", *sets, out=tmp_path, cache=cache)
    assert [row["data"] for row in table] == [str(each) for each in sets for _ in range(2)]
    assert [row["encoder"] for row in table] == ["thumbnail", "open_clip:tiny-vit:random"] * 2
    parts = [f"{number}_city_{name}" for number, name in ((1, "test"), (2, "val"))]
    encoders = ("1_thumbnail", "2_open_clip_tiny-vit_random")
    assert set(files_in(tmp_path)) == {
        *(TABLES | ORIGIN),
        *(f"{part}/{encoder}/{name}" for part in parts for encoder in encoders for name in RESULTS),
    }
    for row, (part, encoder) in zip(table, [(part, each) for part in parts for each in encoders], strict=True):
        recalls = json.loads((tmp_path / part / encoder / "recalls.json").read_text())
        assert {f"R@{n}": percent for n, percent in row["recalls"].items()} == recalls["recalls"]
        all_queries = [each for each in recalls["table"] if each["queries"] == "all"][: len(row["recalls"])]
        assert [[each["low"], each["high"]] for each in all_queries] == [*row["intervals"].values()]
        assert recalls["folder"] == row["data"]


def test_one_data_set_leaves_what_it_always_did(city, foreign, cache, tmp_path):
    compare("thumbnail", foreign, "--folder", city / "test", out=tmp_path, cache=cache)
    (second,) = tmp_path.glob("2_*")
    assert set(files_in(tmp_path)) == {
        *(TABLES | ORIGIN),
        *(f"{encoder}/{name}" for encoder in ("1_thumbnail", second.name) for name in RESULTS),
    }
    with (tmp_path / "compare.csv").open() as stream:
        assert "data" not in next(csv.reader(stream))


def test_a_query_that_one_encoder_cannot_read_is_not_paired(city, cache, tmp_path):
    folder = tmp_path / "set"
    for side in ("database", "queries"):
        (folder / side).mkdir(parents=True)
        for path in (city / "test" / side).iterdir():
            (folder / side / path.name).write_bytes(path.read_bytes())
    first = min((folder / "queries").iterdir())
    first.write_bytes(b"no image")
    described = tmp_path / "described"
    described.mkdir()
    for side in ("database", "queries"):
        np.save(
            described / f"{side}_descriptors.npy", np.eye(len(list((folder / side).iterdir())), 8, dtype=np.float32)
        )
    thumbnail, foreign = compare("thumbnail", described, "--folder", folder, out=tmp_path / "out", cache=cache)
    assert foreign["num_queries"] == thumbnail["num_queries"] + 1
    (tested,) = [row["against_best"] for row in (thumbnail, foreign) if row["against_best"] is not None]
    assert tested["num_queries"] == thumbnail["num_queries"]


def test_protocols_that_do_not_fit_the_folders_are_refused_before_anything_is_extracted(city, tmp_path):
    words = ["thumbnail", "--folder", city / "test", city / "val", city / "train"]
    with pytest.raises(SystemExit, match="--protocol takes one name for all 3 folders, or one for each in their order"):
        compare(*words, "--protocol", "nordland", "none", out=tmp_path / "out", cache=tmp_path / "cache")
    with pytest.raises(SystemExit, match=r"--protocol nordland has 27,592 database images .*val has"):
        compare(*words[:4], "--protocol", "none", "nordland", out=tmp_path / "out", cache=tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def models(out):
    """Read the rows of models.md, each by the names of its columns."""
    text = (out / "models.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split(" |")] for line in text.splitlines() if "|" in line]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_of_models_says_what_each_encoder_is(city, foreign, cache, tmp_path):
    imported = build_encoder("tiny-resnet", "random", 48).eval()
    save_encoder(tmp_path / "eigen", imported, provenance={"kind": "CosPlace or EigenPlaces"}, recalls={})
    trained = {"settings": {"model": {"weights": "random"}, "data": {"train_folder": "/my/own/city/train"}}}
    save_encoder(tmp_path / "own", imported, provenance=trained, recalls={})
    names = ["thumbnail", foreign, tmp_path / "eigen", tmp_path / "own"]
    compare(*names, "--folder", city / "test", out=tmp_path / "out", cache=cache)
    thumbnail, other, eigen, own = models(tmp_path / "out")
    assert [row["numbers"] for row in (thumbnail, other, eigen, own)] == ["measured"] * 4
    assert (thumbnail["image, px"], thumbnail["dimensions"], thumbnail["parameters, M"]) == ("16 x 16", "768", "0.0")
    assert {other[name] for name in ("backbone", "parameters, M", "image, px", "images/s", "ms per query")} == {"?"}
    assert (eigen["training data"], eigen["license of code"], eigen["license of weights"]) == (
        "SF-XL",
        "MIT, of EigenPlaces",
        "?",
    )
    millions = sum(parameter.numel() for parameter in imported.parameters()) / 1e6
    assert (eigen["backbone"], eigen["parameters, M"]) == ("tiny-resnet", f"{millions:.1f}")
    assert (own["training data"], own["license of code"]) == ("city/train", "?")
    assert own["license of weights"] == "none, training started from random weights"
    low, high = (float(text) for text in own["95 % of R@1"].split(" to "))
    assert low <= float(own["R@1"]) <= high


def test_published_recalls_stand_below_those_that_were_measured(city, cache, tmp_path, monkeypatch):
    sizes = {"num_database": 12, "num_queries": 6}
    protocol = replace(load_protocol("amstertime"), **sizes)
    monkeypatch.setattr("progeo.evaluation.benchmark.load_protocol", lambda _: protocol)
    val = ["--folder", city / "val", "--protocol", "amstertime"]
    compare("thumbnail", *val, out=tmp_path / "out", cache=cache)
    assert (tmp_path / "out/models.md").read_text().startswith("## amstertime\n")
    measured, *published = models(tmp_path / "out")
    assert (measured["model"], measured["numbers"]) == ("thumbnail", "measured")
    assert [row["model"] for row in published] == [each.method for each in protocol.published]
    eigen = next(row for row in published if row["model"] == "EigenPlaces")
    assert (eigen["backbone"], eigen["dimensions"], eigen["R@1"]) == ("ResNet-50", "2,048", "48.9")
    assert (eigen["training data"], eigen["license of code"], eigen["95 % of R@1"]) == (
        "SF-XL",
        "MIT, of EigenPlaces",
        "?",
    )
    assert eigen["numbers"] == "published: CricaVPR, Lu et al., CVPR 2024, table 3"
    assert all(row["numbers"].endswith("; not comparable: sees other test images") for row in published[-2:])
    compare("thumbnail", *val, "--near", "500", out=tmp_path / "near", cache=cache)
    assert len(models(tmp_path / "near")) == 1


def test_tables_for_a_paper_are_written_if_asked_for(city, foreign, cache, tmp_path):
    (row, _) = compare("thumbnail", foreign, "--folder", city / "val", "--latex", out=tmp_path, cache=cache)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == TABLES | ORIGIN | {"compare.tex"}
    text = (tmp_path / "compare.tex").read_text()
    assert f"thumbnail & 768 & \\textbf{{{row['recalls']['1']:.1f}}}" in text
    assert str(foreign) not in text


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two runs of one configuration, and one of another."""
    folder = tmp_path_factory.mktemp("seeds")
    for name, seed, epochs in (("a0", 0, 5), ("a1", 1, 5), ("b0", 0, 9)):
        torch.manual_seed(seed)
        settings = {"seed": seed, "out": f"runs/{name}", "training": {"epochs": epochs}}
        encoder = build_encoder("tiny-resnet", "random", 48).eval()
        save_encoder(folder / name, encoder, provenance={"settings": settings, "epoch": seed}, recalls={})
    return folder


def test_runs_that_differ_in_their_seed_only_are_one_row(city, seeds, cache, tmp_path):
    runs = [seeds / name for name in ("a0", "b0", "a1")]
    table = compare(*runs, "--folder", city / "val", "--seeds", "--latex", out=tmp_path, cache=cache)
    first, alone = json.loads((tmp_path / "seeds.json").read_text())
    assert (first["configuration"], first["seeds"]) == (f"{seeds}/a*", [0, 1])
    assert first["encoders"] == [str(seeds / "a0"), str(seeds / "a1")]
    values = [table[row]["recalls"]["5"] for row in (0, 2)]
    assert first["recalls"]["R@5"]["values"] == values
    assert first["recalls"]["R@5"]["mean"] == pytest.approx(sum(values) / 2)
    assert (alone["seeds"], alone["recalls"]["R@1"]["std"]) == ([0], None)
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == TABLES | ORIGIN | {"compare.tex", *(f"seeds.{ending}" for ending in ("csv", "json", "md", "tex"))}


def test_runs_that_are_no_seeds_of_one_configuration_are_refused_before_anything_is_extracted(city, seeds, tmp_path):
    runs = [seeds / "a0", seeds / "b0"]
    with pytest.raises(SystemExit, match=r"--seeds needs runs .*a0 and .*b0 differ in training\.epochs\."):
        compare(*runs, "--folder", city / "val", "--seeds", out=tmp_path / "out", cache=tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_runs_are_compared_by_the_settings_of_their_prompts_too(city, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (prompts, length) in enumerate([(None, 4), ("elsewhere", 16), (None, 4)]):
        stage1 = tmp_path / (prompts or f"runs/{seed}/stage1")
        stage1.mkdir(parents=True)
        (stage1 / "config.yaml").write_text(f"seed: {seed}\nprompts: {{context_length: {length}}}\n")
        settings = {"seed": seed, "out": f"runs/{seed}", "text": {"weight": 1.0, "prompts": prompts}}
        encoder = build_encoder("tiny-resnet", "random", 48)
        save_encoder(tmp_path / f"runs/{seed}", encoder, provenance={"settings": settings}, recalls={})
    words = ("--folder", city / "val", "--seeds")
    with pytest.raises(SystemExit, match=r"runs/0 and runs/1 differ in stage1\.prompts\.context_length\."):
        compare("runs/0", "runs/1", *words, out=tmp_path / "out", cache=tmp_path / "cache")
    (tmp_path / "runs/2/stage1/config.yaml").unlink()
    with pytest.raises(SystemExit):  # without images
        compare("runs/0", "runs/2", "--folder", "no", "--seeds", out=tmp_path / "out", cache=tmp_path / "cache")
    said = "runs/2 learned from prompts whose settings are not compared: there is no runs/2/stage1/config.yaml"
    assert said in capsys.readouterr().err
