"""The backbone alone, as the library of its family loads it."""

import dataclasses

import pytest
import torch
import torchvision

from progeo.export.formats import FORMATS, ExportOptions, SavedEncoder
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.clips import load_clip
from progeo.models.encoder import build_encoder


def loaded(encoder, folder, *, tag=None, file=None):
    """What the Python beside a backbone makes of it, with a file in the place of the download of a tag."""
    settings = {"model": {"weights": tag}} if tag else {}
    metadata = {"provenance": {"settings": settings}, "encoder": {"text_weights": None}}
    spec = encoder.spec
    if tag:  # as of an architecture that open_clip has a tag for
        named = "ViT-B-16" if spec.architecture == "tiny-vit" else "RN50"
        encoder.spec = dataclasses.replace(spec, architecture=named)
    usage = FORMATS["backbone"].write(folder, SavedEncoder(metadata, encoder, None), ExportOptions()).usage
    if tag:
        assert f'"{named}", "{tag}"' in usage
        usage = usage.replace(f'"{named}", "{tag}"', f'"{spec.architecture}", "{file}"')
    encoder.spec = spec
    used = {}
    exec(usage.replace("backbone.safetensors", str(folder / "backbone.safetensors")), used)
    return used


CLIPS = {
    "vit": ("tiny-vit", None, (64, 96)),
    "resnet": ("tiny-resnet", "gem", (64, 96)),
    "resnet with its attention pooling": ("tiny-resnet", "token", 64),
    "resnet with its attention pooling, not square": ("tiny-resnet", "token", (64, 96)),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("architecture", "aggregation", "size"), CLIPS.values(), ids=CLIPS)
def test_open_clip_takes_the_backbone_beside_a_text_tower(architecture, aggregation, size, known, tmp_path):
    start = load_clip(architecture, "random", seed=1)
    encoder = build_encoder(architecture, "random", size, normalized=False, aggregation=aggregation).eval()
    torch.save(start.state_dict(), tmp_path / "start.pt")
    known_as = {"tag": "openai", "file": tmp_path / "start.pt"} if known else {}
    clip = loaded(encoder, tmp_path, **known_as)["clip"].eval()
    state = clip.visual.state_dict()
    assert {name for name in state if not name.startswith("attnpool.")} <= encoder.backbone.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    if known:
        assert torch.equal(clip.token_embedding.weight, start.token_embedding.weight)
    images = torch.rand(2, 3, *encoder.image_size)
    with torch.no_grad():
        if aggregation != "gem":
            torch.testing.assert_close(clip.encode_image(images), encoder(images))
        else:
            clip.visual.attnpool = torch.nn.Identity()
            torch.testing.assert_close(encoder.aggregation(clip.visual(images)), encoder(images))


@pytest.mark.parametrize(("architecture", "last"), [("resnet18", "fc."), ("efficientnet_b0", "classifier.")])
def test_torchvision_takes_the_backbone_but_for_the_last_layers(architecture, last, tmp_path):
    encoder = build_encoder(architecture, "random", 64, aggregation="mean").eval()
    classifier = loaded(encoder, tmp_path)["classifier"].eval()
    state = classifier.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.backbone.state_dict().items())
    assert {name for name in state if not name.startswith(last)} == encoder.backbone.state_dict().keys()
    assert isinstance(classifier, getattr(torchvision.models, type(classifier).__name__))


@torch.no_grad()
def test_timm_takes_dinov2_with_the_positions_of_its_image_size(tmp_path):
    encoder = build_encoder("timm/vit_small_patch14_dinov2", "random", (70, 98)).eval()
    network = loaded(encoder, tmp_path)["network"].eval()
    images = torch.rand(2, 3, 70, 98)
    expected = encoder(images)
    torch.testing.assert_close(torch.nn.functional.normalize(network.forward_features(images)[:, 0]), expected)
    assert encoder.backbone.pos_embed.shape[1] == 1 + 37 * 37 and torch.equal(encoder(images), expected)


def test_what_is_said_of_a_clip_names_its_weights_where_open_clip_knows_them():
    usage = FAMILIES["open_clip"].usage
    assert 'create_model("ViT-B-16", "openai", force_image_size=(64, 96))' in usage("ViT-B-16", (64, 96), "openai")
    assert 'create_model("ViT-B-16", None, ' in usage("ViT-B-16", (64, 96), "/my/clip.pt")
