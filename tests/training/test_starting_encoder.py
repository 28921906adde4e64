"""Stage 2 starts from an encoder that is there already."""

import dataclasses
import re
import shutil
from dataclasses import fields

import pytest
import torch
import yaml
from open_clip.transformer import QuickGELU

import progeo
from progeo.cli import main
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder
from progeo.models.options import EncoderOptions, ModelOptions
from progeo.training.starting_encoder import build_starting_encoder, starting_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    encoder = build_encoder("resnet18", "random", 64, descriptor_dim=16, normalization="imagenet", seed=7)
    return save_encoder(tmp_path_factory.mktemp("encoder"), encoder, provenance={}, recalls={})


def options(folder, **changes):
    """Options of the model and of the encoder."""
    same = {"architecture": "resnet18", "image_size": 64, "descriptor_dim": 16, "normalization": "imagenet"}
    values = {**same, "weights": str(folder), **changes}
    of_model = {field.name for field in fields(ModelOptions)}
    return (
        ModelOptions(**{name: value for name, value in values.items() if name in of_model}),
        EncoderOptions(**{name: value for name, value in values.items() if name not in of_model}),
    )


def test_it_is_that_encoder_with_everything_to_be_trained(folder):
    encoder = build_starting_encoder(*options(folder, descriptor_dim=None), seed=0)
    there = progeo.load_encoder(folder).state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "resnet50"},
            ("`architecture` is torchvision/resnet50, the encoder in {} has torchvision/resnet18: set it so."),
        ),
        ({"image_size": (64, 96)}, "`image_size` is (64, 96), the encoder in {} has (64, 64): set it so."),
        ({"descriptor_dim": 8}, "`descriptor_dim` is 8, the encoder in {} has 16: set it so."),
        ({"normalization": "clip"}, "`normalization` is clip, the encoder in {} has imagenet: set it so."),
        (
            {"normalization": None, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)},
            "`mean` and `std` are (0.5, 0.5, 0.5) and (0.2, 0.2, 0.2), the encoder in {} has "
            "(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225): leave both out.",
        ),
        ({"aggregation": "mean"}, "`aggregation` is mean, the encoder in {} has gem: set it so."),
        (
            {"aggregation_options": {"k": 3}},
            "`aggregation_options` is {{'local_linear': False, 'k': 3}}, the encoder in {} has "
            "{{'local_linear': False}}: set it so.",
        ),
        ({"resize": "bicubic"}, "`resize` is bicubic, the encoder in {} has bilinear: set it so."),
        ({"align_corners": True}, "`align_corners` is True, the encoder in {} has False: set it so."),
    ],
)
def test_settings_that_say_otherwise_are_refused(changes, sentence, folder):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(folder))}$"):
        build_starting_encoder(*options(folder, **changes), seed=0)


def test_a_run_is_named_where_it_has_no_encoder_yet(folder, tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match=f"There is no encoder in the run {tmp_path} yet"):
        build_starting_encoder(*options(tmp_path), seed=0)
    shutil.copytree(folder, tmp_path / "last")
    assert build_starting_encoder(*options(tmp_path), seed=0).spec.descriptor_dim == 16
    assert starting_statistics(options(tmp_path)[0]).mean == (0.485, 0.456, 0.406)


def test_length_one_must_be_set_as_the_encoder_has_it(tmp_path):
    save_encoder(tmp_path, build_encoder("tiny-vit", "random", 64, normalized=False), provenance={}, recalls={})
    settings = options(tmp_path, architecture="tiny-vit", descriptor_dim=None, normalization="clip")
    with pytest.raises(ValueError, match=r"^`normalized` is True, the encoder in .* has False: set it so\.$"):
        build_starting_encoder(*settings, seed=0)
    model, encoder_options = settings
    encoder = build_starting_encoder(model, dataclasses.replace(encoder_options, normalized=False), seed=0)
    assert not encoder.spec.normalized


def test_its_pixels_are_its_own_unless_they_are_set(tmp_path):
    half = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    save_encoder(
        tmp_path, build_encoder("resnet18", "random", 64, mean=half[0], std=half[1]), provenance={}, recalls={}
    )
    unset, encoder_options = options(tmp_path, descriptor_dim=None, normalization=None)
    for model in (unset, dataclasses.replace(unset, mean=half[0], std=half[1])):
        spec, told = build_starting_encoder(model, encoder_options, seed=0).spec, starting_statistics(model)
        assert (spec.mean, spec.std) == (told.mean, told.std) == half
    sentence = r"`normalization` is clip, the encoder in .* has mean \(0\.5, .* and std \(0\.25, .*: leave it out\.$"
    with pytest.raises(ValueError, match=sentence):
        build_starting_encoder(dataclasses.replace(unset, normalization="clip"), encoder_options, seed=0)


def test_an_activation_other_than_the_settings_say_is_refused(tmp_path):
    save_encoder(tmp_path, build_encoder("tiny-vit-quickgelu", "random", 64), provenance={}, recalls={})
    model, encoder_options = options(tmp_path, architecture="tiny-vit", descriptor_dim=None, normalization="clip")
    sentence = (
        r"^`architecture` is open_clip/tiny-vit, the encoder in .* has open_clip/tiny-vit-quickgelu: set it so\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        build_starting_encoder(model, encoder_options, seed=0)
    model = dataclasses.replace(model, architecture="tiny-vit-quickgelu")
    again = build_starting_encoder(model, encoder_options, seed=0)
    assert any(isinstance(module, QuickGELU) for module in again.modules())


def test_a_folder_with_only_a_description_is_refused(tmp_path):
    (tmp_path / "model.json").touch()
    with pytest.raises(FileNotFoundError, match="There is no encoder in"):
        build_starting_encoder(*options(tmp_path), seed=0)


def test_a_folder_without_an_encoder_hides_no_weights_of_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()
    encoder = build_starting_encoder(*options("random"), seed=7)
    assert torch.equal(encoder.backbone.conv1.weight, progeo.load_encoder(folder).backbone.conv1.weight)
    with pytest.raises(ValueError, match="is neither a file, nor random, nor a tag of resnet18"):
        build_starting_encoder(*options(tmp_path), seed=0)


def test_the_run_begins_with_its_recall(folder, config, tmp_path, capsys):
    settings = yaml.safe_load(config.read_text())
    settings["model"].update({"architecture": "resnet18", "weights": str(folder), "normalization": "imagenet"})
    settings["encoder"]["descriptor_dim"] = 16
    settings["training"]["epochs"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", tmp_path / "config.yaml", "--out", tmp_path / "run", "--text.weight", "0"]
    main(["train", "encoder", *map(str, words)])
    beginning = re.search(r"epoch 0: val R@1 ([\d.]+)", capsys.readouterr().err)[1]
    val = [
        "evaluate",
        *("--encoder", str(folder)),
        *("--folder", settings["validation"]["folder"]),
        *("--out", str(tmp_path / "val")),
        *("--descriptor_cache", str(tmp_path / "cache")),
        *("--num_workers", "0"),
    ]
    main(val)
    assert f"R@1 {beginning}" in capsys.readouterr().out
