"""Stage 2 starts from an encoder that is there already."""

import dataclasses
import json
import re
import shutil

import open_clip
import pytest
import torch
import yaml
from open_clip.transformer import QuickGELU

import progeo
from progeo.cli import main
from progeo.config.training import ModelSettings
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder
from progeo.training.starting_encoder import build_starting_encoder, starting_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    encoder = build_encoder("resnet18", "random", 64, descriptor_dim=16, normalization="imagenet", seed=7)
    return save_encoder(tmp_path_factory.mktemp("encoder"), encoder, provenance={}, recalls={})


def model(folder, **changes):
    same = {"architecture": "resnet18", "image_size": 64, "descriptor_dim": 16, "normalization": "imagenet"}
    return ModelSettings(**{**same, "weights": str(folder), **changes})


def test_it_is_that_encoder_with_everything_to_be_trained(folder):
    encoder = build_starting_encoder(model(folder, descriptor_dim=None), seed=0)
    there = progeo.load_encoder(folder).state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "resnet50"}, "model.architecture is resnet50, the encoder in {} has resnet18: set it so."),
        ({"image_size": (64, 96)}, "model.image_size is (64, 96), the encoder in {} has (64, 64): set it so."),
        ({"descriptor_dim": 8}, "model.descriptor_dim is 8, the encoder in {} has 16: set it so."),
        ({"normalization": "clip"}, "model.normalization is clip, the encoder in {} has imagenet: set it so."),
        (
            {"normalization": None, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)},
            "model.mean and model.std are (0.5, 0.5, 0.5) and (0.2, 0.2, 0.2), the encoder in {} has "
            "(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225): leave both out.",
        ),
        ({"align_corners": True}, "model.align_corners is True, the encoder in {} has False: set it so."),
    ],
)
def test_settings_that_say_otherwise_are_refused(changes, sentence, folder):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(folder))}$"):
        build_starting_encoder(model(folder, **changes), seed=0)


def test_a_run_is_named_where_it_has_no_encoder_yet(folder, tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match=f"There is no encoder in the run {tmp_path} yet"):
        build_starting_encoder(model(tmp_path), seed=0)
    shutil.copytree(folder, tmp_path / "last")
    assert build_starting_encoder(model(tmp_path), seed=0).spec.descriptor_dim == 16
    assert starting_statistics(model(tmp_path)).mean == (0.485, 0.456, 0.406)


def test_length_one_must_be_set_as_the_encoder_has_it(tmp_path):
    save_encoder(tmp_path, build_encoder("tiny-vit", "random", 64, normalized=False), provenance={}, recalls={})
    settings = model(tmp_path, architecture="tiny-vit", descriptor_dim=None, normalization="clip")
    with pytest.raises(ValueError, match=r"^model\.normalized is True, the encoder in .* has False: set it so\.$"):
        build_starting_encoder(settings, seed=0)
    encoder = build_starting_encoder(dataclasses.replace(settings, normalized=False), seed=0)
    assert not encoder.spec.normalized


def test_its_pixels_are_its_own_unless_they_are_set(tmp_path):
    half = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_encoder(
        tmp_path, build_encoder("resnet18", "random", 64, mean=half[0], std=half[1]), provenance={}, recalls={}
    )
    unset = model(tmp_path, descriptor_dim=None, normalization=None)
    for settings in (unset, dataclasses.replace(unset, mean=half[0], std=half[1])):
        spec, told = build_starting_encoder(settings, seed=0).spec, starting_statistics(settings)
        assert (spec.mean, spec.std) == (told.mean, told.std) == half
    sentence = (
        r"model\.normalization is clip, the encoder in .* has mean \(0\.5, .* and std \(0\.25, .*: leave it out\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        build_starting_encoder(dataclasses.replace(unset, normalization="clip"), seed=0)


def test_an_activation_other_than_the_settings_say_is_refused(tmp_path):
    encoder = build_encoder("tiny-vit", "random", 64)
    encoder.spec = dataclasses.replace(encoder.spec, architecture="tiny-vit-quickgelu")
    save_encoder(tmp_path, encoder, provenance={}, recalls={})
    config = {**open_clip.get_model_config("tiny-vit"), "quick_gelu": True}
    (tmp_path / "tiny-vit-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-vit-quickgelu.json")
    settings = model(tmp_path, architecture="tiny-vit", descriptor_dim=None, normalization="clip")
    sentence = r"^model\.architecture is tiny-vit, the encoder in .* has tiny-vit-quickgelu: set it so\.$"
    with pytest.raises(ValueError, match=sentence):
        build_starting_encoder(settings, seed=0)
    again = build_starting_encoder(dataclasses.replace(settings, architecture="tiny-vit-quickgelu"), seed=0)
    assert any(isinstance(module, QuickGELU) for module in again.modules())


def test_a_folder_with_only_a_description_is_refused(tmp_path):
    (tmp_path / "model.json").touch()
    with pytest.raises(FileNotFoundError, match="There is no encoder in"):
        build_starting_encoder(model(tmp_path), seed=0)


def test_a_folder_without_an_encoder_hides_no_weights_of_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()
    encoder = build_starting_encoder(model("random"), seed=7)
    assert torch.equal(encoder.backbone.conv1.weight, progeo.load_encoder(folder).backbone.conv1.weight)
    with pytest.raises(ValueError, match="is neither a file, nor random, nor a tag of resnet18"):
        build_starting_encoder(model(tmp_path), seed=0)


def test_the_run_begins_with_its_recall(folder, config, tmp_path, capsys):
    settings = yaml.safe_load(config.read_text())
    changes = {"architecture": "resnet18", "weights": str(folder), "descriptor_dim": 16, "normalization": "imagenet"}
    settings["model"].update(changes)
    settings["training"]["epochs"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    main(
        [
            "train",
            "encoder",
            "--config",
            str(tmp_path / "config.yaml"),
            "--out",
            str(tmp_path / "run"),
            "--text.weight",
            "0",
        ]
    )
    beginning = re.search(r"epoch 0: val R@1 ([\d.]+)", capsys.readouterr().err)[1]
    val = [
        "evaluate",
        *("--encoder", str(folder)),
        *("--folder", settings["data"]["val_folder"]),
        *("--out", str(tmp_path / "val")),
        *("--descriptor_cache", str(tmp_path / "cache")),
        *("--num_workers", "0"),
    ]
    main(val)
    assert f"R@1 {beginning}" in capsys.readouterr().err
