"""Published ProGEO, made here in the layout of its names and compared with its forward written out."""

import numpy as np
import open_clip
import pytest
import torch
from plain_clip import (
    gem_descriptors,
    gem_state,
    resnet_map,
    resnet_state,
    text_state,
    vit_features,
    vit_state,
)

import progeo
from progeo.cli import main
from progeo.export.weights import save_encoder
from progeo.models.encoder import build_encoder

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESNETS = {"tiny-resnet": ((1, 1, 1, 1), 16, 128), "RN50": ((3, 4, 6, 3), 64, 1024), "RN101": ((3, 4, 23, 3), 64, 512)}
VITS = {"tiny-vit": (128, 4, 16, 128, 4), "ViT-B-16": (768, 12, 16, 512, 12), "ViT-B-32": (768, 12, 32, 512, 12)}
FULL_SIZE = pytest.mark.slow


def published_text(dim):
    """The text tower, whose word vectors lie outside of it."""
    return text_state("text_encoder.", dim=dim)


def published_resnet(blocks=(1, 1, 1, 1), width=16, dim=128, descriptor_dim=24):
    state = resnet_state("backbone.", blocks=blocks, width=width, grid=7, dim=dim)
    return {**state, **published_text(dim), **gem_state(32 * width, descriptor_dim)}


def published_vit(width=128, layers=4, patch_px=16, dim=128, grid=(8, 8)):
    state = vit_state("backbone.", width=width, layers=layers, patch_px=patch_px, grid=grid, dim=dim)
    return {**state, **published_text(dim)}


def imported(content, tmp_path, *options):
    torch.save(content, tmp_path / "model.pth")
    main(["import", str(tmp_path / "model.pth"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[FULL_SIZE] if "RN" in name else []) for name in RESNETS])
def test_a_resnet_gives_the_descriptors_of_its_map_and_head(name, tmp_path):
    blocks, width, dim = RESNETS[name]
    state = published_resnet(blocks, width, dim)
    encoder = imported(state, tmp_path)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        feature_map = resnet_map(state, "backbone.", images)
        torch.testing.assert_close(encoder.backbone(images), feature_map, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(encoder(images), gem_descriptors(state, feature_map), rtol=1e-3, atol=1e-5)
    spec = encoder.spec
    assert (spec.architecture, spec.image_size, spec.descriptor_dim) == (f"{name}-quickgelu", (512, 512), 24)
    assert (spec.mean, spec.std, spec.resize) == (*IMAGENET, "bilinear")
    assert (spec.aggregation, spec.text_weights) == ("gem", None)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[FULL_SIZE] if "ViT" in name else []) for name in VITS])
def test_a_vit_gives_the_projected_class_token_as_it_is(name, tmp_path):
    width, layers, patch_px, dim, heads = VITS[name]
    side_px = 128 if name == "tiny-vit" else 512
    state = published_vit(width, layers, patch_px, dim, (side_px // patch_px,) * 2)
    encoder = imported(state, tmp_path)
    images = torch.randn(1, 3, side_px, side_px)
    with torch.no_grad():
        expected = vit_features(state, "backbone.", images, heads=heads)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-3)
    spec = encoder.spec
    assert (spec.architecture, spec.image_size) == (f"{name}-quickgelu", (side_px, side_px))
    assert (spec.mean, spec.std, spec.interpolation, spec.normalized) == (*IMAGENET, "corners", False)
    assert spec.resize == "bilinear"
    assert spec.text_weights == (None if name == "tiny-vit" else "openai")


@pytest.mark.parametrize(("quickgelu", "texts"), [("true", "openai"), ("false", None)])
def test_texts_of_openai_are_named_only_with_its_activation(quickgelu, texts, tmp_path, monkeypatch):
    for name in ("tiny-vit", "tiny-vit-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"openai": {}})
    assert imported(published_vit(), tmp_path, "--quickgelu", quickgelu).spec.text_weights == texts


def test_a_checkpoint_of_the_training_gives_the_same_as_the_bare_weights(tmp_path, capsys):
    state = published_resnet()
    checkpoint = {
        "epoch_num": 3,
        "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer_state_dict": torch.optim.Adam([torch.nn.Parameter(torch.rand(2))]).state_dict(),
        "classifiers_state_dict": [{"weight": torch.rand(5, 24)}],
        "best_val_recall1": np.float64(87.5),
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bare, inside = imported(state, tmp_path / "a"), imported(checkpoint, tmp_path / "b")
    assert bare.spec == inside.spec
    assert all(torch.equal(tensor, inside.state_dict()[name]) for name, tensor in bare.state_dict().items())
    log = capsys.readouterr().err
    assert "classifiers_state_dict" in log
    assert "text_encoder.* (28), token_embedding" in log
    assert "backbone.attnpool.* (9)" in log


def test_descriptors_of_a_vit_can_be_normalized(tmp_path):
    state = published_vit()
    encoder = imported(state, tmp_path, "--normalized", "true")
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = vit_features(state, "backbone.", images)
        expected = expected / expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-4)


def test_the_image_size_gives_a_grid_that_is_not_a_square(tmp_path):
    state = published_vit(grid=(4, 6))
    encoder = imported(state, tmp_path, "--image_size", "[64,96]")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = vit_features(state, "backbone.", images)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-4)
    assert encoder.image_size == (64, 96)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda state: state.pop("aggregation.1.p"), [], r"aggregation\.1\.p should be \(1,\), is missing"),
        (lambda state: state.pop("backbone.bn2.bias"), [], r"backbone\.bn2\.bias should be \(8,\), is missing"),
        (lambda state: state.update(extra=torch.zeros(2)), [], r"extra should be absent, is \(2,\)"),
        (lambda state: state.pop("aggregation.3.weight"), [], r"not complete: aggregation\.3\.weight is missing"),
        (lambda state: None, ["--normalized", "false"], "are always L2-normalized, omit it"),
    ],
)
def test_missing_and_unexpected_keys_are_named(change, options, sentence, tmp_path):
    state = published_resnet()
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path, *options)
    assert not (tmp_path / "encoder").exists()


def test_a_tower_that_open_clip_does_not_know_and_a_size_that_does_not_fit_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no plain CLIP with QuickGELU .* layers 3, width 128, patch size 16"):
        imported(published_vit(layers=3), tmp_path)
    with pytest.raises(SystemExit, match=r"is 4 x 4 cells of 16 pixels, but the .* is for 8 x 8 cells: omit it"):
        imported(published_vit(), tmp_path, "--image_size", "64")
    with pytest.raises(SystemExit, match="is 4 x 16 cells of 16 pixels, but the position embedding is for 8 x 8 cells"):
        imported(published_vit(), tmp_path, "--image_size", "[64,256]")
    with pytest.raises(SystemExit, match=r"is 5 x 4 cells of 16 pixels, but the .* is for 24 cells\."):
        imported(published_vit(grid=(4, 6)), tmp_path, "--image_size", "[80,64]")
    with pytest.raises(SystemExit, match="is for 24 cells, not a square: set --image_size to"):
        imported(published_vit(grid=(4, 6)), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "aggregation"),
    [("tiny-vit", "token"), ("tiny-resnet", "gem"), ("resnet18", "gem"), ("resnet18_conv4", "netvlad")],
)
def test_encoders_of_our_own_are_not_taken_for_it(architecture, aggregation, tmp_path):
    encoder = build_encoder(architecture, "random", 64, aggregation=aggregation)
    save_encoder(tmp_path / "run/best", encoder, provenance={}, recalls={})
    with pytest.raises(
        SystemExit, match=r"model\.safetensors has the names of an encoder of progeo, .* give its folder"
    ):
        main(["import", str(tmp_path / "run/best/model.safetensors"), "--out", str(tmp_path / "encoder")])
    for folder in ("run", "run/best"):
        with pytest.raises(SystemExit, match="holds an encoder of progeo, which needs no import: use it as it is"):
            main(["import", str(tmp_path / folder), "--out", str(tmp_path / "encoder")])
    assert not (tmp_path / "encoder").exists()
