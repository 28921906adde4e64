import copy
import dataclasses

import pytest
import torch
import torchvision
from progeo.export.backbone import backbone_usage, save_backbone

from progeo.models.backbones.open_clip import load_clip
from progeo.models.encoder import build_encoder


def loaded(encoder, folder, usage):
    """What the Python beside a backbone makes of it."""
    save_backbone(folder / "backbone.safetensors", encoder)
    used = {}
    exec(usage.replace("backbone.safetensors", str(folder / "backbone.safetensors")), used)
    return used


def usage_with_a_tag(encoder, file):
    """The same Python as of an architecture that open_clip has a tag for, with a file in the place of the download."""
    named = copy.copy(encoder)
    named.spec = dataclasses.replace(encoder.spec, architecture="RN50")
    before, tag, after = backbone_usage(named, "openai").partition('"RN50", "openai"')
    assert tag
    return f'{before}"{encoder.spec.architecture}", "{file}"{after}'


CLIPS = {
    "vit": ("tiny-vit", None, (64, 96)),
    "resnet": ("tiny-resnet", "gem", (64, 96)),
    "resnet with its attention pooling": ("tiny-resnet", "clip", 64),
    "resnet with its attention pooling, not square": ("tiny-resnet", "clip", (64, 96)),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("architecture", "pooling", "size"), CLIPS.values(), ids=CLIPS)
def test_open_clip_takes_the_backbone_beside_a_text_tower(architecture, pooling, size, known, tmp_path):
    start = load_clip(architecture, "random", seed=1)
    encoder = build_encoder(architecture, "random", size, normalized=False, pooling=pooling).eval()
    torch.save(start.state_dict(), tmp_path / "start.pt")
    usage = usage_with_a_tag(encoder, tmp_path / "start.pt") if known else backbone_usage(encoder, None)
    clip = loaded(encoder, tmp_path, usage)["clip"].eval()
    state = clip.visual.state_dict()
    assert {name for name in state if not name.startswith("attnpool.")} <= encoder.backbone.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    if known:
        assert torch.equal(clip.token_embedding.weight, start.token_embedding.weight)
    images = torch.rand(2, 3, *encoder.image_size)
    with torch.no_grad():
        if encoder.spec.pooling == "clip":
            torch.testing.assert_close(clip.encode_image(images), encoder(images))
        else:
            clip.visual.attnpool = torch.nn.Identity()
            torch.testing.assert_close(encoder.pooling(clip.visual(images)), encoder(images))


@pytest.mark.parametrize(("architecture", "last"), [("resnet18", "fc."), ("efficientnet_b0", "classifier.")])
def test_torchvision_takes_the_backbone_but_for_the_last_layers(architecture, last, tmp_path):
    encoder = build_encoder(architecture, "random", 64, pooling="mean").eval()
    classifier = loaded(encoder, tmp_path, backbone_usage(encoder, None))["classifier"].eval()
    state = classifier.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    assert {name for name in state if not name.startswith(last)} == encoder.backbone.state_dict().keys()
    assert isinstance(classifier, getattr(torchvision.models, type(classifier).__name__))


def test_what_is_said_of_a_clip_names_its_weights_where_open_clip_knows_them():
    encoder = build_encoder("tiny-vit", "random", (64, 96))
    encoder.spec = dataclasses.replace(encoder.spec, architecture="ViT-B-16")
    assert 'create_model("ViT-B-16", "openai", force_image_size=(64, 96))' in backbone_usage(encoder, "openai")
    assert 'create_model("ViT-B-16", None, ' in backbone_usage(encoder, "/my/clip.pt")
