"""Evaluations whose predictions are re-ranked, of descriptors that are known."""

import csv
import json

import numpy as np
import pytest

from progeo.cli import main
from progeo.data.decode import read_image
from progeo.evaluation.metrics import first_of_each_panorama
from progeo.evaluation.rerank import k_reciprocal
from progeo.places.catalogue import read_catalogue
from progeo.verification.matchers import build_matcher

RERANK = ["--rerank", "k_reciprocal", "--rerank_k1", "4", "--rerank_weight", "0.3"]


@pytest.fixture(scope="module")
def sides(city):
    """The database (12 images) and the queries (6) of a toy city."""
    return [read_catalogue(city / "val" / side) for side in ("database", "queries")]


@pytest.fixture(scope="module")
def described(sides, tmp_path_factory):
    """A folder of descriptors around the positions of the images."""
    folder, rng = tmp_path_factory.mktemp("described"), np.random.default_rng(0)
    for side, images in zip(("database", "queries"), sides, strict=True):
        positions = np.stack([images.east, images.north], axis=1) / 50
        noisy = np.concatenate([np.cos(positions), np.sin(positions)], axis=1) + rng.normal(size=(len(images), 4)) / 3
        np.save(folder / f"{side}_descriptors.npy", noisy.astype(np.float32))
    return folder


def evaluated(city, described, out, *words):
    common = ["--folder", str(city / "val"), "--out", str(out), "--recall_ns", "[1,5]", "--num_workers", "0"]
    main(["evaluate", str(described), *common, *words])
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = {query: [row["database"] for row in rows if row["query"] == query] for query in (r["query"] for r in rows)}
    return list(found.values())


def ranking_of(described):
    """Rows of the database in the order of the re-ranked distances."""
    database, queries = (np.load(described / f"{side}_descriptors.npy") for side in ("database", "queries"))
    return np.argsort(k_reciprocal(queries, database, k1=4, k2=1, weight=0.3), axis=1, kind="stable")


def test_predictions_are_those_with_the_smallest_reranked_distances_and_every_file_says_so(
    city, sides, described, tmp_path
):
    plain = evaluated(city, described, tmp_path / "plain")
    found = evaluated(city, described, tmp_path / "out", *RERANK)
    names = sides[0].table["path"].to_pylist()
    assert found == [[names[row] for row in rows] for rows in ranking_of(described)[:, :5].tolist()]
    assert found != plain
    before, after = (json.loads((tmp_path / name / "recalls.json").read_text()) for name in ("plain", "out"))
    how = "k_reciprocal, k1 4, k2 1, weight 0.3"
    assert after["re-ranking"] == how
    gain = after["recalls"]["R@1"] - before["recalls"]["R@1"]
    assert after["re-ranking effect"] == f"R@1 {gain:+.1f} against exact search"
    assert after["re-ranking cost"].endswith(" MB of neighbors; all distances are 0.0 MB")
    for name in ("recalls.md", "report.html"):
        assert how in (tmp_path / "out" / name).read_text()
        assert "re-rank" not in (tmp_path / "plain" / name).read_text()
    with (tmp_path / "out/recalls.csv").open() as stream:
        assert {row["re-ranking"] for row in csv.DictReader(stream)} == {how}
    assert "re-rank" not in (tmp_path / "plain/recalls.csv").read_text()


def test_a_comparison_of_reranked_encoders_says_so(city, described, tmp_path):
    words = [str(described), "thumbnail", "--folder", str(city / "val"), "--out", str(tmp_path), "--num_workers", "0"]
    main(["compare", *words, "--descriptor_cache", str(tmp_path / "cache"), "--recall_ns", "[1,5]", *RERANK])
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert [row["encoder"] for row in rows] == [f"{described}, re-ranked", "thumbnail, re-ranked"]
    assert all("re-ranking" in json.loads(path.read_text()) for path in tmp_path.glob("*/recalls.json"))


def test_panoramas_are_suppressed_after_reranking(city, sides, described, tmp_path):
    found = evaluated(city, described, tmp_path, *RERANK, "--one_per_panorama", "true")
    names = sides[0].table["path"].to_pylist()
    expected = first_of_each_panorama(ranking_of(described), sides[0].panoramas, 5)
    assert found == [[names[row] for row in rows[rows >= 0]] for rows in expected]


def test_queries_without_positions_are_reranked_alike(city, described, tmp_path):
    found = evaluated(city, described, tmp_path / "out", *RERANK, "--no_labels")
    assert found == evaluated(city, described, tmp_path / "labeled", *RERANK)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "classes"], "--rerank re-ranks database images, which --by classes has none of: omit one of them"),
        (["--faiss", "SQ8"], "--rerank searches exactly, and --faiss SQ8 does not: omit one of them"),
        (
            ["--query_preprocessing", "maj_voting"],
            "--rerank needs one descriptor of each query, and --query_preprocessing maj_voting searches for five crops",
        ),
        (["--rerank_k1", "18"], "--rerank_k1 must be below 18, the number of queries and database images; got 18"),
    ],
)
def test_what_cannot_be_reranked_is_refused(city, described, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        evaluated(city, described, tmp_path / "out", *RERANK, *words)
    assert not (tmp_path / "out").exists()


def test_the_first_images_are_sorted_by_how_many_points_match(city, sides, described, tmp_path):
    plain = evaluated(city, described, tmp_path / "plain")
    found = evaluated(city, described, tmp_path / "out", "--rerank", "matching", "--rerank_top", "3")
    matcher = build_matcher("sift")
    prepared = [
        {name: matcher.prepare(read_image(side.folder / name)) for name in side.table["path"].to_pylist()}
        for side in sides
    ]
    for query, before, after in zip(sorted(prepared[1]), plain, found, strict=True):
        inliers = [matcher.match(prepared[1][query], prepared[0][name]).inliers for name in before[:3]]
        order = np.argsort(-np.array(inliers), kind="stable")
        assert after == [before[rank] for rank in order] + before[3:]
    assert found != plain
    facts = json.loads((tmp_path / "out/recalls.json").read_text())
    assert facts["re-ranking"] == "matching, sift, first 3"
    assert facts["re-ranking cost"].startswith("18 pairs matched, ")
    assert facts["re-ranking effect"].endswith(" against exact search")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rerank_matcher", "surf"], "There is no matcher 'surf': take sift or vismatch:NAME"),
        (["--faiss", "IVF2,Flat"], "--rerank searches exactly, and --faiss IVF2,Flat does not"),
    ],
)
def test_matching_that_cannot_be_is_refused(city, described, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        evaluated(city, described, tmp_path / "out", "--rerank", "matching", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preprocessing", [pytest.param("hard_resize", marks=pytest.mark.slow), "nearest_crop"])
def test_panoramas_are_suppressed_after_matching(city, sides, tmp_path, preprocessing):
    words = ["thumbnail", "--folder", str(city / "val"), "--recall_ns", "[1,5]", "--num_workers", "0"]
    words += ["--descriptor_cache", str(tmp_path / "cache"), "--rerank", "matching"]
    words += ["--query_preprocessing", preprocessing, "--one_per_panorama", "true"]
    main(["evaluate", *words, "--out", str(tmp_path / "out")])
    with (tmp_path / "out/predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    panoramas = dict(zip(sides[0].table["path"].to_pylist(), sides[0].panoramas.tolist(), strict=True))
    for query in {row["query"] for row in rows}:
        seen = [panoramas[row["database"]] for row in rows if row["query"] == query]
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("rerank_k1", "4", "k_reciprocal"),
        ("rerank_k2", "2", "k_reciprocal"),
        ("rerank_weight", "0.3", "k_reciprocal"),
        ("rerank_top", "9", "matching"),
        ("rerank_matcher", "vismatch:loftr", "matching"),
    ],
)
def test_options_of_reranking_alone_are_refused(city, described, tmp_path, name, value, kind):
    with pytest.raises(SystemExit, match=f"--{name} is for re-ranking: set --rerank to {kind}, or omit it"):
        evaluated(city, described, tmp_path / "out", f"--{name}", value)
    assert not (tmp_path / "out").exists()
