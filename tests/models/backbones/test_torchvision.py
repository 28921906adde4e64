import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from progeo.engine.log import start_log
from progeo.models.backbones import build_backbone, empty_backbone, feature_map_channels
from progeo.models.backbones.torchvision import CONVNETS, load_convnet

CHANNELS = {
    **{"vgg16": 512, "resnet18": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048},
    **{"efficientnet_b0": 1280, "efficientnet_b1": 1280, "efficientnet_b2": 1408, "efficientnet_b3": 1536},
    **{"efficientnet_b4": 1792, "efficientnet_b5": 2048, "efficientnet_b6": 2304, "efficientnet_b7": 2560},
}


def classifier(architecture, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_model(architecture, weights=None).eval()


@pytest.mark.parametrize("architecture", CONVNETS)
def test_every_backbone_gives_a_map_of_its_channels_at_any_size_from_32_pixels(architecture):
    backbone = empty_backbone(architecture)
    stride = 16 if architecture == "vgg16" else 32
    assert feature_map_channels(backbone) == CHANNELS[architecture]
    assert backbone(torch.empty(1, 3, 32, 64, device="meta")).shape == (
        1,
        CHANNELS[architecture],
        32 // stride,
        64 // stride,
    )


@pytest.mark.parametrize(
    ("architecture", "last"),
    [
        ("resnet18", "layer4"),
        ("efficientnet_b0", "features.8"),
        pytest.param("vgg16", "features.28", marks=pytest.mark.slow),
    ],
)
def test_a_backbone_is_the_classifier_up_to_its_last_map(architecture, last):
    whole, images, maps = classifier(architecture, seed=3), torch.rand(2, 3, 64, 96), []
    whole.get_submodule(last).register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
    with torch.no_grad():
        whole(images)
        assert torch.equal(load_convnet(architecture, "random", seed=3)(images), maps[0])


def test_a_vgg_ends_with_its_last_convolution_as_published():
    """CosPlace's code cuts the last two layers of `features`: the max pool and the ReLU before it."""
    assert isinstance(empty_backbone("vgg16").features[-1], nn.Conv2d)


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load_convnet("resnet18", "random", seed=seed).conv1.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet_b0"])
def test_weights_of_a_local_file_are_those_of_the_classifier(architecture, suffix, tmp_path):
    state = classifier(architecture, seed=3).state_dict()
    path = tmp_path / f"classifier{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    loaded = load_convnet(architecture, str(path)).state_dict()
    assert loaded.keys() == {name for name in state if not name.startswith(("fc.", "classifier."))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "model.", "module.encoder_q."])
def test_weights_are_read_from_a_checkpoint_of_any_training(before, tmp_path, capsys):
    state = classifier("resnet18", seed=3).state_dict()
    named = {f"{before}{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": named, "best": np.array([81.5])}, tmp_path / "last.ckpt")
    start_log()
    assert torch.equal(load_convnet("resnet18", str(tmp_path / "last.ckpt")).conv1.weight, state["conv1.weight"])
    assert f"{tmp_path}/last.ckpt: skipped, not part of the weights: epoch, best\n" in capsys.readouterr().err


def test_files_that_do_not_count_batches_and_halves_are_taken(tmp_path):
    state = classifier("resnet18").state_dict()
    old = {name: tensor.half() for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    loaded = load_convnet("resnet18", str(tmp_path / "old.pth")).state_dict()
    assert loaded["bn1.num_batches_tracked"] == 0
    assert torch.equal(loaded["conv1.weight"], old["conv1.weight"].float())


def test_a_tag_takes_the_file_that_torchvision_keeps_for_it(monkeypatch, tmp_path):
    """The tag's real name of a file is used; only the download is replaced by a file of random weights."""
    state = classifier("resnet50", seed=3).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth")  # V1; V2 is another file
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert torch.equal(load_convnet("resnet50", "IMAGENET1K_V1").conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("architecture", "weights", "words"),
    [
        ("resnet34", "random", r"'resnet34' is not known. Use a CLIP .* RN50, .* of torchvision: vgg16, resnet18,"),
        ("resnet18", "openai", r"neither a file, nor random, nor a tag of resnet18 \(IMAGENET1K_V1, DEFAULT\)"),
        ("vgg16", "IMAGENET1K_V2", r"a tag of vgg16 \(IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT\)"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(architecture, weights, words):
    with pytest.raises(ValueError, match=words):
        build_backbone(architecture, weights)


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
            load_convnet("resnet18", str(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CONVNETS)
def test_every_backbone_of_random_weights_has_finite_features(architecture):
    backbone = build_backbone(architecture, "random")
    with torch.no_grad():
        features = backbone.network(torch.rand(1, 3, 64, 96))
    assert features.shape[1] == backbone.features_dim == CHANNELS[architecture]
    assert features.isfinite().all()
