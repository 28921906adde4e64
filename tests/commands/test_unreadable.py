"""Images that cannot be read: reported, skipped and counted, up to a fraction of a folder."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from progeo.cli import main
from progeo.export.weights import read_encoder_metadata, save_encoder
from progeo.localization.place_index import open_place_index
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import Catalogue, read_catalogue

BROKEN, BROKEN_QUERY = 7, 2
SETTING = ["--max_unreadable_fraction", "0.3"]


def name(place, beside=0):
    return f"@{550000 + 40 * place + beside}@4180000@10@S@.jpg"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten database images and four queries that are like the last ones of them; one of each side is cut off."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for side in ("database", "queries"):
        (folder / side).mkdir()
    for place in range(10):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48)).save(folder / "database" / name(place))
        if place >= 6:
            Image.fromarray(pixels).resize((60, 60)).save(folder / "queries" / name(place, beside=2))
    for path in (folder / "database" / name(BROKEN), folder / "queries" / name(6 + BROKEN_QUERY, beside=2)):
        path.write_bytes(path.read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(*words, cache):
    main([*map(str, words), "--num_workers", "0", "--descriptor_cache", str(cache)])


@pytest.mark.parametrize("index", [[], ["--faiss", "SQ8"], ["--faiss", "IVF2,Flat"]])
def test_recalls_are_those_of_the_queries_that_can_be_read(index, pictures, cache, tmp_path, capsys):
    command = ["evaluate", "--encoder", "thumbnail", "--folder", pictures, "--out", tmp_path, "--recall_ns", "[1,9]"]
    run(*command, *SETTING, *index, cache=cache)
    summary = json.loads((tmp_path / "recalls.json").read_text())
    # Queries 6 and 9 find their images; that of 7 cannot be found, 8 cannot be read.
    assert summary["recalls"] == {"R@1": pytest.approx(200 / 3), "R@9": pytest.approx(200 / 3)}
    assert summary["unreadable"] == "1 of 10 database images, never retrieved; 1 of 4 queries, skipped"
    assert "unreadable" in (tmp_path / "report.html").read_text()
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["query"] for row in rows} == {name(place, beside=2) for place in (6, 7, 9)}
    first = {row["query"]: row["database"] for row in rows if row["rank"] == "1"}
    assert (first[name(6, beside=2)], first[name(9, beside=2)]) == (name(6), name(9))  # rows after the broken one, too
    for query in first:
        found = {row["database"] for row in rows if row["query"] == query}
        assert found <= {name(place) for place in range(10) if place != BROKEN}
        assert len(found) == 9 or index
    assert f"{name(BROKEN)} cannot be decoded" in capsys.readouterr().err or index


def test_conditions_are_those_of_the_queries_that_can_be_read(pictures, cache, tmp_path):
    (tmp_path / "database").symlink_to(pictures / "database")
    queries = read_catalogue(pictures / "queries")  # 6, 7, the broken 8, and 9
    table = queries.table.append_column("condition", pa.array(["day", "night", "night", "day"]))
    Catalogue(queries.folder, table).save(tmp_path / "queries.arrow", {"root": str(queries.folder)})
    words = ["--folder", tmp_path, "--out", tmp_path / "out", "--recall_ns", "[1]", *SETTING]
    run("evaluate", "--encoder", "thumbnail", *words, cache=cache)
    table = json.loads((tmp_path / "out/recalls.json").read_text())["table"]
    found = {row["queries"]: (row["count"], row["percent"]) for row in table if row["criterion"] == "within 25 m"}
    assert (found["day"], found["night"]) == ((2, 100.0), (1, 0.0))


def test_pictures_that_can_all_be_read_say_nothing_of_it(pictures, cache, tmp_path):
    for side in ("database", "queries"):
        shutil.copytree(pictures / side, tmp_path / "set" / side)
    (tmp_path / "set/database" / name(BROKEN)).unlink()
    (tmp_path / "set/queries" / name(6 + BROKEN_QUERY, beside=2)).unlink()
    run("evaluate", "--encoder", "thumbnail", "--folder", tmp_path / "set", "--out", tmp_path / "out", cache=cache)
    summary = json.loads((tmp_path / "out/recalls.json").read_text())
    assert summary["recalls"]["R@1"] == pytest.approx(200 / 3)
    assert "unreadable" not in summary


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --encoder thumbnail --folder {pictures} --out x",
        "compare thumbnail --folder {pictures} --out x",
        "index build --encoder {encoder} --folder {pictures}/database --out x",
        "pca --encoder {encoder} --folder {pictures}/database --out x --dim 4",
    ],
)
def test_too_many_are_refused_with_the_setting(words, pictures, encoder, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = (
        r"1 of 10 images cannot be read, more than --max_unreadable_fraction allows: .*@550280@.* cannot be decoded"
    )
    with pytest.raises(SystemExit, match=sentence):
        none = ("--max_unreadable_fraction", "0")
        run(*words.format(pictures=pictures, encoder=encoder).split(), *none, cache=tmp_path / "cache")
    assert not (tmp_path / "x").exists()


def test_without_labels_distances_are_those_of_the_images_shown(pictures, cache, tmp_path):
    command = ["evaluate", "--encoder", "thumbnail", "--folder", pictures, "--out", tmp_path, "--no_labels", "true"]
    run(*command, *SETTING, cache=cache)
    with (tmp_path / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = {row["query"]: (row["database"], float(row["descriptor_distance"])) for row in rows if row["rank"] == "1"}
    assert [found[name(place, beside=2)][0] for place in (6, 9)] == [name(6), name(9)]
    assert max(found[name(place, beside=2)][1] for place in (6, 9)) < 1 < found[name(7, beside=2)][1]


def test_a_table_of_encoders_skips_them_too(pictures, cache, tmp_path):
    run("compare", "thumbnail", "--folder", pictures, "--out", tmp_path, *SETTING, "--batch_size", "1", cache=cache)
    (line,) = json.loads((tmp_path / "compare.json").read_text())
    assert line["recalls"]["1"] == pytest.approx(200 / 3)
    assert line["images_per_second"] > 0


def test_a_place_index_holds_the_images_that_can_be_read(pictures, encoder, cache, tmp_path):
    folder = tmp_path / "index"
    words = ["--folder", pictures / "database", "--encoder", encoder, "--out", folder]
    run("index", "build", *words, *SETTING, cache=cache)
    run("index", "add", "--folder", pictures / "queries", "--index", folder, *SETTING, cache=cache)
    opened = open_place_index(folder)
    readable = [name(place) for place in range(10) if place != BROKEN]
    readable += [name(place, beside=2) for place in (6, 7, 9)]
    assert [path.rpartition("/")[2] for path in opened.catalogue.table["path"].to_pylist()] == readable
    alike = opened.search(opened.parts[1].descriptors[:]).rows[:, 1]  # of the queries, after themselves
    assert (alike[0], alike[2]) == (6, 8)  # images 6 and 9, row 7 is that of image 8


def test_components_are_fitted_to_the_images_that_can_be_read(pictures, encoder, cache, tmp_path):
    (tmp_path / "readable").mkdir()
    for path in (pictures / "database").iterdir():
        if path.name != name(BROKEN):
            shutil.copy(path, tmp_path / "readable")
    for folder, out in ((pictures / "database", "all"), (tmp_path / "readable", "readable_only")):
        words = ["--folder", folder, "--encoder", encoder, "--out", tmp_path / out, "--dim", "4", *SETTING]
        run("pca", *words, cache=cache)
    assert read_encoder_metadata(tmp_path / "all")["provenance"]["reduced"]["images"] == 9
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("all", "readable_only")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --encoder thumbnail --folder {root} --database pictures --queries broken --no_labels true --out",
        "evaluate --encoder thumbnail --folder {root} --database broken --queries pictures --out",
        "index build --encoder {encoder} --folder {root}/broken --out",
        "pca --encoder {encoder} --folder {root}/broken --dim 4 --out",
    ],
)
def test_images_of_which_none_can_be_read_are_refused_and_nothing_is_written(words, pictures, encoder, tmp_path):
    shutil.copytree(pictures / "queries", tmp_path / "pictures")
    broken = tmp_path / "broken"
    broken.mkdir()
    for place in range(2):
        (broken / name(place)).write_bytes(b"broken")
    words = words.format(root=tmp_path, encoder=encoder).split()
    with pytest.raises(SystemExit, match=r"None of the 2 images of .*broken can be read. One of them: .* cannot be"):
        run(*words, tmp_path / "out", "--max_unreadable_fraction", "1", cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_is_named_where_it_lies_now(pictures, encoder, tmp_path, capfd):
    words = ["index", "build", "--encoder", encoder, *SETTING]
    for place in ("here", "there"):
        if place == "here":
            shutil.copytree(pictures / "database", tmp_path / "here")
        else:
            (tmp_path / "here").rename(tmp_path / "there")
        run(*words, "--folder", tmp_path / place, "--out", tmp_path / f"of_{place}", cache=tmp_path / "cache")
        assert f"skipped: The image {tmp_path / place / name(BROKEN)} cannot be decoded" in capfd.readouterr().err
    assert len(list((tmp_path / "cache").iterdir())) == 1
