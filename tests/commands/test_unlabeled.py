"""Images without positions: what is found for them is shown, and nothing is said that nobody knows."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import files_in

from progeo.cli import main
from progeo.commands.localize import localize
from progeo.evaluation.comparison import Compared
from progeo.evaluation.comparison_files import write_comparison
from progeo.evaluation.protocols import load_protocol
from progeo.export.weights import load_encoder, save_encoder
from progeo.features.options import WorkOptions
from progeo.localization.place_index import open_place_index
from progeo.models.encoder import build_encoder

NAMES = ("a", "b", "@holiday", "d")


def gray(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (level, level, level)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Gray images of levels 0, 40, 80, 120, and queries of levels 5, 130."""
    folder = tmp_path_factory.mktemp("photos")
    for place, name in enumerate(NAMES):
        gray(folder / f"database/{name}.jpg", 40 * place)
    gray(folder / "queries/dark.jpg", 5)
    gray(folder / "queries/light.jpg", 130)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={})


def run(*words, cache):
    main([*map(str, words), "--num_workers", "0", "--descriptor_cache", str(cache)])


@pytest.mark.parametrize("more", [[], ["--faiss", "SQ8"], ["--query_preprocessing", "nearest_crop"]])
def test_what_is_found_is_written_with_distances_and_without_recalls(more, photos, tmp_path):
    out = tmp_path / "out"
    evaluate = ["evaluate", "--encoder", "thumbnail", "--folder", photos, "--out", out, "--no_labels", "true"]
    run(*evaluate, *more, cache=tmp_path / "cache")
    assert files_in(out) == {"predictions.csv", "report.html", "environment.json", "reproduce.sh"}
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["query", "rank", "database", "descriptor_distance"]
    found = {query: [row["database"] for row in rows if row["query"] == query] for query in ("dark.jpg", "light.jpg")}
    assert found == {
        "dark.jpg": ["a.jpg", "b.jpg", "@holiday.jpg", "d.jpg"],
        "light.jpg": ["d.jpg", "@holiday.jpg", "b.jpg", "a.jpg"],
    }
    levels = dict(zip((f"{name}.jpg" for name in NAMES), (0, 40, 80, 120), strict=True))
    for row in rows:
        apart = abs(levels[row["database"]] - {"dark.jpg": 5, "light.jpg": 130}[row["query"]])
        assert float(row["descriptor_distance"]) == pytest.approx(apart / 255 * np.sqrt(16 * 16 * 3), abs=0.01)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", r"4 of 4 names in .*database do not say .*, such as a.jpg: .*import table`, or .*evaluate --no_labels`"),
        (
            "--no_labels true --protocol pitts30k_test",
            "pitts30k_test needs known positions: omit --no_labels or",
        ),
    ],
)
def test_recalls_of_images_without_positions_are_refused(words, sentence, photos, tmp_path):
    (photos / "database/@holiday.jpg").rename(photos / "database/c.jpg")
    try:
        with pytest.raises(SystemExit, match=sentence):
            main(f"evaluate --encoder thumbnail --folder {photos} --out {tmp_path / 'out'} {words}".split())
    finally:
        (photos / "database/c.jpg").rename(photos / "database/@holiday.jpg")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def index(encoder, tmp_path_factory):
    """An index of three images, of which the last one alone has a position."""
    folder = tmp_path_factory.mktemp("some")
    gray(folder / "images/0.jpg", 0)
    gray(folder / "images/100.jpg", 100)
    gray(folder / "images/@550000@4180000@10@S@.jpg", 200)
    run("index", "build", "--folder", folder / "images", "--encoder", encoder, "--out", folder / "index", cache=folder)
    return folder / "index"


def test_an_index_answers_with_images_whose_place_it_does_not_know(index, tmp_path, capsys):
    for level in (3, 203):
        gray(tmp_path / f"{level}.jpg", level)
    photos = (tmp_path / "3.jpg", tmp_path / "203.jpg")
    out = tmp_path / "answers.json"
    unknown, known = localize(photos, index=index, work=WorkOptions(num_workers=0), top=1, out=out)
    assert unknown.matches[0].path.endswith("/0.jpg")
    for answer in (unknown.matches[0], json.loads(out.read_text())[0]["matches"][0]):
        values = answer if isinstance(answer, dict) else vars(answer)
        assert [values[name] for name in ("latitude", "longitude", "east_m", "north_m")] == [None] * 4
    assert (known.matches[0].east_m, known.matches[0].latitude) == (550000, pytest.approx(37.76596, abs=1e-5))
    main(["localize", *map(str, photos), "--index", str(index), "--num_workers", "0", "--top", "1"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{photos[0]}: no known position"
    assert shown[2] == f"{photos[1]}: 37.76596, -122.43231"


def test_how_many_images_have_no_position_is_said(encoder, tmp_path, capsys):
    gray(tmp_path / "images/1.jpg", 0)
    gray(tmp_path / "images/@1@2@.jpg", 0)
    gray(tmp_path / "more/2.jpg", 0)
    words = ["--folder", tmp_path / "images", "--encoder", encoder, "--out", tmp_path / "index"]
    run("index", "build", *words, cache=tmp_path / "cache")
    assert "1 of 2 images of" in capsys.readouterr().err
    run("index", "add", "--folder", tmp_path / "more", "--index", tmp_path / "index", cache=tmp_path / "cache")
    assert "1 of 1 images of" in capsys.readouterr().err
    assert np.isnan(open_place_index(tmp_path / "index").catalogue.east).tolist() == [True, False, True]


def test_an_index_of_unknown_places_is_not_calibrated(index, photos):
    with pytest.raises(SystemExit, match=r"2 of 3 images of .* have no position, so that matches cannot be checked"):
        main(["index", "calibrate", "--index", str(index), "--folder", str(photos / "database")])


def test_a_malformed_name_is_no_image_without_a_position(encoder, tmp_path):
    gray(tmp_path / "images/@550000@north@.jpg", 0)
    gray(tmp_path / "images/1.jpg", 0)
    with pytest.raises(SystemExit, match=r"field 2 \(north\) should be a number of meters, got 'north'"):
        main(f"index build --folder {tmp_path}/images --encoder {encoder} --out {tmp_path}/index".split())


def test_dimensions_are_reduced_with_images_without_positions(encoder, photos, tmp_path):
    words = ["--encoder", encoder, "--folder", photos / "database", "--out", tmp_path / "small", "--dim", "2"]
    run("pca", *words, cache=tmp_path / "cache")
    assert load_encoder(tmp_path / "small").descriptor_dim == 2


def test_names_that_a_spreadsheet_would_run_are_quoted_on_request(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side in ("database", "queries"):
        gray(tmp_path / f"photos/{side}/=1+1.jpg", 100)
    gray(tmp_path / "=2.jpg", 100)
    localize = ["localize", "=2.jpg", "--index", str(index), "--num_workers", "0", "--out"]
    for quote, more in (("", []), ("'", ["--spreadsheet_safe"])):
        run("evaluate", "thumbnail", "--folder", "photos", "--no_labels", "--out", "out", *more, cache="cache")
        assert f"\n{quote}=1+1.jpg,1,{quote}=1+1.jpg,0.0000" in Path("out/predictions.csv").read_text()
        main([*localize, "found.csv", *more])
        assert f"\n{quote}=2.jpg," in Path("found.csv").read_text()
        main([*localize, "found.html", *more])
        for page in ("out/report.html", "found.html"):
            assert f'"spreadsheet_safe": {"true" if more else "false"}' in Path(page).read_text()
        compared = Compared("", "=1|<b>", 2, None, 1.0, {1: 50.0}, {1: (40.0, 60.0)}, 9)
        write_comparison(tmp_path, [compared], spreadsheet_safe=bool(more))
        assert f"\n{quote}=1|<b>,2" in Path("compare.csv").read_text()
    assert r"| =1\|&lt;b&gt; | 2 |" in Path("compare.md").read_text()


def test_predictions_for_a_challenge_are_written_as_its_evaluator_reads_them(tmp_path, monkeypatch):
    for number in range(21):
        gray(tmp_path / f"msls/test/miami/database/images/d{number}.jpg", 10 * number)
    gray(tmp_path / "msls/test/miami/query/images/q0.jpg", 61)
    gray(tmp_path / "msls/test/miami/query/images/q1.jpg", 199)
    for side, count in (("database", 21), ("query", 2)):
        rows = [f"{number},{side[0]}{number},True" for number in range(count)]
        (tmp_path / f"msls/test/miami/{side}/subtask_index.csv").write_text("\n".join([",key,all", *rows]))
    main(["dataset", "import", "msls", str(tmp_path / "msls"), "--cities", "miami", "--out", str(tmp_path / "set")])
    small = replace(load_protocol("msls_challenge"), num_database=21, num_queries=2)
    monkeypatch.setattr("progeo.evaluation.benchmark.load_protocol", lambda _: small)
    out = tmp_path / "out"
    evaluate = ["evaluate", "--encoder", "thumbnail", "--folder", tmp_path / "set", "--protocol", "msls_challenge"]
    run(*evaluate, "--no_labels", "true", "--out", out, cache=tmp_path / "cache")
    written = {"predictions.csv", "report.html", "msls_challenge.csv", "msls_challenge.zip"}
    assert files_in(out) == written | {"environment.json", "reproduce.sh"}
    lines = [line.split()[:2] for line in (out / "msls_challenge.csv").read_text().splitlines()]
    assert lines == [["q0", "d6"], ["q1", "d20"]]
    with pytest.raises(SystemExit, match=r"21 of 21 names in .* do not say where .*--no_labels"):
        run(*evaluate, "--out", tmp_path / "labeled", cache=tmp_path / "cache")
