"""One contract for every kind of visual tower that open_clip builds, on a small tower of each."""

import functools

import open_clip
import pytest
import torch
from contracts import check_gradients, check_onnx, check_program, check_reload, check_resume, training_builder
from safetensors.torch import save_file
from small_towers import SMALL_TOWERS, configuration, register_small_towers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clips import summarize_tower
from progeo.models.backbones import empty_traits
from progeo.models.backbones.clip_configurations import known_architectures
from progeo.models.backbones.clip_towers import resize_input
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.open_clip import OpenClip
from progeo.models.backbones.position_embedding import sized_features
from progeo.models.encoder import build_encoder
from progeo.models.pixel_statistics import own_statistics

FAMILY = OpenClip()
register_small_towers()
each_tower = pytest.mark.parametrize("name", SMALL_TOWERS)
ONE_SIZE = {"small-swin": (64, 64), "small-relpos": (160, 160)}
MULTIPLES = {
    **dict.fromkeys(("small-siglip", "small-eva01", "small-eva02", "small-pe", "small-mci", "small-vitamin"), 16),
    "small-gap": 16,
}
CONVOLUTIONS = {f"small-{name}" for name in ("resnet", "convnext", "convnext-mlp", "fastvit", "swin", "attention-pool")}


def load(name, parts=("map", "token"), image_size=None):
    return FAMILY.load(NetworkSpec(name, image_size, parts), "random", seed=1).network


@functools.cache
def encoder_of(name, aggregation):
    return build_encoder(name, "random", aggregation=aggregation, seed=1).eval()


def images_of(name, batch=2):
    size = SMALL_TOWERS[name]["image_size"]
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def is_equal(features, others):
    return all(one is other is None or torch.equal(one, other) for one, other in zip(features, others, strict=True))


@each_tower
@torch.no_grad()
def test_the_token_is_the_image_features_of_the_clip_and_the_map_has_the_shape_promised(name):
    clip, tower, images = load_clip(name, "random", seed=1), load(name), images_of(name)
    features, traits = FAMILY.features(tower, images), FAMILY.traits(tower)
    assert torch.equal(features.token, clip.encode_image(images, normalize=False))
    side = SMALL_TOWERS[name]["image_size"]
    cells = side // traits.stride
    assert features.map.shape == (2, traits.channels, cells, cells)
    assert traits.token_dim == features.token.shape[1] == 64
    assert traits.shares_text_space
    assert traits.side_multiple == MULTIPLES.get(name, 1)
    assert traits.only_size == ONE_SIZE.get(name)
    summary = summarize_tower(name)
    assert (summary.map, summary.token_dim, summary.image_size) == ((traits.channels, cells, cells), 64, (side, side))
    assert FAMILY.default_aggregation(name) == ("gem" if name in CONVOLUTIONS else "token")


@each_tower
@torch.no_grad()
def test_a_part_alone_is_that_of_both_and_layers_of_the_token_are_removed_with_it(name):
    both, images = load(name), images_of(name)
    wanted = FAMILY.features(both, images)
    for part, other in (("map", "token"), ("token", "map")):
        alone = load(name, (part,))
        found = FAMILY.features(alone, images)
        torch.testing.assert_close(getattr(found, part), getattr(wanted, part))
        assert getattr(found, other) is None or (name, part) == ("small-resnet", "token")
        assert (len(alone.state_dict()) < len(both.state_dict())) == (part == "map")
        assert FAMILY.traits(alone).shares_text_space == (part == "token")


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_class_token_alone_takes_less_of_the_last_block_for_the_same_gradients(recomputed):
    images, gradients, operations = images_of("small-vit").double(), [], []
    for parts in (("token",), ("map", "token")):
        tower = load("small-vit", parts).double().requires_grad_()
        if recomputed:
            FAMILY.checkpoint_gradients(tower)
        with FlopCounterMode(display=False) as counter:
            FAMILY.features(tower, images).token.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in tower.named_parameters()})
        operations.append(counter.get_total_flops())
    torch.testing.assert_close(*gradients)
    assert operations[0] < operations[1]


@pytest.mark.parametrize("name", ["clipa", "siglip", "siglip14", "gap", "vitamin", "convnext", "fastvit", "swin"])
@torch.no_grad()
def test_the_pooling_of_a_tower_without_a_class_token_reads_the_map(name):
    tower = load(f"small-{name}")
    features = FAMILY.features(tower, images_of(f"small-{name}"))
    if name == "clipa":
        pooled = tower.ln_post(features.map.mean((2, 3))) @ tower.proj
    else:
        layout = tower.trunk.layout
        found = features.map.flatten(2).mT if layout.first_patch is not None else features.map
        pooled = tower.head(tower.trunk.forward_head(found.permute(0, 2, 3, 1) if layout.channels_last else found))
    torch.testing.assert_close(features.token, pooled)


@torch.no_grad()
def test_the_attention_pooling_of_a_coca_reads_the_map():
    tower = load("small-coca")
    features = FAMILY.features(tower, images_of("small-coca"))
    seen = []
    tower.attn_pool.attn.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    tower(images_of("small-coca"))
    assert torch.equal(seen[0][:, 1:], features.map.flatten(2).mT)


@pytest.mark.parametrize(
    ("name", "aggregation"),
    [
        pytest.param(name, aggregation, marks=[] if is_quick(name) else [pytest.mark.slow])
        for aggregation, is_quick in (
            ("token", lambda name: name not in CONVOLUTIONS or name == "small-resnet"),
            ("gem", lambda name: name in CONVOLUTIONS or name == "small-vit"),
        )
        for name in SMALL_TOWERS
    ],
)  # by default that of the tower; of each kind one has the other, too
def test_an_encoder_has_gradients_everywhere_and_is_equal_bit_for_bit_once_loaded_again(name, aggregation, tmp_path):
    encoder = encoder_of(name, aggregation)
    check_reload(encoder, tmp_path)
    if "pos_embed_type" not in SMALL_TOWERS[name]:  # it is fixed
        check_gradients(encoder)


@pytest.mark.parametrize("name", [name for name in SMALL_TOWERS if name not in ONE_SIZE])
@torch.no_grad()
def test_a_tower_run_at_another_size_equals_one_loaded_for_that_size(name):
    tower = load(name)
    step = 14 if name == "small-siglip14" else FAMILY.traits(tower).stride
    size = (5 * step, 7 * step)
    resized, images = load(name, image_size=size), torch.randn(2, 3, *size)
    wanted = FAMILY.features(resized, images)
    assert wanted.map.shape[2:] == (5, 7)
    assert is_equal(sized_features(FAMILY, tower, images, FAMILY.traits(tower).positions, "edges"), wanted)
    clip = load_clip(name, "random", size, seed=1)
    assert torch.equal(clip.encode_image(images, normalize=False), wanted.token)


@pytest.mark.parametrize(("name", "size"), [("small-swin", (96, 128)), ("small-relpos", (96, 160))])
@torch.no_grad()
def test_a_tower_of_one_size_can_be_loaded_for_another(name, size, tmp_path):
    encoder = build_encoder(name, "random", size, aggregation="token", normalized=False, seed=1).eval()
    assert encoder.traits.only_size == encoder.image_size == size
    images = torch.randn(2, 3, *size)
    clip = load_clip(name, "random", size, seed=1)
    torch.testing.assert_close(encoder(images), clip.encode_image(images, normalize=False))
    check_reload(encoder, tmp_path)
    with pytest.raises(
        ValueError, match=f"must be {size[0]} x {size[1]} pixels, the only size of this network, got 64"
    ):
        encoder(torch.randn(1, 3, 64, 65))


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        (
            "small-siglip",
            (64, 100),
            r"`image_size` must be at least 32 pixels a side, in multiples of 16, got 64 x 100",
        ),
        ("small-relpos", (100, 96), r"`image_size` of test_vit_relpos cannot be 100 x 96: use 160 x 160, or perhaps"),
    ],
)
def test_a_size_that_a_tower_does_not_take_is_refused_with_those_that_it_takes(name, size, words):
    for build in (load_clip, build_encoder):
        with pytest.raises(ValueError, match=words):
            build(name, "random", size)


def test_a_rotary_embedding_follows_the_grid():
    tower = load("small-eva02")
    positions = FAMILY.traits(tower).positions
    (moved,) = positions.computed((5, 7)).values()
    tower.trunk.rope.update_feat_shape((5, 7))
    assert torch.equal(moved, tower.trunk.rope.pos_embed)


@each_tower
def test_open_clip_loads_the_backbone_alone(name, tmp_path, monkeypatch):
    tower = load(name)
    save_file(
        {f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}, tmp_path / "backbone.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    exec(FAMILY.usage(name, (SMALL_TOWERS[name]["image_size"],) * 2, None), used := {})
    images = images_of(name)
    with torch.no_grad():
        found = used["clip"].eval().encode_image(images, normalize=False)
        torch.testing.assert_close(found, FAMILY.features(tower, images).token)  # its attention adds in another order


def test_the_code_for_a_backbone_of_another_configuration_brings_the_configuration(tmp_path, monkeypatch):
    changed = configuration("small-vit")
    changed["vision_cfg"] = {**changed["vision_cfg"], "norm_kwargs": {"eps": 1e-2}}
    tower = FAMILY.load(NetworkSpec("small-vit", configuration=changed), "random", seed=1).network
    save_file(
        {f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}, tmp_path / "backbone.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", [])
    exec(FAMILY.usage("small-vit", (64, 64), None, changed), used := {})
    images = images_of("small-vit")
    torch.testing.assert_close(used["clip"].eval().encode_image(images), tower(images))
    assert not torch.allclose(load("small-vit")(images), tower(images))


@pytest.mark.parametrize("name", ["clipa", "coca", "siglip", "eva02", "pe", "mci", "vitamin", "convnext", "fastvit"])
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients = []
    for enable in (False, True):
        tower = load(f"small-{name}")
        if enable:
            FAMILY.checkpoint_gradients(tower)
        FAMILY.features(tower, images_of(f"small-{name}")).token.cos().sum().backward()
        gradients.append([weight.grad for weight in tower.parameters() if weight.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_a_training_with_drop_path_that_is_resumed_ends_with_the_same_bits(config, tmp_path):
    settings = {
        **{"model.architecture": "small-vitamin", "encoder.image_size": 64, "encoder.aggregation": "token"},
        **{"encoder.descriptor_dim": "null", "text.weight": 0, "training.batch_size": 2},
    }
    check_resume(training_builder(config, settings), tmp_path)


def test_weights_of_another_image_size_have_their_position_embedding_resized(tmp_path):
    source = load_clip("small-pe", "random", 96, seed=1)
    torch.save(source.state_dict(), tmp_path / "larger.pt")
    found = load_clip("small-pe", str(tmp_path / "larger.pt")).visual
    resize_input(source.visual, (64, 64), "edges")
    assert torch.equal(found.trunk.pos_embed, source.visual.trunk.pos_embed)
    assert torch.equal(found(images_of("small-pe")), source.visual(images_of("small-pe")))


@pytest.mark.parametrize(
    ("architecture", "weights", "mean", "source"),
    [
        ("ViT-B-16-SigLIP", "webli", 0.5, "those of webli"),
        ("ViT-B-16-SigLIP", "random", 0.5, "those of all weights of ViT-B-16-SigLIP since random weights have none"),
        ("MobileCLIP-S1", "mine.pt", 0.0, "those of all weights of MobileCLIP-S1 since those of mine.pt are unknown"),
        ("ViT-L-14", "random", 0.48145466, "CLIP's since random weights have none of their own"),  # tags do not agree
        ("ViT-L-16", "random", 0.48145466, "CLIP's since random weights have none of their own"),  # it has no tags
        ("ViT-B-32", "random", 0.48145466, "CLIP's since random weights have none of their own"),
    ],
)
def test_weights_without_pixel_statistics_have_those_that_all_of_the_architecture_have(
    architecture, weights, mean, source
):
    found = own_statistics(architecture, weights)
    assert found.mean[0] == mean
    assert found.source.startswith(source)


@pytest.mark.slow
@each_tower
@pytest.mark.parametrize("aggregation", ["token", "gem"])
@pytest.mark.parametrize("check", [check_onnx, check_program])
def test_a_graph_computes_the_descriptors_or_is_refused(name, aggregation, check, tmp_path):
    refused = dict.fromkeys(ONE_SIZE, "A graph for images of many sizes cannot be made of")
    refused["small-siglip14"] = "The encoder's own images of 74 x 74 pixels would not be accepted"
    check(encoder_of(name, aggregation), tmp_path, refused.get(name))


@pytest.mark.slow
def test_every_architecture_of_open_clip_has_a_backbone():
    names = [name for name in known_architectures() if not name.startswith(("small-", "tiny-"))]
    assert len(names) >= 144
    for name in names:
        summary, vision = summarize_tower(name), open_clip.get_model_config(name)["vision_cfg"]
        assert summary.token_dim == open_clip.get_model_config(name)["embed_dim"]
        assert summary.image_size == (vision["image_size"],) * 2
        assert min(summary.map) >= 4
        assert summary.sizes.endswith("only") == name.startswith(("swin_", "vit_relpos_"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "EVA02-B-16"),
        *("PE-Core-T-16-384", "MobileCLIP2-B", "MobileCLIP-S1", "MobileCLIP2-S3", "ViTamin-S", "convnext_large_d"),
        *("vit_medium_patch16_gap_256", "vit_relpos_medium_patch16_cls_224", "swin_base_patch4_window7_224"),
    ],
)
@torch.no_grad()
def test_a_published_tower_has_the_image_features_of_its_clip_and_is_equal_once_loaded_again(name, tmp_path):
    encoder = build_encoder(name, "random", aggregation="token", normalized=False, seed=1).eval()
    tower = FAMILY.load(NetworkSpec(name), "random", seed=1).network
    images = torch.randn(2, 3, *encoder.image_size)
    wanted = tower(images)[0] if name.startswith("coca") else tower(images)
    torch.testing.assert_close(encoder(images), wanted, rtol=1e-4, atol=1e-5)  # its memory format is another
    assert empty_traits(name).token_dim == encoder.descriptor_dim
    check_reload(encoder, tmp_path)
