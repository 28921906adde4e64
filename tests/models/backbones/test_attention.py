"""Attention that takes batches first, against that of PyTorch and open_clip with the same weights."""

import copy
from functools import partial

import pytest
import tiny_clips
import torch
from open_clip.modified_resnet import AttentionPool2d
from small_towers import SMALL_TOWERS, register_small_towers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from progeo.models.backbones import freeze_layers
from progeo.models.backbones.attention import BatchFirstAttention, attend, attend_batch_first
from progeo.models.backbones.attention_pool import BatchFirstPool
from progeo.models.backbones.clips import load_clip
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.open_clip import OpenClip
from progeo.models.backbones.torchvision import Torchvision

register_small_towers()
ORIGINAL = {BatchFirstAttention: nn.MultiheadAttention, BatchFirstPool: AttentionPool2d}
TOWERS = [f"small-{name}" for name in ("vit", "resnet", "clipa", "sincos", "coca")]
MASKS = {
    "causal": ({}, {}),
    "none": ({"no_causal_mask": True}, {"custom_text": True}),
    "class token": ({"embed_cls": True}, {"custom_text": True}),
    "coca": ({"embed_cls": True, "output_tokens": True}, {"multimodal_cfg": tiny_clips.DECODER}),
}
FUSED = ("flash_attention", "efficient_attention", "cudnn_attention")


class Operations(TorchDispatchMode):
    """The names of all operations that run inside."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def has(self, *parts):
        return any(part in name for part in parts for name in self.names)


def tower_of(name):
    return OpenClip().load(NetworkSpec(name), "random", seed=1).network


def original(network):
    """A copy with the attention of PyTorch and open_clip."""
    network = copy.deepcopy(network)
    for module in network.modules():
        module.__class__ = ORIGINAL.get(type(module), type(module))
    return network


def images_of(name, **like):
    size = SMALL_TOWERS[name]["image_size"]
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(**like)


def values_and_gradients(network, run):
    """The output of a network, and the gradient of each parameter that gets one."""
    output = run(network)
    output = output[0] if isinstance(output, tuple) else output
    output.float().cos().sum().backward()
    return {"": output} | {name: each.grad for name, each in network.named_parameters() if each.grad is not None}


def assert_equal(network, run, *, rtol=1e-9, atol=1e-11, train=False):
    plain = original(network)
    assert any(type(module) in ORIGINAL for module in network.modules())
    assert not any(type(module) in ORIGINAL for module in plain.modules())
    assert list(network.state_dict()) == list(plain.state_dict())
    found, wanted = (values_and_gradients(each.train(train), run) for each in (network, plain))
    assert found.keys() == wanted.keys()
    assert len(found) > 10
    for name, each in wanted.items():
        limit = atol * max(1.0, each.detach().abs().max().item())
        torch.testing.assert_close(found[name], each, rtol=rtol, atol=limit, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_features_and_gradients_of_a_tower_are_those_of_open_clip(name, train):
    assert_equal(tower_of(name).double(), lambda tower: tower(images_of(name)), train=train)


@pytest.mark.parametrize("name", TOWERS)
def test_features_in_half_precision_are_those_of_open_clip_within_its_rounding(name):
    tower, images = tower_of(name), images_of(name, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = (OpenClip().features(each, images).token for each in (tower, original(tower)))
    assert found.dtype == wanted.dtype
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("kind", MASKS)
def test_features_and_gradients_of_a_text_tower_are_those_of_open_clip(kind):
    clip = tiny_clips.build(*MASKS[kind]).requires_grad_(True)
    attend_batch_first(clip)
    ids = torch.tensor([[5, 6, 7, 49407, *[0] * 24], [9, 8, 49407, *[0] * 25]])[:, : clip.context_length]
    assert_equal(clip, lambda clip: clip.encode_text(ids, normalize=False))


def test_features_and_gradients_of_a_vit_of_torchvision_are_its_own():
    network = Torchvision().empty(NetworkSpec("vit_b_16", 32))
    network.encoder.layers = network.encoder.layers[:1]
    network = network.to_empty(device="cpu").double()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(
                torch.linspace(-1, 1, parameter.numel()).mul(index * 31 + 7).sin().mul(0.05).view_as(parameter)
            )
    assert_equal(network, lambda network: Torchvision().features(network, images_of("small-vit")[..., :32, :32]).token)


@pytest.mark.parametrize("masked", [None, (3, 5), (8, 3, 5)])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 6}])
def test_queries_of_other_tokens_give_what_pytorch_gives(sizes, masked):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64, **sizes)
    nn.init.normal_(attention.in_proj_bias)
    queries, keys = torch.randn(2, 3, 8).double(), torch.randn(2, 5, sizes.get("kdim", 8)).double()
    mask = None if masked is None else torch.randn(masked).double()
    values = keys * 2
    wanted, _ = attention(queries, keys, values, need_weights=False, attn_mask=mask)
    attend_batch_first(attention)
    found, weights = attention(queries, keys, values, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(found, wanted)
    assert weights is None


@pytest.mark.parametrize("options", [{"batch_first": False}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_of_another_kind_remains_that_of_pytorch(options):
    attention = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})
    attend_batch_first(attention)
    assert type(attention) is nn.MultiheadAttention


def test_dropout_drops_attention_in_training_alone():
    attention = nn.MultiheadAttention(8, 2, dropout=1.0, batch_first=True)
    nn.init.normal_(attention.out_proj.bias)
    attend_batch_first(attention)
    tokens = torch.randn(2, 3, 8)
    dropped = attention.train()(tokens, tokens, tokens)[0]
    assert torch.equal(dropped, attention.out_proj.bias.expand(2, 3, 8))
    assert not torch.allclose(attention.eval()(tokens, tokens, tokens)[0], dropped)


@pytest.mark.parametrize("name", TOWERS)
def test_every_way_to_build_a_clip_takes_batches_first(name):
    built = (tower_of(name), load_clip(name, "random"), OpenClip().empty(NetworkSpec(name)))
    for network in built:
        classes = [type(module) for module in network.modules()]
        assert not {nn.MultiheadAttention, AttentionPool2d} & set(classes)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_tower_without_gradient_multiplies_no_copies_of_its_matrices(name):
    tower, images = tower_of(name).requires_grad_(False), images_of(name, dtype=torch.float32)
    copies = []
    for network, is_half in ((tower, True), (tower, False), (original(tower), True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half), Operations() as operations:
            network(images)
        copies.append(operations.has("bmm"))
    assert copies == [False, False, name != "small-resnet"]


@pytest.mark.parametrize(
    ("dtype", "keys", "gradient", "is_fused"),
    [
        (torch.bfloat16, 512, True, False),
        (torch.bfloat16, 513, True, True),
        (torch.bfloat16, 512, False, True),
        (torch.float32, 512, True, True),
    ],
)
def test_attention_is_by_its_formula_where_the_backward_pass_of_the_fused_kernel_is_slow(
    dtype, keys, gradient, is_fused
):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 2, count, 8, dtype=dtype, generator=generator) for count in (3, keys, keys)]
    parts[0].requires_grad_(gradient)
    for mask in (None, torch.zeros(3, keys, dtype=dtype)):
        with Operations() as operations:
            found = attend(*parts, attn_mask=mask)
        assert operations.has(*FUSED) == is_fused
        torch.testing.assert_close(found, nn.functional.scaled_dot_product_attention(*parts), atol=4e-3, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_fused_on_a_gpu(masked):
    parts = [torch.randn(2, 4, 50, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(50, 50, device="cuda", dtype=torch.bfloat16) if masked else None
    with Operations() as operations:
        attend(*parts, attn_mask=mask)
    assert operations.has(*FUSED)


def test_gradient_checkpointing_changes_no_gradient_in_half_precision():
    gradients = []
    for enable in (False, True):
        tower = tower_of("small-vit")
        if enable:
            OpenClip().checkpoint_gradients(tower)
        with torch.autocast("cpu", torch.bfloat16):
            output = tower(images_of("small-vit", dtype=torch.float32))
        output.float().cos().sum().backward()
        gradients.append([parameter.grad for parameter in tower.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


EMBEDDINGS = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
FROZEN = {
    "small-vit": (*EMBEDDINGS, "transformer.resblocks.0"),
    "small-resnet": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2"),
}


@pytest.mark.parametrize(("name", "checkpointed"), [("small-vit", False), ("small-vit", True), ("small-resnet", False)])
def test_frozen_first_layers_run_once_without_a_graph(name, checkpointed):
    tower, running, ran, saved = tower_of(name).train(), [], [], []
    freeze_layers(tower, FROZEN[name])
    if checkpointed:
        OpenClip().checkpoint_gradients(tower)

    def end(layer, module, inputs, output):
        running.remove(layer)
        ran.append((layer, output.requires_grad))

    layers = [layer for layer in FROZEN[name] if "embedding" not in layer]
    for layer in layers:
        tower.get_submodule(layer).register_forward_pre_hook(lambda *_, layer=layer: running.append(layer))
        tower.get_submodule(layer).register_forward_hook(partial(end, layer))
    with saved_tensors_hooks(lambda tensor: saved.append([*running]) or tensor, lambda tensor: tensor):
        output = tower(images_of(name, dtype=torch.float32))
    output.cos().sum().backward()
    assert ran == [(layer, False) for layer in layers]
    assert saved
    assert not any(saved)
    assert tower.get_parameter("proj" if name == "small-vit" else "layer3.0.conv1.weight").grad is not None
