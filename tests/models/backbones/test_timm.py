import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from progeo.models.backbones import freeze_layers
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.position_embedding import sized_features
from progeo.models.backbones.timm import Timm, _unused
from progeo.models.backbones.timm_layouts import set_grid
from progeo.models.encoder import build_encoder, empty_encoder, plan_encoder, spec_from_json

FAMILY = Timm()
PARTS = {"map", "token"}
NETWORKS = {
    "vit_small_patch14_dinov2": (384, 14, 384, (70, 70), (70, 98)),
    "vit_small_patch14_reg4_dinov2": (384, 14, 384, (70, 70), (98, 70)),
    "vit_small_patch16_dinov3": (384, 16, 384, (64, 64), (64, 96)),
    "vit_tiny_patch16_224": (192, 16, 192, (64, 64), (96, 64)),
    "test_vit3": (96, 16, None, (64, 64), (96, 64)),
    "swin_tiny_patch4_window7_224": (768, 32, None, (224, 224), (256, 320)),
    "eva02_tiny_patch14_224": (192, 14, 192, (70, 70), (98, 70)),
    "test_vit_relpos": (96, 16, None, (160, 160), None),
    "convnext_atto": (320, 32, None, (64, 64), (96, 64)),
    "mobilenetv3_small_050": (288, 32, None, (64, 64), (96, 70)),
    "mobilenetv4_conv_small_035": (336, 32, None, (64, 64), (96, 64)),
    "efficientnet_lite0": (1280, 32, None, (64, 64), (96, 64)),
    "resnetblur18": (512, 32, None, (64, 64), (96, 64)),
}
"""Channels, stride and token dimension of networks, and two image sizes; None for a network that takes one only."""
ALIKE = ("efficientnet_lite0", "mobilenetv4_conv_small_035", "vit_tiny_patch16_224")
SLOW = [*ALIKE, *(name for name in NETWORKS if "_small_patch" in name or name.startswith("swin"))]
"""Networks that are like MobileNetV3 or the test ViT, which are tested by default, or large."""


def load(architecture, weights="random", image_size=None, *, parts=PARTS, seed=1):
    interpolation = FAMILY.interpolation(architecture)
    return FAMILY.load(NetworkSpec(architecture, image_size, parts, interpolation), weights, seed=seed).network


def empty(architecture, image_size=None, parts=PARTS):
    interpolation = FAMILY.interpolation(architecture)
    return FAMILY.empty(NetworkSpec(architecture, image_size, parts, interpolation))


def is_equal(features, others):
    return all(one is other is None or torch.equal(one, other) for one, other in zip(features, others, strict=True))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NETWORKS],
)
def loaded(request):
    return request.param, load(request.param, image_size=NETWORKS[request.param][3])


@pytest.fixture(scope="module")
def tiny():
    return load("test_vit", image_size=64)


def test_a_network_has_the_parts_that_its_traits_promise_at_two_sizes(loaded):
    architecture, network = loaded
    channels, stride, token_dim, size, other = NETWORKS[architecture]
    traits = FAMILY.traits(network)
    assert (traits.channels, traits.features_dim, traits.stride, traits.token_dim) == (
        *(channels, channels, stride, token_dim),
    )
    assert FAMILY.default_aggregation(architecture) == ("token" if token_dim else "gem")
    for height, width in filter(None, (size, other)):
        assert height % traits.side_multiple == width % traits.side_multiple == 0
        sized = empty(architecture, (height, width))
        features = FAMILY.features(sized.to("meta"), torch.empty(2, 3, height, width, device="meta"))
        assert features.map.shape == (2, channels, -(-height // stride), -(-width // stride))
        assert features.token is None if token_dim is None else features.token.shape == (2, token_dim)
    assert traits.only_size == (size if other is None else None)


def test_the_features_are_those_of_timm(loaded):
    architecture, network = loaded
    height, width = NETWORKS[architecture][3]
    whole = timm.create_model(architecture)
    if hasattr(whole, "set_input_size") and "dinov3" not in architecture:
        whole.set_input_size((height, width))
    whole.eval().load_state_dict(network.state_dict(), strict=False)
    images = torch.rand(2, 3, height, width)
    with torch.no_grad():
        (wanted,) = whole.forward_intermediates(images, 1, norm=True, intermediates_only=True)
        found = FAMILY.features(network, images)
        if wanted.shape == found.map.shape:
            assert torch.allclose(found.map, wanted, atol=1e-5)
        if found.token is not None:
            assert torch.equal(found.token, whole.forward_features(images)[:, 0])


@pytest.mark.parametrize("part", ["map", "token"])
def test_gradients_reach_every_parameter(loaded, part):
    architecture, _ = loaded
    if part == "token" and NETWORKS[architecture][2] is None:
        return
    size = NETWORKS[architecture][3]
    network = load(architecture, image_size=size, parts={part})
    getattr(FAMILY.features(network, torch.rand(2, 3, *size)), part).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_weights_follow_their_seed_and_return_into_the_empty_network(loaded):
    architecture, network = loaded
    size = NETWORKS[architecture][3]
    before = torch.get_rng_state()
    again, restored = load(architecture, image_size=size), empty(architecture, size)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(restored.state_dict()) == list(network.state_dict())
    restored.load_state_dict(again.state_dict(), assign=True)
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        features = FAMILY.features(network, images)
        assert is_equal(features, FAMILY.features(restored, images))
        assert features.map.isfinite().all()


@pytest.mark.slow
def test_the_buffers_of_a_swinv2_return_into_the_empty_network():
    network, restored = load("swinv2_cr_tiny_ns_224", image_size=224), empty("swinv2_cr_tiny_ns_224", 224)
    wanted, found = dict(network.named_buffers()), dict(restored.named_buffers())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted.keys() - network.state_dict().keys())


@pytest.mark.parametrize(
    "architecture",
    ["vit_small_patch16_dinov3", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)],
)
def test_buffers_without_a_function_that_computes_them_are_those_of_the_network(architecture, monkeypatch):
    network = load(architecture, image_size=NETWORKS[architecture][3])
    for kind in {type(module) for module in network.modules() if hasattr(module, "init_non_persistent_buffers")}:
        monkeypatch.delattr(kind, "init_non_persistent_buffers", raising=False)
    restored = dict(empty(architecture, NETWORKS[architecture][3]).named_buffers())
    assert all(torch.equal(restored[name], buffer) for name, buffer in network.named_buffers())


def test_the_code_of_usage_loads_the_backbone(loaded, tmp_path, monkeypatch):
    architecture, network = loaded
    size = NETWORKS[architecture][3]
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "backbone.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(FAMILY.usage(architecture, size, None), names)
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(names["network"].eval().forward_features(images), network.forward_features(images))


def test_gradient_checkpointing_changes_no_gradient(tiny):
    gradients = []
    for enable in (False, True):
        network = load("test_vit", image_size=64)
        if enable:
            FAMILY.checkpoint_gradients(network)
        FAMILY.features(network, torch.ones(1, 3, 64, 64)).map.square().sum().backward()
        gradients.append(network.patch_embed.proj.weight.grad)
    assert torch.allclose(*gradients)


def dinov2_resized(embedding, size, patch):
    """Resize as `interpolate_pos_encoding` of the DINOv2 repository, for squares stored."""
    class_token, patches = embedding[:, :1], embedding[:, 1:]
    side = int(patches.shape[1] ** 0.5)
    height, width = size[0] // patch, size[1] // patch
    patches = F.interpolate(
        patches.reshape(1, side, side, -1).permute(0, 3, 1, 2),
        scale_factor=((height + 0.1) / side, (width + 0.1) / side),
        mode="bicubic",
        antialias=False,
    )
    assert patches.shape[2:] == (height, width)
    return torch.cat([class_token, patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def test_the_position_embedding_of_dinov2_is_resized_as_its_authors_do():
    architecture = "vit_small_patch14_dinov2"
    stored, size = load(architecture).pos_embed, (322, 224)
    assert stored.shape == (1, 1 + 37 * 37, 384)
    found = load(architecture, image_size=size).pos_embed
    assert torch.allclose(found, dinov2_resized(stored, size, 14), atol=1e-6)
    other = timm.layers.resample_abs_pos_embed(stored, (23, 16), (37, 37), 1)
    assert (found - other).abs().max() > 1e-3


@torch.no_grad()
def test_dinov2_resizes_the_positions_of_its_weights_for_images_of_every_size():
    architecture = "vit_small_patch14_dinov2"
    kept = FAMILY.configuration(architecture, "random")
    assert kept == {"positions_size": [518, 518]}  # as JSON restores it
    plan = plan_encoder(f"timm/{architecture}", "random", 70)
    loaded = FAMILY.load(plan.network, "random", seed=1)
    assert loaded.configuration == kept and loaded.image_size == (70, 70)
    assert loaded.network.pos_embed.shape == (1, 1 + 37 * 37, 384)
    images, how = torch.rand(1, 3, 98, 84), (FAMILY.traits(loaded.network).positions, "dinov2")
    found = sized_features(FAMILY, loaded.network, images, *how)
    loaded.network.pos_embed.data = dinov2_resized(loaded.network.pos_embed, (98, 84), 14)
    set_grid(loaded.network, (98, 84))
    expected = FAMILY.features(loaded.network, images)
    assert torch.allclose(found.map, expected.map, atol=1e-5) and torch.allclose(found.token, expected.token, atol=1e-5)


def test_an_encoder_of_dinov2_of_earlier_versions_has_positions_of_its_image_size():
    fields = {"family": "timm", "architecture": "vit_small_patch14_dinov2", "image_size": [70, 98]}
    fields |= {"descriptor_dim": 384, "mean": [0, 0, 0], "std": [1, 1, 1], "aggregation": "token"}
    assert empty_encoder(spec_from_json(fields)).backbone.pos_embed.shape[1] == 1 + 5 * 7
    fields["configuration"] = {"positions_size": [42, 42]}
    assert empty_encoder(spec_from_json(fields)).backbone.pos_embed.shape[1] == 1 + 3 * 3
    for wrong, why in (
        ({}, "missing the field positions_size"),
        ({"positions_size": [42]}, "array of length 2"),
        ({"positions_size": [42, 14_000]}, r"<= 4096, got 14000 in positions_size\[1\]"),
    ):
        with pytest.raises(ValueError, match=why):
            spec_from_json(fields | {"configuration": wrong})
    with pytest.raises(ValueError, match="has a configuration, which its family does not take"):
        spec_from_json(fields | {"architecture": "vit_tiny_patch16_224"})


def test_ways_of_resizing():
    ways = {name: FAMILY.interpolation(name) for name in NETWORKS}
    assert [name for name, way in ways.items() if way == "dinov2"] == ["vit_small_patch14_dinov2"]
    assert set(ways.values()) == {"dinov2", "edges"}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_file_with_the_complete_network_keeps_its_image_size(ending, tmp_path):
    whole, path = timm.create_model("test_vit", img_size=96).eval(), tmp_path / f"whole{ending}"
    (save_file if ending == ".safetensors" else torch.save)(whole.state_dict(), path)
    network = load("test_vit", str(path))
    images = torch.rand(1, 3, 96, 96)
    assert torch.equal(FAMILY.features(network, images).token, whole.forward_features(images)[:, 0])
    resized = load("test_vit", str(path), 64).pos_embed
    assert torch.allclose(resized, timm.layers.resample_abs_pos_embed(whole.pos_embed, (4, 4), (6, 6), 1), atol=1e-6)


def test_files_of_the_authors_of_dinov2_are_read(tmp_path):
    architecture = "vit_small_patch14_reg4_dinov2"
    network = load(architecture)
    state, first = network.state_dict(), torch.rand(1, 1, 384)
    theirs = {name: tensor for name, tensor in state.items() if name not in ("reg_token", "cls_token", "pos_embed")} | {
        "mask_token": torch.zeros(1, 384),
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - first,
        "pos_embed": torch.cat([first, state["pos_embed"]], dim=1),
    }
    torch.save(theirs, tmp_path / "dinov2.pth")
    found = load(architecture, str(tmp_path / "dinov2.pth")).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.allclose(found[name], state[name], atol=1e-6) for name in state)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Write the repository `owner/name` of a network into the cache of Hugging Face's hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def write(repository, network, config):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "snapshots/abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("abc")
        (folder / "snapshots/abc/config.json").write_text(json.dumps(config))
        save_file(network.state_dict(), folder / "snapshots/abc/model.safetensors")

    return write


def test_weights_come_from_a_tag_or_a_repository(hub):
    whole = timm.create_model("test_vit")
    hub("timm/test_vit.r160_in1k", whole, {})
    for tag in ("r160_in1k", "DEFAULT"):
        network = load("test_vit", tag)
        assert torch.equal(network.pos_embed, whole.pos_embed)
        assert network.patch_embed.img_size == (160, 160)
    pixels = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "license": "mit"}
    hub("someone/net", whole, {"architecture": "test_vit", "pretrained_cfg": pixels})
    assert torch.equal(load("test_vit", "hf-hub:someone/net").pos_embed, whole.pos_embed)
    assert FAMILY.own_normalization("test_vit", "hf-hub:someone/net") == {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    assert FAMILY.license("test_vit", "hf-hub:someone/net") == "mit"
    with pytest.raises(ValueError, match="'hf-hub:someone/net' could not be loaded as test_vit2: it holds a test_vit"):
        load("test_vit2", "hf-hub:someone/net")


def test_the_license_of_a_repository_that_cannot_be_read_is_unknown(hub):
    assert FAMILY.license("test_vit", "hf-hub:someone/gone") is None


def test_pixels_and_license_are_those_of_the_tag():
    assert FAMILY.license("vit_base_patch14_dinov2", "lvd142m") == "apache-2.0"
    assert FAMILY.license("vit_small_patch16_dinov3", "DEFAULT") == "dinov3-license"
    assert FAMILY.license("resnet18", "random") is None
    assert FAMILY.own_normalization("vit_base_patch16_siglip_224", "webli")["mean"] == (0.5, 0.5, 0.5)
    assert FAMILY.own_normalization("resnet18", "random") == {}


@pytest.mark.parametrize(
    ("architecture", "weights", "size", "words"),
    [
        ("test_vit.r160_in1k", "random", None, "has a tag: use `architecture` test_vit and `weights` r160_in1k"),
        ("crossvit_9_240", "random", None, "'crossvit_9_240' of timm has neither a feature map nor patch tokens"),
        ("test_vit", "openai", None, r"nor random, nor a tag of test_vit \(DEFAULT, r160_in1k\)"),
        ("coat_lite_tiny", "random", 64, r"`image_size` of coat_lite_tiny cannot be 64 x 64: use 224 x 224"),
    ],
)
def test_what_does_not_work_is_refused_in_a_sentence(architecture, weights, size, words):
    with pytest.raises(ValueError, match=words):
        load(architecture, weights, size)


def test_a_network_whose_layers_share_weights_is_refused():
    with pytest.raises(ValueError, match="coat_lite_tiny with these weights cannot be an encoder: its layers share"):
        build_encoder("timm/coat_lite_tiny", "random")


def test_a_layer_that_cannot_be_frozen_is_refused_with_those_that_can(tiny):
    layers = "cls_token, pos_embed, patch_embed, blocks, norm"
    with pytest.raises(ValueError, match=f"has 'head', which is no layer of the backbone; it has {layers}"):
        freeze_layers(tiny, ["head"])


def test_files_of_another_network_are_refused(tmp_path, tiny):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"The weights do not fit test_vit: .* is missing"):
        load("test_vit", str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("not weights at all")
    with pytest.raises(ValueError, match="could not be loaded as test_vit"):
        load("test_vit", str(tmp_path / "text.pth"))


def test_names_are_known():
    assert FAMILY.knows("vit_small_patch14_dinov2")
    assert not FAMILY.knows("RN50")


def test_a_network_that_is_built_empty_before_any_other_has_its_shortcuts():
    _unused.cache_clear()  # as in a process that begins with loading an encoder
    names = empty("resnetblur18", parts={"map"}).state_dict().keys()
    assert "layer2.0.downsample.1.weight" in names
    assert names == load("resnetblur18", image_size=64, parts={"map"}).state_dict().keys()


def test_a_variant_ends_before_the_last_norm_and_takes_the_weights_of_its_network(tmp_path, monkeypatch):
    torch.manual_seed(0)
    whole = timm.create_model("test_vit").eval()
    torch.nn.init.normal_(whole.norm.weight)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    network = load("test_vit_prenorm", str(tmp_path / "whole.pth"))
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        feature_map, token = FAMILY.features(network, images)
        wanted = whole.forward_features(images)
        assert torch.allclose(whole.norm(feature_map.flatten(2).mT), wanted[:, 1:], atol=1e-6)
        assert torch.allclose(whole.norm(token), wanted[:, 0], atol=1e-6)
    assert not [name for name in network.state_dict() if name.startswith("norm.")]
    save_file(network.state_dict(), tmp_path / "backbone.safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(FAMILY.usage("test_vit_prenorm", (160, 160), None), names)
    with torch.no_grad():
        assert torch.equal(names["network"].eval().forward_features(images), network.forward_features(images))


def test_a_variant_of_dinov2_is_known_and_that_of_a_network_without_tokens_is_not():
    for name, known in {
        "vit_base_patch14_dinov2": True,
        "vit_base_patch14_reg4_dinov2": True,
        "resnet18": False,
    }.items():
        assert FAMILY.knows(f"{name}_prenorm") is known
    assert FAMILY.interpolation("vit_base_patch14_dinov2_prenorm") == "dinov2"
    assert FAMILY.license("vit_base_patch14_dinov2_prenorm", "lvd142m") == "apache-2.0"
