import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from running import files_in

from progeo.cli import main
from progeo.engine.accelerator import start_accelerator
from progeo.export.classifier import load_encoder_and_classifier
from progeo.export.weights import save_encoder
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import read_catalogue

QUERIES = ("--queries", "known/queries", "--num_workers", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classes")


@pytest.fixture(scope="module")
def encoder(city, folder):
    """An encoder with the mean descriptors of the places of the toy city."""
    torch.manual_seed(0)
    own = save_encoder(folder / "own", build_encoder("tiny-resnet", "random", 48).eval(), provenance={}, recalls={})
    cells = ["--cell_side_m", "2", "--heading_bin_deg", "30"]
    work = ["--num_workers", "0", "--descriptor_cache", str(folder / "cache")]
    main(["classes", str(own), "--folder", str(city / "train"), "--out", str(folder / "means"), *cells, *work])
    return folder / "means"


@pytest.fixture(scope="module")
def linear(encoder, folder):
    """The same encoder with a linear head whose vectors have different lengths."""
    loaded, classifier = load_encoder_and_classifier(encoder)
    rng = np.random.default_rng(0)
    weight = classifier.weight * rng.uniform(0.5, 2, (len(classifier), 1)).astype(np.float32)
    bias = rng.normal(size=len(classifier)).astype(np.float32) / 4
    classifier = replace(classifier, kind="linear", weight=weight, bias=bias, scale=1.0)
    return save_encoder(folder / "linear", loaded, provenance={}, recalls={}, classifier=classifier)


def descriptors_of(encoder, catalogue, cache, *, images=ImageOptions(), **changes):
    accelerator, work, cache = start_accelerator("no"), WorkOptions(num_workers=0), CacheOptions(descriptor_cache=cache)
    extractor = descriptor_extractor(encoder, images, accelerator, **changes)
    rows = extract_descriptors(extractor, catalogue, accelerator, work=work, cache=cache)
    return np.concatenate(list(rows.parts()))


def evaluate(encoder, city, out, *words):
    cache = Path(encoder).parent / "cache"
    main(["evaluate", str(encoder), "--folder", str(city), "--out", str(out), "--descriptor_cache", str(cache), *words])
    return read(out) if (out / "recalls.json").exists() else None


def read(out):
    return json.loads((out / "recalls.json").read_text())


def predictions_of(out):
    with (out / "predictions.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("raw_scores", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_localization_recall_is_recall_of_class_centers(city, linear, tmp_path, raw_scores):
    words = ["--by", "classes", "--queries", "train", "--num_workers", "0"]
    found = evaluate(linear, city, tmp_path, *words, *(["--raw_scores"] if raw_scores else []))
    encoder, classifier = load_encoder_and_classifier(linear)
    queries = read_catalogue(city / "train")
    descriptors = descriptors_of(encoder, queries, linear.parent / "cache")
    hits = {(radius, n): 0 for radius in (5, 25, 100) for n in (1, 5, 10, 20)}
    best, errors = [], []
    for descriptor, east, north in zip(descriptors, queries.east, queries.north, strict=True):
        ranked = []
        for row, (vector, bias) in enumerate(zip(classifier.weight, classifier.bias, strict=True)):
            score = float(descriptor @ vector)
            score = score + bias if raw_scores else score / float(np.linalg.norm(vector))
            ranked.append((-score, row))
        rows = [row for _, row in sorted(ranked)]
        center_east, center_north = (classifier.class_ids[rows, :2] + 1.0).T
        meters = np.hypot(center_east - east, center_north - north)
        best.append(rows[0])
        errors.append(meters[0])
        for radius, n in hits:
            hits[radius, n] += bool((meters[:n] <= radius).any())
    percents = {key: 100 * count / len(queries) for key, count in hits.items()}
    assert 0 < percents[25, 1] < percents[25, 5] < 100
    assert found["recalls"] == {f"LR@{n}": pytest.approx(percents[25, n]) for n in (1, 5, 10, 20)}
    in_table = {(row["criterion"], row["n"]): row["percent"] for row in found["table"] if row["queries"] == "all"}
    assert in_table == {(f"within {radius} m", n): pytest.approx(percent) for (radius, n), percent in percents.items()}
    assert found["errors"]["median_m"] == pytest.approx(np.median(errors))
    assert found["errors"]["ninetieth_m"] == pytest.approx(np.quantile(errors, 0.9))
    first = [row for row in predictions_of(tmp_path) if row["rank"] == "1"]
    assert [row["class"] for row in first] == [classifier.catalogue.name(row) for row in best]
    assert {name: float(first[0][name]) for name in ("east", "north", "distance_m")} == {
        "east": classifier.centers_m[best[0], 0],
        "north": classifier.centers_m[best[0], 1],
        "distance_m": pytest.approx(errors[0], abs=0.01),
    }


def test_an_evaluation_by_classes_needs_no_database_and_leaves_these_files(city, encoder, tmp_path):
    (tmp_path / "photos/queries").mkdir(parents=True)
    for path in sorted((city / "known/queries").iterdir())[:3]:
        (tmp_path / "photos/queries" / path.name).symlink_to(path)
    found = evaluate(encoder, tmp_path / "photos", tmp_path / "out", "--by", "classes", "--num_workers", "0")
    assert files_in(tmp_path / "out") == {
        "recalls.json",
        "recalls.csv",
        "recalls.md",
        "predictions.csv",
        "report.html",
        "environment.json",
        "reproduce.sh",
    }
    _, classifier = load_encoder_and_classifier(encoder)
    images = read_catalogue(tmp_path / "photos/queries")
    cells = np.floor(np.stack([images.east, images.north], axis=1) / 2) * 2
    inside = (cells[:, None] == classifier.class_ids[:, :2]).all(axis=2).any(axis=1)
    assert found["queries in the cell of a class"] == f"{inside.sum()} of 3"
    assert found["database"] == f"{len(classifier)} classes, class means, cells of 2 m"
    assert "| LR@1 | LR@5 | LR@10 | LR@20 |" in (tmp_path / "out/recalls.md").read_text()
    with (tmp_path / "out/recalls.csv").open() as stream:
        assert {row["measure"] for row in csv.DictReader(stream)} == {"LR@1", "LR@5", "LR@10", "LR@20"}
    html = (tmp_path / "out/report.html").read_text()
    data = {
        name: json.loads(html.partition(f'id="{name}-data">')[2].partition("</script>")[0])
        for name in ("gallery", "map")
    }
    cells = [items for row in data["gallery"]["rows"] for title, items in row[4] if title == 0]
    assert [len(items) for items in cells] == [5] * 3
    assert sum(bool(picture) for _, picture in data["gallery"]["photos"]) == 3
    assert data["map"]["details"].keys() == {"0", "1", "2"}
    assert data["map"]["unit"] == "degrees"
    for detail in data["map"]["details"].values():  # 20 probable classes at least, several in one cell
        assert 0 < sum(detail["polygons"][0]["weights"]) <= 1.001
        assert len(detail["polygons"][0]["corners"]) == 8 * len(detail["polygons"][0]["weights"])


@pytest.mark.parametrize("preprocessing", ["nearest_crop", "maj_voting"])
def test_crops_are_ranked_separately(city, encoder, tmp_path, preprocessing):
    evaluate(encoder, city, tmp_path, "--by", "classes", *QUERIES, "--query_preprocessing", preprocessing)
    loaded, classifier = load_encoder_and_classifier(encoder)
    queries = read_catalogue(city / "known/queries")
    crops = descriptors_of(loaded, queries, encoder.parent / "cache", preprocessing="nearest_crop")
    names = [row["class"] for row in predictions_of(tmp_path) if row["rank"] == "1"]
    found = [classifier.catalogue.table["path"].to_pylist().index(name) for name in names]
    for row, five in zip(found, crops.reshape(len(queries), 5, -1), strict=True):
        squared = ((five[:, None] - classifier.weight) ** 2).sum(axis=2)
        nearer = squared.copy()
        if preprocessing == "maj_voting":
            for n in (1, 5, 10):
                among = np.argsort(squared, axis=1)[:, :n]
                for label in np.unique(among):
                    if (count := (among == label).sum()) > 1:
                        nearer[(among == label).any(axis=1), label] -= 0.01 * count / n
        assert nearer[:, row].min() == pytest.approx(nearer.min(), abs=1e-6)


def test_queries_without_positions_get_the_most_probable_classes(city, encoder, tmp_path):
    words = ("--by", "classes", "--no_labels", "--temperature", "2", *QUERIES)
    assert evaluate(encoder, city, tmp_path, *words) is None
    rows = predictions_of(tmp_path)
    assert list(rows[0]) == ["query", "rank", "class", "east", "north", "latitude", "longitude", "probability"]
    loaded, classifier = load_encoder_and_classifier(encoder)
    scores = (
        descriptors_of(loaded, read_catalogue(city / "known/queries"), encoder.parent / "cache") @ classifier.weight.T
    )
    odds = np.exp(classifier.scale / 2 * scores[0].astype(float))
    expected = sorted(odds / odds.sum(), reverse=True)[:20]
    assert [float(row["probability"]) for row in rows[:20]] == pytest.approx(expected, abs=2e-4)
    meaning = f"softmax of 100 x cosine over {len(classifier)} classes, with temperature 2"
    assert meaning in (tmp_path / "report.html").read_text()
    text = " ".join((tmp_path / "report.html").read_text().split())
    assert "queries without ground truth, those with the most probable classes first." in text


def test_the_best_cells_are_searched_and_compared_with_an_exact_search(city, encoder, tmp_path):
    words = ("--database", "train", *QUERIES, "--faiss", "cells")
    few = evaluate(encoder, city, tmp_path / "few", *words, "--probes", "3")
    all_ = evaluate(encoder, city, tmp_path / "all", *words, "--probes", "10000")
    exact = evaluate(encoder, city, tmp_path / "exact", "--database", "train", *QUERIES)
    assert all_["recalls"] == exact["recalls"]
    assert all_["index"] == "cells: R@1 +0.0 against exact search"
    lost = few["recalls"]["R@1"] - exact["recalls"]["R@1"]
    assert few["index"] == f"cells: R@1 {lost:+.1f} against exact search"
    num_images = len(read_catalogue(city / "train"))
    assert all_["rows read"] == f"{num_images}.0 of {num_images} images per query, 100.00 %"
    read_of_few = float(few["rows read"].split()[0])
    assert 3 <= read_of_few < num_images / 2
    _, classifier = load_encoder_and_classifier(encoder)
    assert few["cells"] == f"{len(classifier)} classes, {len(classifier)} of them with database images; 3 searched"


def test_cells_are_searched_for_queries_without_positions(city, encoder, tmp_path):
    words = ("--database", "train", *QUERIES, "--faiss", "cells", "--probes", "2")
    evaluate(encoder, city, tmp_path / "known", *words)
    evaluate(encoder, city, tmp_path / "unknown", *words, "--no_labels")
    found = [
        [(row["query"], row["database"]) for row in predictions_of(tmp_path / name)] for name in ("known", "unknown")
    ]
    assert found[0] == found[1]


def test_another_encoder_can_choose_the_cells(city, encoder, folder, tmp_path):
    torch.manual_seed(1)
    other = build_encoder("tiny-vit", "random", 64).eval()
    save_encoder(tmp_path / "other", other, provenance={}, recalls={})
    words = ("--database", "train", *QUERIES, "--faiss", "cells", "--classifier", str(encoder))
    words = (*words, "--image_size", "96")  # of the images, not of those that choose cells
    found = evaluate(tmp_path / "other", city, tmp_path / "out", *words, "--probes", "1")
    loaded, classifier = load_encoder_and_classifier(encoder)
    queries, database = read_catalogue(city / "known/queries"), read_catalogue(city / "train")
    chosen = (descriptors_of(loaded, queries, tmp_path / "cache") @ classifier.weight.T).argmax(axis=1)
    corners = np.stack([database.east, database.north, database.heading % 360], axis=1) // [2, 2, 30] * [2, 2, 30]
    sized = ImageOptions(image_size=96)
    mine, theirs = (descriptors_of(other, each, tmp_path / "cache", images=sized) for each in (queries, database))
    first = {row["query"]: row["database"] for row in predictions_of(tmp_path / "out") if row["rank"] == "1"}
    sizes = []
    for row, label in enumerate(chosen):
        members = np.flatnonzero((corners == classifier.class_ids[label]).all(axis=1))
        nearest = members[np.linalg.norm(theirs[members] - mine[row], axis=1).argmin()]
        assert first[queries.name(row)] == database.name(int(nearest))
        sizes.append(len(members))
    assert found["rows read"].startswith(f"{np.mean(sizes):.1f} of ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "classes", "--faiss", "Flat"], "--faiss Flat searches database images, which --by classes has none"),
        (["--raw_scores"], "--raw_scores are those of classes: set --by to classes"),
        (["--temperature", "2"], "--temperature is that of the probabilities of classes: set --by to classes"),
        (["--classifier", "x"], "--classifier chooses the cells of an index: set --faiss to cells"),
        (["--by", "classes", "--one_per_panorama"], "--one_per_panorama, which a --protocol may set, counts views"),
        (
            ["--by", "classes", "--protocol", "pitts30k_test"],
            "--protocol pitts30k_test has 6,816 queries, .* has 6, so",
        ),
        (["--by", "classes", "--queries", "gone"], "There is no folder .*gone"),
    ],
)
def test_options_that_do_not_fit_are_refused(city, encoder, tmp_path, words, message):
    with pytest.raises(SystemExit, match=message):
        evaluate(encoder, city / "val", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--by", "classes"], ["--faiss", "cells"]])
def test_an_encoder_without_a_classifier_is_refused(city, encoder, tmp_path, words):
    with pytest.raises(SystemExit, match=r"There is no classifier.safetensors in .*own"):
        evaluate(encoder.parent / "own", city, tmp_path / "out", *QUERIES, *words)


def test_descriptors_of_another_program_need_a_classifier_to_be_searched_by_cells(city, tmp_path):
    for side in ("database", "queries"):
        np.save(tmp_path / f"{side}_descriptors.npy", np.zeros((1, 4), np.float32))
    with pytest.raises(SystemExit, match=r"holds descriptors without a classifier: name one with --classifier"):
        evaluate(tmp_path, city, tmp_path / "out", *QUERIES, "--faiss", "cells")


def test_queries_outside_of_all_cells_are_warned_about(city, encoder, tmp_path, capsys):
    found = evaluate(encoder, city / "val", tmp_path, "--by", "classes", "--num_workers", "0")
    assert found["queries in the cell of a class"].startswith("0 of ")
    assert (
        "no query lies in the cell of a class, so classification can at best name a cell near by"
        in capsys.readouterr().err
    )


def test_a_classifier_of_another_city_cannot_choose_cells(city, encoder, tmp_path):
    loaded, classifier = load_encoder_and_classifier(encoder)
    moved = replace(classifier, class_ids=classifier.class_ids + np.array([10_000, 0, 0]))
    save_encoder(tmp_path / "moved", loaded, provenance={}, recalls={}, classifier=moved)
    with pytest.raises(SystemExit, match=r"No image in .* lies in a cell of the --classifier"):
        evaluate(tmp_path / "moved", city, tmp_path / "out", "--database", "train", *QUERIES, "--faiss", "cells")


def test_encoders_are_compared_by_their_classes(city, encoder, linear, tmp_path):
    words = ["--folder", str(city), "--by", "classes", *QUERIES, "--out", str(tmp_path)]
    main(["compare", str(encoder), str(linear), *words, "--descriptor_cache", str(encoder.parent / "cache")])
    table = json.loads((tmp_path / "compare.json").read_text())
    for row, number in zip(table, ("1", "2"), strict=True):
        (part,) = tmp_path.glob(f"{number}_*")
        assert {f"LR@{n}": percent for n, percent in row["recalls"].items()} == read(part)["recalls"]
    assert "| LR@1 |" in (tmp_path / "compare.md").read_text()
