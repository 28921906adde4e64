"""CosPlace, EigenPlaces and Divide&Classify, imported from what they save."""

import argparse
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from plain_clip import gem_descriptors
from published_convnets import cosplace, divide_and_classify

import progeo
from progeo.cli import main
from progeo.convert.recognition import FORMATS

FULL_SIZES = ["resnet50", "resnet101", "resnet152", "vgg16", "efficientnet_b0", "efficientnet_b7"]


def imported(content, tmp_path, *options):
    torch.save(content, tmp_path / "model.pth")
    main(["import", str(tmp_path / "model.pth"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@pytest.mark.parametrize("name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in FULL_SIZES)])
def test_cosplace_and_eigenplaces_give_the_descriptors_of_their_map_and_head(name, tmp_path):
    model = cosplace(name)
    encoder = imported(model.state_dict(), tmp_path)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        feature_map = model["backbone"](images)
        largest = feature_map.abs().max()  # without training it grows with the depth
        torch.testing.assert_close(encoder.backbone(images) / largest, feature_map / largest, rtol=1e-3, atol=1e-5)
        expected = gem_descriptors(model.state_dict(), feature_map)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    spec = encoder.spec
    assert (spec.architecture, spec.image_size, spec.descriptor_dim) == (name, (512, 512), 24)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_files_without_counts_of_batch_norm_and_with_module_before_each_name_are_read(tmp_path):
    model = cosplace("resnet18")
    state = {f"module.{name}": value for name, value in model.state_dict().items() if "num_batches" not in name}
    encoder = imported(OrderedDict(state), tmp_path, "--image_size", "[480,640]")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = gem_descriptors(model.state_dict(), model["backbone"](images))
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert encoder.image_size == (480, 640)


@pytest.mark.parametrize(
    "wrappers",
    ["module._orig_mod.", *(pytest.param(each, marks=pytest.mark.slow) for each in ("module.module.", "_orig_mod."))],
)
def test_wrappers_before_each_name_are_removed_and_a_name_that_is_then_double_is_refused(wrappers, tmp_path):
    state = cosplace("resnet18").state_dict()
    wrapped = {f"{wrappers}{name}": value for name, value in state.items()}
    found = imported(wrapped, tmp_path).state_dict()
    assert torch.equal(found["aggregation.linear.weight"], state["aggregation.3.weight"])
    assert torch.equal(found["backbone.conv1.weight"], state["backbone.0.weight"])
    with pytest.raises(SystemExit, match=r"holds aggregation\.1\.p twice: as aggregation\.1\.p, and with another"):
        imported({**wrapped, "aggregation.1.p": torch.zeros(1)}, tmp_path, "--out", str(tmp_path / "double"))


def test_of_two_networks_in_a_checkpoint_the_model_or_the_chosen_one_is_imported(tmp_path, capsys):
    model, ema = cosplace("resnet18").state_dict(), cosplace("resnet18").state_dict()
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in model.items()},
        "ema": {"n_averaged": torch.tensor(7), **{f"module.{name}": value for name, value in ema.items()}},
        "recalls": np.array([81.5, 92.0]),
        "callbacks": {Path("x"): argparse.Namespace(best=np.float64(92.0))},
    }
    sentences = (
        "The weights in state_dict.model are used, those in ema are skipped: `progeo import --weights_in ema` uses",
        "skipped, the encoder does not need them: ema, recalls, callbacks",
        "skipped, the encoder does not need them: state_dict, recalls, callbacks, n_averaged",
    )
    for options, state, expected in (([], model, sentences[:2]), (["--weights_in", "ema"], ema, sentences[2:])):
        (tmp_path / str(len(options))).mkdir()
        found = imported(checkpoint, tmp_path / str(len(options)), *options).state_dict()
        assert torch.equal(found["aggregation.linear.weight"], state["aggregation.3.weight"])
        log = capsys.readouterr().err
        assert [sentence in log for sentence in sentences] == [sentence in expected for sentence in sentences]


def test_layers_of_an_efficientnet_are_found_inside_features_and_without(tmp_path):
    model = cosplace("efficientnet_b0")
    flat = {name.replace("backbone.0.", "backbone."): value for name, value in model.state_dict().items()}
    (tmp_path / "flat").mkdir()
    inside, without = imported(model.state_dict(), tmp_path), imported(flat, tmp_path / "flat")
    assert inside.spec == without.spec
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in inside.state_dict().items())


@pytest.mark.parametrize("name", ["efficientnet_b0", pytest.param("efficientnet_b5", marks=pytest.mark.slow)])
def test_divide_and_classify_gives_the_mean_moved_and_of_length_one(name, tmp_path, capsys):
    model = divide_and_classify(name)
    checkpoint = {
        "model_state_dict": model.state_dict(),
        "classifiers_state_dict": [{"weight": torch.rand(5, 8)}],
        "args": argparse.Namespace(M=20, N=2),
    }
    encoder = imported(checkpoint, tmp_path)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        moved = model["classifier"][0](model["backbone"](images).mean(dim=(2, 3)))
        expected = moved / moved.norm(dim=1, keepdim=True)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert (encoder.spec.architecture, encoder.spec.aggregation, encoder.image_size) == (
        name,
        "mean_linear",
        (256, 256),
    )
    log = capsys.readouterr().err
    assert "skipped, the encoder does not need them: args\n" in log
    assert "skipped: classifiers_state_dict, whose cells are only in the cache file" in log
    assert not (tmp_path / "encoder/classifier.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (
            lambda state: state.pop("backbone.4.1.bn2.weight"),
            [],
            r"resnet18: backbone\.4\.1\.bn2\.weight should be",
        ),
        (
            lambda state: state.update({"backbone.8.weight": torch.zeros(1)}),
            [],
            r"backbone\.8\.weight should be absent",
        ),
        (lambda state: state.pop("aggregation.1.p"), [], r"aggregation\.1\.p should be \(1,\), is missing"),
        (lambda state: state.update(x=3), [], "holds more than a state dict: 'x' is no named tensor"),
        (lambda state: None, ["--quickgelu", "true"], "resnet18 is not a CLIP, omit it"),
        (lambda state: None, ["--clip", "RN50"], "holds an encoder; --clip is for prompts: omit it"),
        (
            lambda state: None,
            ["--class_order", "a.torch"],
            "holds no classifiers_state_dict, which --class",
        ),
        (
            lambda state: None,
            ["--head", "arcface"],
            "--head is for the classifiers of a checkpoint: name",
        ),
    ],
)
def test_missing_and_unexpected_keys_are_named(change, options, sentence, tmp_path):
    state = cosplace("resnet18").state_dict()
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path, *options)
    assert not (tmp_path / "encoder").exists()


def test_a_network_that_is_none_of_them_is_refused_by_its_names(tmp_path):
    known = re.escape(", ".join(row.name for row in FORMATS))
    with pytest.raises(SystemExit, match=f"its names begin with bn1, conv1, fc, layer1, layer2. Known are {known}"):
        imported(torchvision.models.resnet18(weights=None).state_dict(), tmp_path)
    for nothing in ({}, [], 3):
        with pytest.raises(SystemExit, match="holds no state dict"):
            imported(nothing, tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "notes.txt").touch()
    with pytest.raises(SystemExit, match="is in use: name another folder with --out"):
        imported({}, tmp_path)
    with pytest.raises(SystemExit, match="There is no file nowhere"):
        main(["import", "nowhere.pth", "--out", str(tmp_path / "other")])


@pytest.mark.slow
def test_what_was_imported_can_be_evaluated_and_exported(city, tmp_path):
    imported(cosplace("resnet18").state_dict(), tmp_path, "--image_size", "64")
    folders = ["--encoder", tmp_path / "encoder", "--folder", city / "test", "--out", tmp_path / "out"]
    cache = ["--descriptor_cache", tmp_path / "cache", "--num_workers", 0]
    main(["evaluate", *map(str, [*folders, *cache])])
    assert (tmp_path / "out/recalls.json").is_file()
    main(["export", str(tmp_path / "encoder"), "--out", str(tmp_path / "again")])
    assert progeo.load_encoder(tmp_path / "again").spec == progeo.load_encoder(tmp_path / "encoder").spec
