import itertools

import pytest
import timm
import torch
from torch import nn

from progeo.models.backbones import freeze_layers
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.side_networks import LowRankAdapter, LowRankAdapters, MultiConvAdapter, MultiConvAdapters

FAMILIES = {"multiconv_adapters": MultiConvAdapters(), "lopa": LowRankAdapters()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def load(family, architecture="test_vit", image_size=64):
    network = family.load(NetworkSpec(architecture, image_size), "random", seed=1).network
    for parameter in network.adapters.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def convolved(adapter, name, cells):
    """A convolution with batch norm and ReLU, of cells (row, column) -> channels, pixel by pixel."""
    layer = adapter.get_submodule(f"branches.{name}")
    weight, norm = layer.conv.weight, layer.norm
    side = weight.shape[2]
    found = {}
    for row, column in cells:
        total = layer.conv.bias.clone()
        for i, j in itertools.product(range(side), range(side)):
            cell = cells.get((row + i - side // 2, column + j - side // 2))
            if cell is not None:
                total += weight[:, :, i, j] @ cell
        normed = (total - norm.running_mean) / (norm.running_var + 0.001).sqrt() * norm.weight + norm.bias
        found[row, column] = normed.clamp(min=0)
    return found


@torch.no_grad()
def test_a_multiconv_adapter_equals_its_definition():
    torch.manual_seed(0)
    adapter = MultiConvAdapter(64).eval().double()
    shapes = [tuple(layer.weight.shape) for layer in adapter.modules() if isinstance(layer, nn.Conv2d)]
    assert shapes == [(16, 32, 1, 1), (2, 32, 1, 1), (8, 2, 3, 3), (2, 32, 1, 1), (8, 2, 5, 5)]
    for tensor in adapter.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) - 0.3)
    for name, tensor in adapter.named_buffers():
        if name.endswith("running_var"):
            tensor.add_(1)
    refined, tokens = torch.randn(2, 3, 8, 64, dtype=torch.float64)  # two tokens before 2 x 3 patches
    for found, own, theirs in zip(adapter(refined, tokens, (2, 3)), refined, tokens, strict=True):
        hidden = [(adapter.down.weight @ token + adapter.down.bias).clamp(min=0) for token in own + theirs]
        cells = {(row, column): hidden[2 + 3 * row + column] for row, column in itertools.product(range(2), range(3))}
        branches = [convolved(adapter, "one", cells)]
        branches += [
            convolved(adapter, f"{name}.1", convolved(adapter, f"{name}.0", cells)) for name in ("three", "five")
        ]
        mixed = hidden[:2] + [torch.cat([branch[cell] for branch in branches]) for cell in cells]
        for index in range(8):
            expected = own[index] + adapter.up.weight @ (hidden[index] + mixed[index]) + adapter.up.bias
            torch.testing.assert_close(found[index], expected)


@torch.no_grad()
def test_a_low_rank_adapter_equals_its_definition():
    adapter = LowRankAdapter(6)
    nn.init.normal_(adapter.up.weight)
    refined, tokens = torch.randn(2, 1, 3, 6)
    for found, own, theirs in zip(adapter(refined, tokens, (1, 2))[0], refined[0], tokens[0], strict=True):
        hidden = adapter.down.weight @ (own + theirs) + adapter.down.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        torch.testing.assert_close(found, own + theirs + 0.5 * (adapter.up.weight @ hidden + adapter.up.bias))
    assert adapter.down.weight.shape == (4, 6)


@torch.no_grad()
def test_features_are_those_of_the_side_network_beside_an_unchanged_vit(family):
    network = load(family)
    plain = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    plain.load_state_dict(network.state_dict(), strict=False)
    seen = []
    plain.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for block in plain.blocks:
        block.register_forward_hook(lambda _, given, tokens: seen.append(tokens))
    images = torch.randn(2, 3, 64, 64)
    plain(images)
    refined = seen[0]
    for adapter, tokens in zip(network.adapters, seen[1:], strict=True):
        refined = adapter(refined, tokens, (4, 4))
    expected, found = plain.norm(refined), family.features(network, images)
    torch.testing.assert_close(found.token, expected[:, 0])
    torch.testing.assert_close(found.map.flatten(2), expected[:, 1:].mT)


@pytest.mark.parametrize(
    ("name", "blocks", "adapters"), [("multiconv_adapters", 24, 16), ("multiconv_adapters", 12, 12), ("lopa", 24, 24)]
)
def test_adapters_belong_to_the_last_blocks(name, blocks, adapters, monkeypatch):
    family = FAMILIES[name]
    assert len(family.adapters(32, blocks)) == adapters
    monkeypatch.setattr(family, "adapters", lambda channels, num_blocks: [LowRankAdapter(channels)] * 2)
    network, order = load(family), []
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, number=number: order.append(number))
    network.adapters[0].register_forward_hook(lambda *_: order.append("adapter"))
    family.features(network, torch.randn(1, 3, 64, 64))
    assert order == [0, 1, 2, 3, 4, "adapter", 5, "adapter"]


@torch.no_grad()
def test_the_last_layer_of_adapters_starts_at_zero_so_that_multiconv_ones_change_nothing(family):
    network = family.load(NetworkSpec("test_vit", 64), "random", seed=1).network
    for adapter in network.adapters:
        assert not adapter.up.weight.any() and not adapter.up.bias.any() and adapter.down.weight.any()
    refined, tokens = torch.randn(2, 1, 17, 64)
    expected = refined if isinstance(family, MultiConvAdapters) else refined + tokens
    assert torch.equal(network.adapters[0](refined, tokens, (4, 4)), expected)


def test_a_frozen_vit_keeps_nothing_for_a_backward_pass(family):
    network, needs = load(family), []
    freeze_layers(network, ["cls_token", "pos_embed", "patch_embed", "blocks", "norm"])
    for block in network.blocks:
        block.register_forward_hook(lambda _, given, tokens: needs.append(tokens.requires_grad))
    family.features(network, torch.randn(1, 3, 64, 64)).map.square().sum().backward()
    assert needs == [False] * 6
    with_gradient = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert with_gradient == [f"adapters.{name}" for name, _ in network.adapters.named_parameters()]
