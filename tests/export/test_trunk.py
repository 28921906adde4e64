import dataclasses

import open_clip
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from progeo.export.trunk import save_trunk, trunk_usage
from progeo.models.encoder import build_encoder


def test_open_clip_takes_the_trunk_of_a_vit(tmp_path):
    encoder = build_encoder("tiny-vit", "random", (64, 96), normalised=False).eval()
    save_trunk(tmp_path / "trunk.safetensors", encoder)
    clip = open_clip.create_model("tiny-vit", force_image_size=(64, 96)).eval()
    fit = clip.load_state_dict(load_file(tmp_path / "trunk.safetensors"), strict=False)
    assert not fit.unexpected_keys
    assert not [name for name in fit.missing_keys if name.startswith("visual.")]
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(images), encoder(images))


def test_open_clip_takes_the_trunk_of_a_resnet_but_for_its_attention_pooling(tmp_path):
    encoder = build_encoder("tiny-resnet", "random", 64).eval()
    save_trunk(tmp_path / "trunk.safetensors", encoder)
    clip = open_clip.create_model("tiny-resnet", force_image_size=64).eval()
    fit = clip.load_state_dict(load_file(tmp_path / "trunk.safetensors"), strict=False)
    assert not fit.unexpected_keys
    assert all(name.startswith("visual.attnpool.") for name in fit.missing_keys if name.startswith("visual."))


@pytest.mark.parametrize(("architecture", "last"), [("resnet18", "fc."), ("efficientnet_b0", "classifier.")])
def test_torchvision_takes_the_trunk_but_for_the_last_layers(architecture, last, tmp_path):
    encoder = build_encoder(architecture, "random", 64, pooling="mean").eval()
    save_trunk(tmp_path / "trunk.safetensors", encoder)
    used = {}
    exec(trunk_usage(encoder.spec, None).replace("trunk.safetensors", str(tmp_path / "trunk.safetensors")), used)
    classifier = used["classifier"].eval()
    state = classifier.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    assert {name for name in state if not name.startswith(last)} == encoder.backbone.state_dict().keys()
    assert isinstance(classifier, getattr(torchvision.models, type(classifier).__name__))


def test_what_is_said_of_a_clip_names_its_weights_where_open_clip_knows_them():
    spec = dataclasses.replace(build_encoder("tiny-vit", "random", (64, 96)).spec, architecture="ViT-B-16")
    assert 'create_model("ViT-B-16", "openai", force_image_size=(64, 96))' in trunk_usage(spec, "openai")
    assert 'create_model("ViT-B-16", None, ' in trunk_usage(spec, "/my/clip.pt")
