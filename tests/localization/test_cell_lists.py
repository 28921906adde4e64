"""Place indexes whose inverted lists are map cells."""

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

from progeo.cli import main
from progeo.evaluation.cell_index import cell_of_images
from progeo.evaluation.classification import rank_classes
from progeo.export.classifier import load_classifier, load_encoder_and_classifier
from progeo.export.weights import load_encoder, save_encoder
from progeo.localization.place_index import open_place_index
from progeo.models.encoder import build_encoder
from progeo.places.catalogue import read_catalogue

PROBES = 2


@pytest.fixture(scope="module")
def made(city, encoder, cache, tmp_path_factory):
    """Class means of an encoder and of a smaller network, indexes of cells that either ranks, and photos."""
    folder = tmp_path_factory.mktemp("made")
    small = build_encoder("tiny-resnet", "random", 32, descriptor_dim=16, seed=5).eval()
    save_encoder(folder / "small", small, provenance={}, recalls={})
    cells = {"folder": city / "train", "heading_bin_deg": 90}
    command("classes", cache, encoder=encoder, out=folder / "means", **cells)
    command("classes", cache, encoder=folder / "small", out=folder / "small_means", cell_side_m=40, **cells)
    index = {"folder": city / "train", "faiss": "cells", "probes": PROBES}
    command("index build", cache, encoder=folder / "means", out=folder / "own", **index)
    command("index build", cache, encoder=encoder, classifier=folder / "small_means", out=folder / "other", **index)
    blurred([*sorted((city / "train").iterdir())[::2], *(city / "test/database").iterdir()], folder / "photos")
    return folder


def descriptors_of(encoder, paths):
    with torch.no_grad():
        return encoder(torch.stack([encoder.preprocess(Image.open(path)) for path in paths])).numpy()


@pytest.mark.parametrize(("index", "classes"), [("own", "means"), ("other", "small_means")])
def test_photos_are_compared_with_the_images_of_the_most_likely_cells(index, classes, made, city, encoder):
    photos = sorted((made / "photos").iterdir())
    ranking, classifier = load_encoder_and_classifier(made / classes)
    images = read_catalogue(city / "train")
    cell_of = cell_of_images(np.stack([images.east, images.north], axis=1), images.heading, classifier)
    paths = [str(images.path(row)) for row in range(len(images))]
    database, queries = (descriptors_of(load_encoder(encoder), each) for each in (paths, photos))
    ranked = rank_classes(descriptors_of(ranking, photos), classifier.weight, normalize=True, count=len(classifier))
    results = localized(made / index, *photos, top=len(images))
    assert len(set(cell_of)) > 2 * PROBES
    for result, descriptor, cells in zip(results, queries, ranked.rows, strict=True):
        rows = np.flatnonzero(np.isin(cell_of, cells[:PROBES]))
        distances = np.linalg.norm(database[rows] - descriptor, axis=1)
        assert [match.path for match in result.matches] == [paths[row] for row in rows[np.argsort(distances)]]
        assert [match.distance for match in result.matches] == pytest.approx(np.sort(distances).tolist(), abs=1e-3)


def test_an_index_keeps_the_classifier_and_its_network_only_if_it_is_another(made, city, cache, tmp_path):
    own, other = (files_in(made / name) for name in ("own", "other"))
    assert {name for name in own if "classifier" in name} == {"model/classifier.safetensors"}
    parts = ("classifier.safetensors", "model.json", "model.safetensors")
    assert {name for name in other if "classifier" in name} == {f"classifier/{part}" for part in parts}
    options = {"folder": city / "train", "faiss": "cells", "classifier": made / "means", "out": tmp_path / "index"}
    command("index build", cache, encoder=made / "own/model", **options)  # the same network
    assert open_place_index(tmp_path / "index").metadata.classifier == "model"


def test_a_descriptor_alone_searches_the_cells_by_their_means(made, city):
    opened = open_place_index(made / "other")
    photo = descriptors_of(opened.encoder, [next((city / "train").iterdir())])
    means = opened.parts[0].index.quantizer.reconstruct_n(0, opened.store.num_lists)
    rows = opened.search(photo, probes=1).rows[0]
    lists = [set(faiss_ids(opened.parts[0].index, each)) for each in range(opened.store.num_lists)]
    has_images = np.flatnonzero([len(each) for each in lists])
    assert set(rows[rows >= 0]) <= lists[has_images[rank_classes(photo, means[has_images], count=1).rows[0, 0]]]


def faiss_ids(index, number):
    lists = index.invlists
    return [lists.get_single_id(number, offset) for offset in range(lists.list_size(number))]


def paths_in_list(opened, number):
    names = [(part, part.images.table["path"].to_pylist()) for part in opened.parts]
    return {paths[row] for part, paths in names for row in faiss_ids(part.index, number)}


@pytest.mark.parametrize("index", ["own", "other"])
def test_added_images_are_in_the_cells_that_they_were_built_into(index, made, city, encoder, cache, tmp_path):
    images = tmp_path / "images"
    for number, path in enumerate(sorted((city / "train").iterdir())):
        (images / ("added" if number % 3 else "first")).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, images / ("added" if number % 3 else "first") / path.name)
    far = sorted((city / "val/database").iterdir())[0]  # in no cell
    shutil.copy(far, images / "added")
    classes = {"own": {"encoder": made / "means"}, "other": {"encoder": encoder, "classifier": made / "small_means"}}
    options = {"faiss": "cells", "probes": PROBES, **classes[index]}
    command("index build", cache, folder=images / "first", out=tmp_path / "grown", **options)
    command("index add", cache, folder=images / "added", index=tmp_path / "grown")
    command("index build", cache, folder=images, out=tmp_path / "whole", **options)
    found = []
    for name in ("grown", "whole"):
        opened = open_place_index(tmp_path / name)
        paths = opened.catalogue.table["path"].to_pylist()
        lists = [paths_in_list(opened, each) for each in range(opened.store.num_lists)]
        found.append(lists)
    assert found[0] == found[1]
    assert sum(map(len, found[0])) == len(paths)


def test_images_without_a_position_are_in_the_cell_of_their_descriptor(made, city, encoder, cache, tmp_path):
    shutil.copytree(city / "test/database", tmp_path / "images")
    shutil.copy(sorted((city / "train").iterdir())[5], tmp_path / "images/somewhere.jpg")
    options = {"folder": tmp_path / "images", "faiss": "cells", "probes": 1}
    command("index build", cache, encoder=made / "means", out=tmp_path / "index", **options)
    (result,) = localized(tmp_path / "index", tmp_path / "images/somewhere.jpg")
    assert result.matches[0].path.endswith("somewhere.jpg")
    with pytest.raises(SystemExit, match=r"1 of 13 images have no known position, .* --classifier is theirs"):
        command(
            "index build",
            tmp_path / "cache",
            encoder=encoder,
            classifier=made / "small_means",
            out=tmp_path / "x",
            **options,
        )
    assert not (tmp_path / "cache").exists()  # before the extraction


def test_a_classifier_of_other_places_is_warned_about(made, city, cache, tmp_path, capsys):
    for name in ("train", "test/database"):
        options = {"folder": city / name, "faiss": "cells", "probes": 1, "out": tmp_path / name}
        command("index build", cache, encoder=made / "means", **options)
        warned = "lies in a cell of the classifier, so all are in the lists" in capsys.readouterr().err
        assert warned == (name != "train")


def test_the_fewest_probes_with_the_allowed_loss_are_stored(made, cache, tmp_path, capsys):
    shutil.copytree(made / "own", tmp_path / "index")
    photos = read_catalogue(made / "photos")
    opened = open_place_index(tmp_path / "index")
    queries = descriptors_of(opened.encoder, map(photos.path, range(len(photos))))
    recalls = []
    for probes in range(1, opened.store.num_lists + 1):
        first = opened.search(queries, probes=probes).rows[:, 0]
        offsets = opened.catalogue.east[first] - photos.east, opened.catalogue.north[first] - photos.north
        recalls.append(100 * (np.hypot(*offsets) <= 25).mean())
    for max_loss in (2.0, 100.0):
        command("index calibrate", cache, folder=made / "photos", index=tmp_path / "index", max_loss=max_loss)
        metadata = open_place_index(tmp_path / "index").metadata
        assert recalls[metadata.probes - 1] >= recalls[-1] - max_loss
        assert metadata.probes == 1 or recalls[metadata.probes - 2] < recalls[-1] - max_loss
        assert metadata.calibration.num_correct == round(recalls[metadata.probes - 1] * len(photos) / 100)
    shown = capsys.readouterr().err
    assert f"probes      1   R@1 {recalls[0]:5.1f} " in shown
    assert f"R@1 {recalls[-1]:5.1f}   100.00 % of the rows read" in shown
    assert metadata.probes == 1


@pytest.mark.parametrize("kind", ["IVF20,Flat", "IVF20,RaBitQ", "IVF20,SQ8,RFlat"])
def test_probes_of_any_inverted_lists_can_be_chosen_also_in_several_parts(
    kind, made, city, encoder, cache, tmp_path, capsys
):
    options = {"folder": city / "train", "faiss": kind, "probes": 9, "part_rows": 50}
    command("index build", cache, encoder=encoder, out=tmp_path / "index", **options)
    command("index calibrate", cache, folder=made / "photos", index=tmp_path / "index", max_loss=100)
    opened = open_place_index(tmp_path / "index")
    assert (opened.metadata.probes, len(opened.parts) > 1) == (1, True)
    read = [
        float(each)
        for each in re.findall(r"probes +(?:1|20) +R@1 .* (\d+\.\d+) % of the rows", capsys.readouterr().err)
    ]
    assert (read[0] < 30, read[1]) == (True, 100)


@pytest.mark.parametrize(
    "change", [lambda own: {"class_ids": own[1:]}, lambda own: {"fingerprint": "a" * 16, "class_ids": own[::-1].copy()}]
)
def test_an_index_refuses_other_classes(made, tmp_path, change):
    shutil.copytree(made / "own", tmp_path / "index")
    opened = open_place_index(tmp_path / "index")
    classifier = load_classifier(made / "means")
    changes = change(classifier.class_ids)
    count = len(changes["class_ids"])
    parts = {name: getattr(classifier, name)[:count] for name in ("weight", "num_images")}
    changed = replace(classifier, **parts, **changes, classes_per_group=(count,))
    save_encoder(tmp_path / "index/model", opened.encoder, provenance={}, recalls={}, classifier=changed)
    with pytest.raises(
        ValueError, match=r"classifier in .*model has other classes than the lists of trained_\w+.faiss"
    ):
        open_place_index(tmp_path / "index")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("{encoder} --folder {city}/train --faiss cells --out x", "There is no classifier.safetensors in .*`progeo cl"),
        ("{made}/means --of classes --faiss cells --out x", "--faiss cells finds images .* --of images, got classes"),
        (
            "{encoder} --folder {city}/train --classifier {made}/means --out x",
            "--classifier is for --faiss cells, got null",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(words, sentence, made, city, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        main(["index", "build", *words.format(made=made, city=city, encoder=encoder).split()])
    assert not (tmp_path / "x").exists()


def test_metadata_name_the_lists_of_an_index_of_cells(made):
    values = json.loads((made / "other/index.json").read_text())
    assert (values["kind"], values["classifier"], values["of"], values["probes"]) == (
        "cells",
        "classifier",
        "images",
        2,
    )
