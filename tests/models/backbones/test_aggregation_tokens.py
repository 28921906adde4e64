import math

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from progeo.models.backbones import find_family, freeze_layers
from progeo.models.backbones.aggregation_tokens import AggregationTokens, numbers_of
from progeo.models.backbones.family import NetworkSpec
from progeo.models.encoder import build_encoder, restore_encoder, spec_from_json, spec_to_json

FAMILY = AggregationTokens()


def load(architecture="test_vit+3@4", weights="random", image_size=64, seed=1):
    return FAMILY.load(NetworkSpec(architecture, image_size), weights, seed=seed).network


@torch.no_grad()
def test_the_tokens_are_inserted_before_the_block_and_are_the_token_after_the_last_norm():
    network = load()
    network.aggregation_tokens.normal_()
    plain = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    assert plain.load_state_dict(network.state_dict(), strict=False).unexpected_keys == ["aggregation_tokens"]
    inserted = network.aggregation_tokens[0]
    plain.blocks[4].register_forward_pre_hook(
        lambda _, given: torch.stack([torch.cat([inserted, tokens]) for tokens in given[0]])
    )
    images = torch.randn(2, 3, 64, 64)
    found, expected = FAMILY.features(network, images), plain.forward_features(images)
    assert expected.shape == (2, 3 + 1 + 16, 64)
    torch.testing.assert_close(found.token, torch.cat([expected[:, 0], expected[:, 1], expected[:, 2]], dim=1))
    torch.testing.assert_close(found.map.flatten(2), expected[:, 4:].mT)


def test_eight_tokens_before_block_eight_are_the_published_numbers():
    assert numbers_of("vit_base_patch14_reg4_dinov2") == (8, 8)
    assert numbers_of("vit_base_patch14_reg4_dinov2+12@0") == (12, 0)
    assert FAMILY.traits(load("test_vit+12@0")).token_dim == 12 * 64


@pytest.mark.parametrize(
    "name", ["test_vit+0@4", "test_vit+3", "test_vit+3@4+3@4", "test_vit+100@4", "resnet18+3@4", ""]
)
def test_a_name_of_another_form_is_not_known(name):
    with pytest.raises(ValueError, match="is not known to aggregation_tokens"):
        find_family(f"aggregation_tokens/{name}")


@pytest.mark.parametrize("name", ["test_vit", "test_vit+8@6"])
def test_a_block_that_the_vit_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=r"the last of its blocks is 5: name another, such as test_vit\+8@4\."):
        build_encoder(f"aggregation_tokens/{name}", "random", 64)


def test_training_starts_from_the_weights_of_the_vit_and_random_tokens(tmp_path):
    plain = timm.create_model("test_vit")
    save_file(plain.state_dict(), tmp_path / "vit.safetensors")
    encoder = build_encoder("aggregation_tokens/test_vit+50@4", str(tmp_path / "vit.safetensors"), 160, seed=3)
    state, own = encoder.backbone.state_dict(), plain.state_dict()
    assert encoder.spec.descriptor_dim == 50 * 64
    assert state.keys() - own.keys() == {"aggregation_tokens"}
    assert all(torch.equal(state[name], own[name]) for name in state if name != "aggregation_tokens")
    tokens = state["aggregation_tokens"]
    assert 0.95e-6 < tokens.std() < 1.05e-6 and tokens.mean().abs() < 0.1e-6
    assert torch.equal(tokens, load("test_vit+50@4", seed=3).aggregation_tokens)
    assert not torch.equal(tokens, load("test_vit+50@4", seed=4).aggregation_tokens)


@pytest.mark.parametrize("count", [3, 1])
def test_the_tokens_start_from_sharpened_centers_of_clusters(count):
    network = load(f"test_vit+{count}@4")
    before, directions = network.aggregation_tokens, torch.eye(64)[:count]
    # 20 local features near each direction, five times each, with a cosine of 0.8 to it and of 0 to the others.
    around = torch.eye(64)[10:30].repeat(5, 1)
    features = torch.cat([7 * (0.8 * direction + 0.6 * around) for direction in directions])
    FAMILY.initialize(network, lambda: features, seed=5)
    assert network.aggregation_tokens is before
    tokens = network.aggregation_tokens.detach()[0]
    unit = F.normalize(tokens, dim=1)
    centers = torch.stack([0.8 * direction + 0.6 * torch.eye(64)[10:30].mean(dim=0) for direction in directions])
    centers = F.normalize(centers, dim=1)
    order = (unit @ centers.T).argmax(dim=1)
    assert sorted(order.tolist()) == list(range(count))
    torch.testing.assert_close(unit, centers[order], atol=1e-5, rtol=0)
    cosines = (features / 7 @ centers.T).sort(dim=1, descending=True).values
    gap = (cosines[:, 0] - cosines[:, 1] if count > 1 else cosines[:, 0]).mean()
    torch.testing.assert_close(tokens.norm(dim=1), (math.log(100) / gap).expand(count))


def test_an_encoder_is_rebuilt_from_its_name():
    encoder = build_encoder("aggregation_tokens/test_vit+3@4", "random", 64)
    again = restore_encoder(spec_from_json(spec_to_json(encoder.spec)), encoder.state_dict())
    assert (again.backbone.inserted_before, again.spec.architecture) == (4, "test_vit+3@4")
    with pytest.raises(ValueError, match="has no architecture 'test_vit\\+3'"):
        spec_from_json({**spec_to_json(encoder.spec), "architecture": "test_vit+3"})


def test_position_embeddings_of_dinov2_are_resized_as_its_authors_do_with_registers_too():
    assert FAMILY.interpolation("vit_base_patch14_reg4_dinov2+8@8") == "dinov2"
    assert FAMILY.interpolation("test_vit+3@4") == "edges"


def test_checkpointing_runs_blocks_again_and_changes_no_gradient():
    images, gradients, runs = torch.randn(2, 3, 64, 64), [], []
    for checkpointed in (False, True):
        network = load()
        if checkpointed:
            FAMILY.checkpoint_gradients(network)
        network.blocks[5].register_forward_pre_hook(lambda *_, checkpointed=checkpointed: runs.append(checkpointed))
        FAMILY.features(network.train(), images).token.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert runs == [False, True, True]


def test_first_blocks_that_are_frozen_keep_nothing_for_a_backward_pass():
    network, needs = load(), []
    freeze_layers(network, ["cls_token", "pos_embed", "patch_embed", *(f"blocks.{number}" for number in range(4))])
    for block in network.blocks:
        block.register_forward_hook(lambda _, given, tokens: needs.append(tokens.requires_grad))
    FAMILY.features(network, torch.randn(1, 3, 64, 64))
    assert needs == [False] * 4 + [True] * 2
