import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from classifiers import SAN_FRANCISCO, classifier_of
from running import without_digests
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from progeo.export.classifier import (
    check_fits_encoder,
    holds_classifier,
    load_classifier,
    load_encoder_and_classifier,
    read_classifier,
    write_classifier,
)
from progeo.export.encoder_folders import CLASSIFIER
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder
from progeo.models.state_dicts import weights_digest
from progeo.places.geographic import Frame

IDS = [(549120, 4180920, 0), (549140, 4180920, 0), (549160, 4180940, 0), (549120, 4180960, 0)]
FILES = {"classifier.safetensors", "model.json", "model.safetensors"}


@pytest.fixture
def saved(tmp_path):
    encoder = build_encoder("tiny-resnet", "random", 32, descriptor_dim=8).eval()
    classifier = classifier_of(IDS, 8)
    return save_encoder(tmp_path / "model", encoder, provenance={}, recalls={}, classifier=classifier), encoder


def assert_same(one, other):
    for field in dataclasses.fields(one):
        values = getattr(one, field.name), getattr(other, field.name)
        if isinstance(values[0], np.ndarray):
            assert values[0].dtype == values[1].dtype
            np.testing.assert_array_equal(*values)
        else:
            assert values[0] == values[1], field.name


@pytest.mark.parametrize("kind", ["cosface", "linear", "means"])
def test_a_classifier_comes_back_bit_for_bit(tmp_path, kind):
    frame = Frame(0, "both", several_zones=True) if kind == "means" else SAN_FRANCISCO
    classifier = classifier_of(IDS, kind=kind, frame=frame)
    assert classifier.classes_per_group == (2, 1, 1)
    assert (classifier.bias is None) == (kind != "linear")
    write_classifier(classifier, tmp_path / CLASSIFIER)
    assert_same(read_classifier(tmp_path / CLASSIFIER), classifier)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.safetensors"]


def test_a_classifier_is_saved_with_the_digest_of_the_encoder_beside_it(saved):
    folder, encoder = saved
    assert {path.name for path in folder.iterdir()} == FILES
    assert holds_classifier(folder)
    again, classifier = load_encoder_and_classifier(folder)
    assert classifier.encoder == weights_digest(encoder.state_dict()) == weights_digest(again.state_dict())
    assert_same(dataclasses.replace(classifier, encoder=""), classifier_of(IDS, 8))


def test_the_classifier_of_a_replaced_encoder_is_removed(saved):
    folder, encoder = saved
    save_encoder(folder, encoder, provenance={}, recalls={})
    assert {path.name for path in folder.iterdir()} == FILES - {"classifier.safetensors"}
    assert not holds_classifier(folder)


@pytest.mark.parametrize("kept", ["best", "last", "stage2/best"])
def test_a_run_gives_the_classifier_of_the_encoder_that_it_keeps(saved, tmp_path, kept):
    folder, _ = saved
    run = tmp_path / "run"
    shutil.copytree(folder, run / kept)
    assert holds_classifier(run)
    assert_same(load_classifier(run), load_classifier(folder))
    assert len(load_encoder_and_classifier(str(run))[1]) == 4


def test_an_encoder_without_a_classifier_is_refused_with_what_makes_one(saved):
    folder, _ = saved
    (folder / "classifier.safetensors").unlink()
    for name in (folder, "open_clip:tiny-resnet:random", "thumbnail"):
        with pytest.raises(
            FileNotFoundError, match=rf"^There is no classifier\.safetensors in {name}: .*progeo classes"
        ):
            load_encoder_and_classifier(name)
    with pytest.raises(FileNotFoundError, match="There is no encoder in"):
        load_classifier(folder / "nowhere")


def test_the_classifier_of_another_encoder_is_refused(saved):
    folder, _ = saved
    other = build_encoder("tiny-resnet", "random", 32, descriptor_dim=8)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    of_other = dataclasses.replace(load_classifier(folder), encoder=weights_digest(other.state_dict()))
    write_classifier(of_other, folder / CLASSIFIER)
    with pytest.raises(ValueError, match=r"classifier\.safetensors is not the file that was .*model\.json"):
        load_encoder_and_classifier(folder)
    without_digests(folder)
    with pytest.raises(ValueError, match=r"The classifier in .*model is that of an encoder with other weights"):
        load_encoder_and_classifier(folder)
    write_classifier(classifier_of(IDS, 6), folder / CLASSIFIER)
    with pytest.raises(ValueError, match="has vectors of 6 dimensions, the encoder descriptors of 8"):
        load_encoder_and_classifier(folder)
    check_fits_encoder(classifier_of(IDS, 8), other, folder)  # an unknown digest


def changed(path, change=lambda described: None, **tensors):
    """Write the file at `path` again with other tensors, those that are None left away, and a changed description."""
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["progeo"])
    change(described)
    kept = {name: value for name, value in {**load_file(path), **tensors}.items() if value is not None}
    save_file(kept, path, metadata={"progeo": json.dumps(described)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": None}, "'weight'"),
        ({"num_images": None}, "'num_images'"),
        ({"weight": torch.zeros(3, 4)}, r"weight should be torch.float32 \(4, 4\), is torch.float32 \(3, 4\)"),
        ({"weight": torch.zeros(4, 4, dtype=torch.float16)}, r"weight should be torch.float32"),
        ({"bias": torch.zeros(4, 1)}, r"bias should be torch.float32 \(4,\)"),
        ({"class_ids": torch.zeros(4, 2, dtype=torch.int64)}, r"class_ids should be torch.int64 \(4, 3\)"),
        ({"change": lambda described: described.update(format=2)}, "it has another format"),
        ({"change": lambda described: described.update(kind="softmax")}, "the kind 'softmax' is not known"),
        ({"change": lambda described: described.update(classes_per_group=[3])}, "have 3 classes, there are 4"),
        ({"change": lambda described: described.update(cells={"cell_side_m": 20})}, "'heading_bin_deg'"),
        ({"change": lambda described: described["cells"].update(cell_side_m=0)}, "must be positive"),
        (
            {"change": lambda described: described["cells"].update(cell_side_m=float("inf"))},
            "expected int, got .* in cells",
        ),
        ({"change": lambda described: described["frame"].update(zone=10**9)}, "there is no UTM zone 1000000000"),
        ({"weight": torch.tensor(1.0)}, "tuple index out of range"),
        ({"change": lambda described: described.update(more=1)}, "unknown 'more'; its fields are kind"),
        ({"change": lambda described: described.pop("frame")}, "missing the field frame"),
    ],
)
def test_a_file_that_is_no_classifier_is_refused_by_what_differs(tmp_path, change, sentence):
    path = tmp_path / CLASSIFIER
    write_classifier(classifier_of(IDS), path)
    changed(path, **change)
    with pytest.raises(
        ValueError, match=rf"classifier\.safetensors is not a classifier as progeo writes it: .*{sentence}"
    ):
        load_classifier(tmp_path)


def test_other_files_under_the_name_of_a_classifier_are_refused(tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="is not a classifier as progeo writes it: 'progeo'"):
        load_classifier(tmp_path)
    write_classifier(classifier_of(IDS), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_classifier(tmp_path)
