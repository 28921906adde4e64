"""Class means of an encoder, and place indexes of classes."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from indexes import blurred, command, localized
from PIL import Image
from running import files_in
from scipy.special import softmax

from progeo.cli import main
from progeo.evaluation.classification import rank_classes
from progeo.export.classifier import load_classifier, load_encoder_and_classifier
from progeo.export.weights import load_encoder, read_encoder_metadata, save_encoder
from progeo.features.options import ClassOptions
from progeo.localization.class_means import partition_for_means
from progeo.localization.place_index import open_place_index
from progeo.localization.results import WRITERS, WritingOptions
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import read_catalogue
from progeo.places.cells import class_ids
from progeo.places.geographic import cell_corners


@pytest.fixture(scope="module")
def made(city, encoder, cache, tmp_path_factory):
    """An encoder with class means, and the index of them that is calibrated on blurred images and on other places."""
    folder = tmp_path_factory.mktemp("made")
    command("classes", cache, folder=city / "train", encoder=encoder, out=folder / "means")
    command("index build", cache, folder=city / "train", encoder=encoder, of="means", out=folder / "index")
    blurred([*sorted((city / "train").iterdir())[::2], *(city / "test/database").iterdir()], folder / "photos")
    command("index calibrate", cache, folder=folder / "photos", index=folder / "index")
    return folder


def descriptors_of(encoder, paths):
    with torch.no_grad():
        return encoder(torch.stack([encoder.preprocess(Image.open(path)) for path in paths])).numpy()


def test_class_means_are_the_means_of_unit_descriptors(city, encoder, cache, tmp_path, capsys):
    shutil.copytree(city / "train", tmp_path / "images")
    first = sorted((tmp_path / "images").iterdir())[0]
    (tmp_path / "images" / first.name.replace("@.jpg", "broken@.jpg")).write_bytes(b"broken")
    cells = {"cell_side_m": 30, "heading_bin_deg": 90, "min_images_per_class": 2}
    command(
        "classes",
        cache,
        folder=tmp_path / "images",
        encoder=encoder,
        out=tmp_path / "out",
        max_unreadable_fraction=1,
        **cells,
    )
    assert "1 of 85 images cannot be read" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == {"model.json", "model.safetensors", "classifier.safetensors"}
    loaded, classifier = load_encoder_and_classifier(tmp_path / "out")
    images = read_catalogue(city / "train")
    ids = class_ids(images.east, images.north, images.heading, cell_side_m=30, heading_bin_deg=90)
    found, counts = np.unique(ids, axis=0, return_counts=True)
    assert classifier.class_ids.tolist() == found[counts >= 2].tolist()
    assert classifier.num_images.tolist() == counts[counts >= 2].tolist()
    descriptors = descriptors_of(loaded, map(images.path, range(len(images)))).astype(np.float64)
    for row, class_id in enumerate(classifier.class_ids):
        of_class = descriptors[(ids == class_id).all(axis=1)]
        mean = np.mean([each / np.linalg.norm(each) for each in of_class], axis=0)
        np.testing.assert_allclose(classifier.weight[row], mean / np.linalg.norm(mean), atol=1e-5)
    assert (classifier.kind, classifier.scale, classifier.frame.zone) == ("means", 100.0, 10)
    assert {name: classifier.cells[name] for name in cells} == cells


CELLS_OF_TRAINING = {"cell_side_m": 10, "heading_bin_deg": 30, "min_images_per_class": 3, "num_groups": 8}


@pytest.mark.parametrize(
    ("provenance", "options", "expected"),
    [
        ({}, {}, (20, 360, 1)),
        ({"settings": {"cells": CELLS_OF_TRAINING}}, {}, (10, 30, 3)),
        ({"settings": {"cells": CELLS_OF_TRAINING}}, {"cell_side_m": 25, "min_images_per_class": 1}, (25, 30, 1)),
        ({}, {"heading_bin_deg": 90}, (20, 90, 1)),
    ],
)
def test_cells_are_those_given_else_those_of_training(provenance, options, expected, city, tmp_path):
    encoder = build_encoder("tiny-resnet", "random", 48)
    save_encoder(tmp_path, encoder, provenance=provenance, recalls={})
    names = ("cell_side_m", "heading_bin_deg", "min_images_per_class")
    found = partition_for_means(read_catalogue(city / "train"), str(tmp_path), ClassOptions(**options)).settings
    assert (tuple(found[name] for name in names), found["num_groups"]) == (expected, 1)


def test_means_of_an_encoder_with_a_classifier_have_its_cells_and_keep_its_metadata(made, city, cache, tmp_path):
    shutil.copytree(made / "means", tmp_path / "first")
    metadata = json.loads((tmp_path / "first/model.json").read_text())
    metadata |= {"recalls": {"val R@1": 91.3, "val LR@1": 36.0}}  # the latter of other vectors
    metadata |= {"provenance": {"epoch": 3, "settings": {"cells": CELLS_OF_TRAINING}}}
    (tmp_path / "first/model.json").write_text(json.dumps(metadata))
    command("classes", cache, folder=city / "test/database", encoder=tmp_path / "first", out=tmp_path / "second")
    assert load_classifier(tmp_path / "second").cell_side_m == 20
    kept = read_encoder_metadata(tmp_path / "second")
    assert (kept["recalls"], kept["provenance"]["epoch"]) == ({"val R@1": 91.3}, 3)


def test_the_folder_of_an_index_of_classes_stands_for_its_encoder_and_classes(made, city, cache, tmp_path):
    words = ["--by", "classes", "--folder", str(city / "test"), "--out", str(tmp_path), "--num_workers", "0"]
    main(["compare", str(made / "index"), str(made / "means"), *words, "--descriptor_cache", str(cache)])
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert rows[0]["recalls"] == rows[1]["recalls"]
    assert (rows[0]["encoder"], rows[0]["measure"]) == (str(made / "index"), "LR")


def test_an_index_of_classes_has_the_vectors_of_the_classifier(made, city, cache, tmp_path):
    command("index build", cache, encoder=made / "means", of="classes", out=tmp_path / "index")
    classifier = load_classifier(made / "means")
    for folder in (tmp_path / "index", made / "index"):
        opened = open_place_index(folder)
        vectors = opened.parts[0].descriptors
        np.testing.assert_allclose(vectors, classifier.weight, atol=1e-6)
        tables = [each.table.drop_columns("heading") for each in (opened.catalogue, classifier.catalogue)]
        assert tables[0].equals(tables[1]) and np.isnan(opened.catalogue.heading).all()
        assert (opened.metadata.images, opened.metadata.cell_side_m, opened.metadata.scale) == (
            len(classifier),
            20,
            100,
        )
        np.testing.assert_array_equal(load_classifier(folder).class_ids, classifier.class_ids)
        found = [opened.search(factor * vectors[::3]) for factor in (1, 5)]  # of cosines, whatever the length
        assert found[1].rows.tolist() == found[0].rows.tolist()
        np.testing.assert_allclose(found[1].distances, found[0].distances, atol=1e-3)
    assert open_place_index(tmp_path / "index").metadata.of == "classes"
    assert open_place_index(made / "index").metadata.of == "means"


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_localizing_ranks_classes_by_cosine_with_probabilities(temperature, made, city, tmp_path):
    photos = sorted((city / "test/queries").iterdir())
    shutil.copytree(made / "index", tmp_path / "index")
    metadata = json.loads((made / "index/index.json").read_text())
    metadata["calibration"]["temperature"] = temperature
    (tmp_path / "index/index.json").write_text(json.dumps(metadata))
    results = localized(tmp_path / "index", *photos, top=3)
    encoder, classifier = load_encoder_and_classifier(made / "means")
    ranked = rank_classes(descriptors_of(encoder, photos), classifier.weight, normalize=True, count=len(classifier))
    probabilities = softmax(ranked.scores.astype(float) * 100 / temperature, axis=1)
    places = classifier.catalogue.table.to_pylist()
    for result, rows, shares in zip(results, ranked.rows, probabilities, strict=True):
        assert [match.path for match in result.matches] == [places[row]["path"] for row in rows[:3]]
        assert [match.latitude for match in result.matches] == [places[row]["latitude"] for row in rows[:3]]
        assert [match.probability for match in result.matches] == pytest.approx(shares[:3].tolist(), rel=0.02)
        meters = np.linalg.norm(classifier.centers_m[rows] - classifier.centers_m[rows[0]], axis=1)
        assert result.confidence == pytest.approx(shares[meters <= 25].sum(), rel=0.02)
        assert result.known is (result.confidence >= 0.5)
        assert f"    1  {100 * result.matches[0].probability:5.1f} %  {result.matches[0].position}  cell " in str(
            result
        )


def test_confidence_of_classes_tells_known_places_from_others(made, city):
    photos = sorted((made / "photos").iterdir())
    train = {path.name for path in (city / "train").iterdir()}
    results = localized(made / "index", *photos)
    known, other = (
        np.mean([each.confidence for each, path in zip(results, photos, strict=True) if (path.name in train) is inside])
        for inside in (True, False)
    )
    assert known > other
    calibration = json.loads((made / "index/index.json").read_text())["calibration"]
    assert calibration.keys() == {"radius_m", "temperature", "num_photos", "num_correct", "error"}
    assert calibration["num_photos"] == len(photos)


def test_classes_are_written_as_polygons_of_their_cells(made, city, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    photo = sorted((city / "test/queries").iterdir())[0]
    results = localized(made / "index", photo, broken, top=2)
    for suffix, write in WRITERS.items():
        write(tmp_path / f"out{suffix}", results, WritingOptions(index=open_place_index(made / "index")))
    features = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert [feature["properties"].get("rank") for feature in features] == [1, 2, None]
    assert features[2]["geometry"] is None
    for feature, match in zip(features, results[0].matches, strict=False):
        (ring,) = feature["geometry"]["coordinates"]
        assert (feature["geometry"]["type"], len(ring), ring[0]) == ("Polygon", 5, ring[4])
        assert np.mean(ring[:4], axis=0) == pytest.approx([match.longitude, match.latitude], abs=1e-7)
        (west, south), (east, south_2), (east_2, north), (west_2, north_2) = ring[:4]
        assert west < east and west_2 < east_2 and south < north_2 and south_2 < north  # counterclockwise
        assert feature["properties"]["probability"] == match.probability
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[0]["probability"]) == results[0].matches[0].probability
    assert "corners" not in rows[0]
    assert len(json.loads((tmp_path / "out.json").read_text())[0]["matches"][0]["corners"]) == 4
    drawn = json.loads(re.search(r'id="map-data">(.*?)</script>', (tmp_path / "out.html").read_text())[1])
    (cells,) = drawn["polygons"]
    assert cells["corners"][:2] == pytest.approx(results[0].matches[0].corners[0][::-1], abs=1e-6)


def test_corners_are_half_a_side_from_the_center_along_utm(made):
    classifier = load_classifier(made / "means")
    corners = cell_corners(classifier.catalogue, side_m=20)
    for row, offset_m in enumerate([(-10, -10), (10, -10), (10, 10), (-10, 10)]):
        columns = classifier.frame.columns(classifier.centers_m + offset_m)
        expected = np.stack([columns["longitude"], columns["latitude"]], axis=1)
        np.testing.assert_allclose(corners[:, row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("index add {made}/index --folder {city}/test/database", "is of classes, and images cannot be added to it"),
        (
            "index build {made}/means --of classes --folder {city}/train --out x",
            "An index of classes .* without images",
        ),
        ("index build {made}/means --of means --out x", "--folder is needed: an index of images or means"),
        ("index build {made}/means --out x", "--folder is needed"),
        ("index build {encoder} --of classes --out x", "There is no classifier.safetensors in .*`progeo classes`"),
        ("index build {encoder} --folder {city}/train --cell_side_m 5 --out x", "--cell_side_m is for --of means"),
        ("index calibrate {made}/index --folder {made}/photos --max_loss 1", "--max_loss is for an index of inverted"),
        (
            "classes {encoder} --folder {city}/train --out {made}/means",
            "already holds model.json, .* another folder with --out",
        ),
        ("classes thumbnail --folder {city}/train --out x", "saved, thumbnail cannot"),
        ("classes {encoder} --folder {city}/train --min_images_per_class 999 --out x", "No class has --min_images"),
    ],
)
def test_mistakes_end_in_a_sentence(words, sentence, made, city, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        main(words.format(made=made, city=city, encoder=encoder).split())
    assert not (tmp_path / "x").exists()


LOGISTIC = {"means": [0, 0], "stds": [1, 1], "weights": [0, 0, 0], "num_photos": 30, "num_correct": 20}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"of": "places"}, "expected one of images, classes, means, got 'places' in of"),
        ({"of": "images"}, "is of images, which its cell_side_m or scale contradicts"),
        ({"cell_side_m": 0}, "is of means, which its cell_side_m or scale contradicts"),
        ({"scale": -1}, "expected float >= 0.0, got -1 in scale"),
        ({"classifier": "../model"}, "got '../model' in classifier"),
        ({"classifier": "model"}, "The classifier or partition in .* contradicts its kind, Flat"),
        ({"partition": "0123"}, "The classifier or partition in .* contradicts its kind, Flat"),
        ({"kind": "cells"}, "The classifier or partition in .* contradicts its kind, cells"),
        ({"calibration": {**LOGISTIC, "radius_m": 25, "error": 0.1}}, "The calibration in .* is not one of means"),
    ],
)
def test_metadata_that_contradict_each_other_are_refused(changes, words, made, tmp_path):
    shutil.copytree(made / "index", tmp_path / "index")
    file = tmp_path / "index/index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=words):
        open_place_index(tmp_path / "index")


def test_an_index_of_before_there_were_classes_is_one_of_images(city, encoder, cache, tmp_path):
    command("index build", cache, folder=city / "test/database", encoder=encoder, out=tmp_path / "index")
    file = tmp_path / "index/index.json"
    values = json.loads(file.read_text())
    file.write_text(
        json.dumps({name: values[name] for name in values.keys() - {"of", "cell_side_m", "scale", "classifier"}})
    )
    opened = open_place_index(tmp_path / "index")
    assert (opened.metadata.of, opened.metadata.holds_classes) == ("images", False)
    (result,) = localized(tmp_path / "index", sorted((city / "test/database").iterdir())[0])
    assert (result.matches[0].probability, result.matches[0].corners) == (None, None)


def test_rows_of_a_linear_head_give_the_scale(made, cache, tmp_path):
    encoder, classifier = load_encoder(made / "means"), load_classifier(made / "means")
    linear = replace(
        classifier, kind="linear", scale=1.0, weight=3 * classifier.weight, bias=np.zeros(len(classifier), np.float32)
    )
    save_encoder(tmp_path / "linear", encoder, provenance={}, recalls={}, classifier=linear)
    command("index build", cache, encoder=tmp_path / "linear", of="classes", out=tmp_path / "index")
    assert open_place_index(tmp_path / "index").metadata.scale == pytest.approx(3)
