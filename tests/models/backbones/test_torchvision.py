import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model, list_models

from progeo.engine.log import start_log
from progeo.models.backbones.family import NetworkSpec
from progeo.models.backbones.torchvision import Torchvision

FAMILY = Torchvision()
BRANCHED = ("googlenet", "inception_v3")
QUICK = (
    *("efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
    "swin_t",
)
"""Networks of most classes, without the large ones."""


def networks(quick):
    """All networks, of which those that are not `quick` are slow."""
    names = [name for name in list_models(module=torchvision.models) if name not in BRANCHED]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


CHANNELS = {
    **{"vgg16": 512, "resnet18": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048},
    **{"efficientnet_b0": 1280, "efficientnet_b1": 1280, "efficientnet_b2": 1408, "efficientnet_b3": 1536},
    **{"efficientnet_b4": 1792, "efficientnet_b5": 2048, "efficientnet_b6": 2304, "efficientnet_b7": 2560},
}


def classifier(architecture, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_model(architecture, weights=None, **options).eval()


def load(architecture, weights="random", image_size=None, *, parts=("map",), seed=0):
    return FAMILY.load(NetworkSpec(architecture, image_size, parts), weights, seed=seed).network


def own_size(architecture):
    return FAMILY.load(NetworkSpec(architecture), "random", seed=0).image_size


def empty(architecture, image_size=None):
    return FAMILY.empty(NetworkSpec(architecture, image_size, ("map",)))


class Pooled(TorchFunctionMode):
    """Keeps the last feature map that is averaged, by any function."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.adaptive_avg_pool2d, Tensor.mean) and args[0].ndim == 4:
            self.map = args[0].clone()
        return function(*args, **kwargs or {})


def expected_map(architecture, whole, images):
    """Return the last map that the classifier computes, found in it in another way than by cutting layers."""
    if architecture.startswith("vit_"):
        tokens = []
        whole.encoder.register_forward_hook(lambda module, inputs, output: tokens.append(output))
        whole(images)
        side = whole.image_size // whole.patch_size
        return tokens[0][:, 1:].transpose(1, 2).reshape(len(images), -1, side, side)
    if architecture.startswith("squeezenet"):  # it pools scores of classes
        return whole.features(images)
    if architecture.startswith("vgg"):  # without the last ReLU and max pooling
        return whole.features[:-2](images)
    with Pooled() as pooled:
        whole(images)
    return pooled.map


@pytest.mark.parametrize("architecture", networks(QUICK))
def test_a_network_is_the_classifier_up_to_its_last_map(architecture):
    fixed = own_size(architecture)[0] if architecture.startswith(("vit_", "maxvit")) else None
    options = {"image_size": fixed} if architecture.startswith("vit_") else {}
    whole, network = classifier(architecture, seed=3, **options), load(architecture, image_size=fixed, seed=3)
    images = torch.rand(1, 3, fixed or 64, fixed or 96)
    with torch.no_grad():
        found = FAMILY.features(network, images)
        assert torch.equal(found.map, expected_map(architecture, whole, images))
        if found.token is not None:
            assert torch.equal(whole.heads(found.token), whole(images))
    assert network.state_dict().keys() <= whole.state_dict().keys()


@pytest.mark.parametrize("architecture", networks((*QUICK, "vit_b_16")))
def test_every_network_has_a_map_of_its_channels_and_stride_at_two_sizes(architecture):
    for size in ((224, 224), (448, 448)):
        network = empty(architecture, size)
        traits = FAMILY.traits(network)
        found = FAMILY.features(network, torch.empty(1, 3, *size, device="meta"))
        *_, rows, columns = found.map.shape
        assert found.map.shape == (1, traits.channels, rows, columns)
        assert abs(rows - size[0] / traits.stride) < 2 > abs(columns - size[1] / traits.stride)
        assert (found.token is None) == (traits.token_dim is None)
        assert FAMILY.default_aggregation(architecture) == ("gem" if found.token is None else "token")


@pytest.mark.parametrize(
    "architecture",
    [each if each in ("vgg16", *QUICK) else pytest.param(each, marks=pytest.mark.slow) for each in CHANNELS],
)
def test_the_networks_of_published_encoders_take_any_size_from_32_pixels(architecture):
    network, stride = empty(architecture), 16 if architecture == "vgg16" else 32
    shape = (1, CHANNELS[architecture], 32 // stride, 64 // stride)
    assert network(torch.empty(1, 3, 32, 64, device="meta")).shape == shape
    traits = FAMILY.traits(network)
    assert (traits.channels, traits.features_dim, traits.stride) == (shape[1], shape[1], stride)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 64), (64, 64), (224, 224)])
def test_the_position_embedding_of_a_vision_transformer_is_resized_to_the_image_size(size, tmp_path):
    state = classifier("vit_b_32", seed=3, image_size=128).state_dict()
    torch.save(state, tmp_path / "classifier.pth")
    network = load("vit_b_32", str(tmp_path / "classifier.pth"), size)
    traits = FAMILY.traits(network)
    assert traits.positions.grid == traits.positions.grid_of(*size) == (size[0] // 32, size[1] // 32)
    stored = state["encoder.pos_embedding"]
    grid = stored[:, 1:].mT.reshape(1, 768, 4, 4)
    grid = F.interpolate(grid, traits.positions.grid, mode="bicubic", antialias=True).flatten(2).mT
    assert torch.allclose(network.encoder.pos_embedding, torch.cat([stored[:, :1], grid], dim=1), atol=1e-6)
    assert empty("vit_b_32", size).encoder.pos_embedding.shape == network.encoder.pos_embedding.shape
    assert load("vit_b_32", str(tmp_path / "classifier.pth")).image_size == (128, 128)


@pytest.mark.parametrize(
    ("architecture", "size"), [("resnet18", (64, 96)), pytest.param("vit_b_32", (64, 64), marks=pytest.mark.slow)]
)
def test_the_code_of_usage_loads_the_backbone(architecture, size, tmp_path, monkeypatch):
    network = load(architecture, image_size=size, seed=7)
    save_file(network.state_dict(), tmp_path / "backbone.safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(FAMILY.usage(architecture, size, None), names)
    images = torch.rand(1, 3, *size)
    whole = names["classifier"].eval()
    with torch.no_grad():
        if architecture == "resnet18":
            assert torch.equal(FAMILY.features(network, images).map, expected_map(architecture, whole, images))
        else:
            assert torch.equal(whole.heads(FAMILY.features(network, images).token), whole(images))


def test_sizes_that_a_network_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"`image_size` of maxvit_t must be a square .* of 224, got 224 x 448"):
        empty("maxvit_t", (224, 448))
    assert FAMILY.traits(empty("maxvit_t", 448)).only_size == (448, 448)
    with pytest.raises(ValueError, match="`format` backbone is for squares: torchvision builds no vit_b_32"):
        FAMILY.usage("vit_b_32", (64, 96), None)


@pytest.mark.parametrize("architecture", BRANCHED)
def test_networks_with_side_branches_are_refused(architecture):
    with pytest.raises(ValueError, match=f"`architecture` '{architecture}' has side branches"):
        load(architecture)


def test_a_vgg_ends_with_its_last_convolution_as_published():
    """CosPlace's code cuts the last two layers of `features`: the max pool and the ReLU before it."""
    assert isinstance(empty("vgg16").features[-1], nn.Conv2d)


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load("resnet18", "random", seed=seed).conv1.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0"])
def test_weights_of_a_local_file_are_those_of_the_classifier(architecture, suffix, tmp_path):
    state = classifier(architecture, seed=3).state_dict()
    path = tmp_path / f"classifier{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    loaded = load(architecture, str(path)).state_dict()
    assert loaded.keys() == {name for name in state if not name.startswith(("fc.", "classifier."))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    "before",
    [
        "",
        "module.",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("_orig_mod.", "model.", "module.encoder_q.")),
    ],
)
def test_weights_are_read_from_a_checkpoint_of_any_training(before, tmp_path, capsys):
    state = classifier("resnet18", seed=3).state_dict()
    named = {f"{before}{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": named, "best": np.array([81.5])}, tmp_path / "last.ckpt")
    start_log()
    assert torch.equal(load("resnet18", str(tmp_path / "last.ckpt")).conv1.weight, state["conv1.weight"])
    assert f"{tmp_path}/last.ckpt: skipped, not part of the weights: epoch, best\n" in capsys.readouterr().err


def test_files_that_do_not_count_batches_and_halves_are_taken(tmp_path):
    state = classifier("resnet18").state_dict()
    old = {name: tensor.half() for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    loaded = load("resnet18", str(tmp_path / "old.pth")).state_dict()
    assert loaded["bn1.num_batches_tracked"] == 0
    assert torch.equal(loaded["conv1.weight"], old["conv1.weight"].float())


def test_a_tag_takes_the_file_that_torchvision_keeps_for_it(monkeypatch, tmp_path):
    """The tag's real name of a file is used; only the download is replaced by a file of random weights."""
    state = classifier("resnet50", seed=3).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")  # V1; V2 is another file
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert torch.equal(load("resnet50", "IMAGENET1K_V1").conv1.weight, state["conv1.weight"])


def test_weights_that_cannot_be_fetched_are_refused_with_their_address(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ValueError, match=r"https://\S+/resnet18-\w+\.pth cannot be reached \(.+\)\. Fetch "):
        load("resnet18", "IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("architecture", "weights", "words"),
    [
        ("resnet18", "openai", r"neither a file, nor random, nor a tag of resnet18 \(IMAGENET1K_V1, DEFAULT\)"),
        ("vgg16", "IMAGENET1K_V2", r"a tag of vgg16 \(IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT\)"),
    ],
)
def test_a_tag_that_is_not_known_is_refused_with_those_that_are(architecture, weights, words):
    with pytest.raises(ValueError, match=words):
        load(architecture, weights)


def test_files_that_are_no_weights_or_those_of_another_network_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("not weights at all")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    state = classifier("resnet18").state_dict()
    torch.save({**state, "p": 3}, tmp_path / "more.pth")
    torch.save(
        {"backbone.0.weight": state["conv1.weight"], "aggregation.1.p": torch.ones(1)}, tmp_path / "cosplace.pth"
    )
    torch.save({"net": state, "ema": state.copy()}, tmp_path / "two.pth")
    torch.save(classifier("efficientnet_b0").state_dict(), tmp_path / "other.pth")
    torch.save({**state, "layer4.2.conv1.weight": torch.zeros(1)}, tmp_path / "deeper.pth")
    torch.save({**state, "conv1.weight": state["conv1.weight"].long()}, tmp_path / "whole.pth")
    reasons = {
        "text.pth": "could not be loaded as resnet18: ",
        "text.safetensors": "could not be loaded as resnet18: ",
        "more.pth": "could not be loaded as resnet18: it holds more than a state dict: 'p' is no named tensor",
        "cosplace.pth": r"resnet18: aggregation\.1\.p should be absent, is \(1,\)\. .* `progeo import` makes",
        "two.pth": "could not be loaded as resnet18: it holds the weights of several networks, in net, ema",
        "other.pth": r"The weights do not fit resnet18: bn1.bias should be \(64,\), is missing",
        "whole.pth": r"The weights do not fit resnet18: conv1\.weight should hold fractions, holds torch\.int64",
        "deeper.pth": r"The weights do not fit resnet18: layer4.2.conv1.weight should be absent, is \(1,\)",
    }
    for name, words in reasons.items():
        with pytest.raises(ValueError, match=words) as error:
            load("resnet18", str(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHANNELS)
def test_every_backbone_of_random_weights_has_finite_features(architecture):
    with torch.no_grad():
        assert FAMILY.features(load(architecture), torch.rand(1, 3, 64, 96)).map.isfinite().all()


def test_image_size_pixels_and_license_are_those_of_the_tag():
    assert own_size("resnet18") == (224, 224)
    known = FAMILY.own_normalization("maxvit_t", "DEFAULT")
    assert (known["mean"], known["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert FAMILY.own_normalization("maxvit_t", "random") == {}
    assert "ImageNet" in FAMILY.license("maxvit_t", "DEFAULT")
    assert FAMILY.license("maxvit_t", "weights.pth") is None
    for architecture in ("vit_b_16", "regnet_y_16gf"):
        assert "SWAG/blob/main/LICENSE" in FAMILY.license(architecture, "IMAGENET1K_SWAG_E2E_V1")
        assert "SWAG" not in FAMILY.license(architecture, "IMAGENET1K_V1")


@pytest.mark.parametrize("published", [False, True])
def test_weights_of_a_densenet_are_read(published, tmp_path):
    """The published ones have names of PyTorch before 0.4, which torchvision renames as it loads them."""
    whole, path = torchvision.models.get_model("densenet121", weights=None).eval(), tmp_path / "whole.pth"
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])") if published else re.compile("(x)(x)")
    torch.save({old.sub(r"\1.\2", name): tensor for name, tensor in whole.state_dict().items()}, path)
    network = FAMILY.load(NetworkSpec("densenet121", 64), str(path), seed=0).network
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(FAMILY.features(network, images).map, whole.features(images).relu(), atol=1e-6)


@pytest.mark.parametrize(
    "variant",
    ["resnet18_conv4", *(pytest.param(f"{base}_conv4", marks=pytest.mark.slow) for base in ("resnet50", "resnet101"))],
)
def test_a_resnet_may_end_with_its_fourth_stage(variant, tmp_path):
    whole = classifier(variant.removesuffix("_conv4"), seed=3)
    torch.save(whole.state_dict(), tmp_path / "classifier.pth")
    network = load(variant, str(tmp_path / "classifier.pth"))
    stages = []
    whole.layer3.register_forward_hook(lambda module, inputs, output: stages.append(output))
    with torch.no_grad():
        whole(images := torch.rand(1, 3, 64, 96))
        assert torch.equal(FAMILY.features(network, images).map, *stages)
    assert (FAMILY.traits(network).channels, FAMILY.traits(network).stride) == (stages[0].shape[1], 16)
    assert FAMILY.default_aggregation(variant) == "gem"


def test_the_student_of_wakd_is_a_mobilenet_with_a_convolution_to_512_channels(tmp_path):
    whole = classifier("mobilenet_v3_large", seed=3)
    torch.save(whole.state_dict(), tmp_path / "classifier.pth")
    network = load("mobilenet_v3_large_512", str(tmp_path / "classifier.pth"), seed=5)
    convolution, norm = network.neck[0], network.neck[1]
    assert (convolution.weight.shape, convolution.bias, norm.eps) == ((512, 960, 1, 1), None, 0.001)
    norm.running_mean.uniform_()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        reduced = torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], whole.features(images))
        expected = F.hardswish((reduced - norm.running_mean[:, None, None]) / (1 + 0.001) ** 0.5)
        torch.testing.assert_close(FAMILY.features(network, images).map, expected, rtol=1e-4, atol=1e-5)
    traits = FAMILY.traits(empty("mobilenet_v3_large_512"))
    assert (traits.channels, traits.features_dim, traits.stride) == (512, 512, 32)
    assert convolution.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)


def test_the_layer_that_a_variant_adds_follows_the_seed_or_the_file(tmp_path):
    whole, path = classifier("mobilenet_v3_large", seed=3), tmp_path / "classifier.pth"
    torch.save(whole.state_dict(), path)
    variant = "mobilenet_v3_large_512"
    first, again, other = (load(variant, str(path), seed=seed).neck[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(load(variant, seed=1).neck[0].weight, first)
    assert torch.equal(
        load(variant, seed=1).features[0][0].weight, load("mobilenet_v3_large", seed=1).features[0][0].weight
    )
    network = load(variant, seed=7)
    torch.save(network.state_dict(), path)
    assert torch.equal(load(variant, str(path), seed=1).neck[0].weight, network.neck[0].weight)
    with pytest.raises(
        ValueError, match=r"The weights do not fit mobilenet_v3_large: neck\.0\.weight should be absent"
    ):
        load("mobilenet_v3_large", str(path))
    torch.save({**whole.state_dict(), "neck.0.weight": torch.zeros(512, 960, 1, 1)}, path)
    with pytest.raises(ValueError, match=r"neck\.1\.bias should be \(512,\), is missing"):
        load(variant, str(path))


def test_a_variant_takes_the_tags_of_its_network():
    for variant, base in (("mobilenet_v3_large_512", "mobilenet_v3_large"), ("resnet18_conv4", "resnet18")):
        assert FAMILY.knows(variant)
        assert own_size(variant) == own_size(base)
        assert FAMILY.own_normalization(variant, "DEFAULT") == FAMILY.own_normalization(base, "DEFAULT") != {}
        assert FAMILY.license(variant, "DEFAULT") == FAMILY.license(base, "DEFAULT") is not None
    assert not FAMILY.knows("vgg16_conv4")
