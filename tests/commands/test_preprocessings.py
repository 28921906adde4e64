"""Queries and database images described in other ways than resized, and descriptors of other programs."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from running import files_in

import progeo
from progeo.cli import main
from progeo.data.decode import read_image
from progeo.models.preprocessing import preprocess_image
from progeo.places.catalogue import read_catalogue

SHAPES = ((40, 60), (60, 40), (48, 48), (50, 75))


@pytest.fixture(scope="module")
def mixed(city, tmp_path_factory):
    """A small test set whose images have four shapes."""
    folder = tmp_path_factory.mktemp("mixed")
    for side in ("database", "queries"):
        (folder / side).mkdir()
        for place, path in enumerate(sorted((city / "test" / side).iterdir())[:10]):
            height, width = SHAPES[place % 4]
            Image.open(path).resize((width, height)).save(folder / side / path.name, quality=95)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from progeo.export.weights import save_encoder
    from progeo.models.encoder import build_encoder

    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={})


def evaluated(encoder, mixed, out, *arguments, command="evaluate"):
    given = ["--encoder", str(encoder)] if command == "evaluate" else [str(name) for name in encoder]
    common = ["--folder", str(mixed), "--out", str(out), "--num_workers", "0", "--descriptor_cache", str(out / "cache")]
    main([command, *given, *common, "--recall_ns", "[1,2,5]", *arguments])


def one_by_one(encoder, folder, kind):
    """Descriptors of a folder's images, each described alone: (N, crops, D)."""
    network, images = progeo.load_encoder(encoder), read_catalogue(folder)
    with torch.no_grad():
        pixels = [preprocess_image(read_image(images.path(row)), kind, (48, 48)) for row in range(len(images))]
        return np.stack([network(network.normalize(each[None] if each.ndim == 3 else each)).numpy() for each in pixels])


def predictions_in(out):
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [
        [row["database"] for row in rows if row["query"] == query] for query in dict.fromkeys(r["query"] for r in rows)
    ]


@pytest.mark.parametrize("kind", ["single_query", "native", "central_crop", "five_crops"])
def test_images_in_batches_by_shape_are_described_as_each_alone(kind, encoder, mixed, tmp_path):
    evaluated(encoder, mixed, tmp_path, "--query_preprocessing", kind, "--database_preprocessing", kind)
    kept = [np.load(path) for path in sorted((tmp_path / "cache").glob("*/rows_00000.npy"))]
    wanted = [one_by_one(encoder, mixed / side, kind).mean(axis=1) for side in ("database", "queries")]
    assert sorted(map(len, kept)) == sorted(map(len, wanted)) == [6, 10]
    for theirs in wanted:
        (mine,) = [rows for rows in kept if len(rows) == len(theirs)]
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert json.loads((tmp_path / "recalls.json").read_text())["queries preprocessing"] == kind


@pytest.mark.parametrize("kind", ["nearest_crop", "maj_voting"])
def test_crops_that_search_on_their_own_find_what_a_plain_loop_finds(kind, encoder, mixed, tmp_path):
    evaluated(encoder, mixed, tmp_path, "--query_preprocessing", kind)
    database = one_by_one(encoder, mixed / "database", "hard_resize")[:, 0]
    paths = read_catalogue(mixed / "database").table["path"].to_pylist()
    expected = []
    for crops in one_by_one(encoder, mixed / "queries", kind):
        squared = ((crops[:, None] - database[None]) ** 2).sum(axis=2)
        nearest = np.argsort(squared, axis=1)[:, :5]
        scores = {}
        for crop, rows in enumerate(nearest):
            for rank, row in enumerate(rows.tolist()):
                votes = [(n, int((nearest[:, :n] == row).sum())) for n in (1, 5, 10) if rank < n]
                won = sum(0.01 * count / n for n, count in votes if count > 1) if kind == "maj_voting" else 0.0
                scores[row] = min(scores.get(row, np.inf), squared[crop, row] - won)
        expected.append([paths[row] for row in sorted(scores, key=scores.get)[:5]])
    assert predictions_in(tmp_path) == expected


def test_encoders_baselines_and_foreign_descriptors_stand_in_one_table(encoder, mixed, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for side in ("database", "queries"):
        np.save(foreign / f"{side}_descriptors.npy", one_by_one(encoder, mixed / side, "hard_resize")[:, 0])
    names = [encoder, "open_clip:tiny-vit:random", "thumbnail", foreign]
    evaluated(names, mixed, tmp_path, command="compare")
    table = json.loads((tmp_path / "compare.json").read_text())
    assert [line["encoder"] for line in table] == [str(name) for name in names]
    assert [line["descriptor_dim"] for line in table] == [128, 128, 768, 128]
    assert predictions_in(next(tmp_path.glob("1_*"))) == predictions_in(next(tmp_path.glob("4_*")))
    assert all(line["images_per_second"] > 0 for line in table[:3])
    assert table[3]["images_per_second"] is None
    assert {path.name for path in tmp_path.glob("2_*/*")} == {path.name for path in tmp_path.glob("4_*/*")}
    with (tmp_path / "compare.csv").open() as stream:
        head, *lines = csv.reader(stream)
    times = ["images/s", "search, ms per query", "total, ms per query"]
    assert head[:8] == ["encoder", "dimensions", *times, "R@1", "R@2", "R@5"]
    assert [line[5] for line in lines] == [f"{line['recalls']['1']:.1f}" for line in table]
    assert [line["total_ms"] is None for line in table] == [False, False, False, True]
    shown = (tmp_path / "compare.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[5].strip("* ≈") for line in shown[2:6]] == [line[5] for line in lines]
    assert len(files_in(tmp_path / "2_open_clip_tiny-vit_random")) == 5


@pytest.mark.parametrize(
    ("names", "words"), [(["--encoders", "[]"], "got none"), (["thumbnail", "thumbnail"], "each once")]
)
def test_a_table_of_no_encoder_or_of_one_twice_is_refused(names, words, mixed, tmp_path):
    with pytest.raises(SystemExit, match=words):
        evaluated(names, mixed, tmp_path, command="compare")


@pytest.mark.parametrize(
    ("database", "queries", "words"),
    [
        (
            np.zeros((9, 4), np.float32),
            np.zeros((10, 4), np.float32),
            r"a row for each of the 10 images .* got \(9, 4\)",
        ),
        (np.zeros((10, 4), np.float32), np.zeros((6, 5), np.float32), "have 4 dimensions, those of the queries 5"),
        (np.zeros((10, 4), np.float32), None, "There is no .*queries_descriptors.npy"),
        (np.full((10, 4), np.nan, np.float32), np.zeros((6, 4), np.float32), "numbers that are not finite"),
    ],
)
def test_foreign_descriptors_that_do_not_fit_are_refused(database, queries, words, mixed, tmp_path):
    np.save(tmp_path / "database_descriptors.npy", database)
    if queries is not None:
        np.save(tmp_path / "queries_descriptors.npy", queries)
    with pytest.raises(SystemExit, match=words):
        evaluated(tmp_path, mixed, tmp_path / "out")


def test_an_index_of_foreign_descriptors_is_not_written_beside_them(mixed, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "other").mkdir()
    for side, count in (("database", 10), ("queries", 6)):
        np.save(tmp_path / f"other/{side}_descriptors.npy", rng.random((count, 4), np.float32))
    before = files_in(tmp_path / "other")
    evaluated(tmp_path / "other", mixed, tmp_path / "out", "--faiss", "SQ8")
    assert files_in(tmp_path / "other") == before
    assert len([name for name in files_in(tmp_path / "out") if name.endswith(".faiss")]) == 1


def test_features_of_a_repaired_image_are_extracted_and_no_others_again(encoder, mixed, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(mixed, folder)
    broken = sorted((folder / "database").iterdir())[2]
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"1 of 10 images cannot be read, more than --max_unreadable_fraction"):
        evaluated(encoder, folder, tmp_path / "out", "--max_unreadable_fraction", "0")
    broken.write_bytes(whole)
    evaluated(encoder, folder, tmp_path / "out")
    assert (tmp_path / "out/recalls.json").is_file()
    broken.write_bytes(whole + b"0")
    with pytest.raises(SystemExit, match="1 of 10 images looked at changed since their features were"):
        evaluated(encoder, folder, tmp_path / "out")


@pytest.mark.parametrize("ns", ["[0]", "[-1]", "[]"])
def test_an_n_that_cannot_be_is_refused_before_anything_is_described(ns, encoder, mixed, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--encoder", str(encoder), "--folder", str(mixed), "--out", str(tmp_path), "--recall_ns", ns])
    assert "recall_ns" in str(stop.value.code) + capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_an_index_loses_is_said_of_the_queries_that_count(encoder, mixed, tmp_path):
    more = ["--query_preprocessing", "five_crops", "--without_positive", "excluded", "--positive_radius_m", "15"]
    evaluated(encoder, mixed, tmp_path / "a", *more)
    evaluated(encoder, mixed, tmp_path / "b", *more, "--faiss", "PQ1x2")
    exact, found = (json.loads((tmp_path / name / "recalls.json").read_text()) for name in ("a", "b"))
    lost = found["recalls"]["R@1"] - exact["recalls"]["R@1"]
    assert found["index"] == f"PQ1x2: R@1 {lost:+.1f} against exact search"
