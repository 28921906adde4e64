"""OpenIBL, WAKD, the deep VG benchmark and pytorch-NetVlad, imported from what they save."""

from collections import OrderedDict

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from plain_clip import gem_descriptors
from published_netvlads import (
    benchmark,
    benchmark_gem,
    mobilenet_layers,
    openibl,
    openibl_descriptors,
    pytorch_netvlad,
    resnet_layers,
    vgg16_layers,
    vlad_descriptors,
)
from torch import nn

import progeo
from progeo.cli import main

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MATCONVNET = ((0.48501960784313836, 0.4579568627450961, 0.4076039215686255), (1 / 255,) * 3)


def imported(content, tmp_path, *options):
    torch.save(content, tmp_path / "model.pth")
    main(["import", str(tmp_path / "model.pth"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


def check(encoder, expected, images):
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), expected(images), rtol=0, atol=1e-5)


def facts(encoder):
    spec = encoder.spec
    return spec.architecture, spec.image_size, spec.pooled_dim, spec.descriptor_dim, spec.aggregation_options


def pixels(encoder):
    return encoder.spec.mean, encoder.spec.std


def with_module(state, before="module."):
    return {f"{before}{name}": value for name, value in state.items()}


def test_openibl_gives_the_whitened_descriptors_of_its_published_weights(tmp_path, capsys):
    model = openibl(nn.ModuleDict({"base": vgg16_layers()}), dim=24)
    encoder = imported(OrderedDict(model.state_dict()), tmp_path)
    check(encoder, lambda images: openibl_descriptors(model, images), torch.randn(2, 3, 96, 64))
    assert facts(encoder) == ("vgg16", (480, 640), 2048, 24, {"num_clusters": 4, "regions": "quarters"})
    assert pixels(encoder) == MATCONVNET
    log = capsys.readouterr().err
    assert "OpenIBL or WAKD: vgg16, 480 x 640 pixels of mean (0.485, 0.458, 0.4076) and std (0.003922" in log
    assert "skipped" not in log


def test_checkpoints_of_openibl_have_no_projection(tmp_path, capsys):
    model = openibl(nn.ModuleDict({"base": vgg16_layers()}))
    state = with_module(model.state_dict())
    checkpoint = {"state_dict": state, "epoch": 4, "generation": 3, "best_recall5": np.float64(0.9)}
    options = ["--image_size", "[96,64]", "--mean", "[0.5,0.5,0.5]", "--std", "[0.2,0.2,0.3]"]
    encoder = imported(checkpoint, tmp_path, *options)
    check(encoder, lambda images: openibl_descriptors(model, images), torch.randn(2, 3, 96, 64))
    assert facts(encoder)[:4] == ("vgg16", (96, 64), None, 2048)
    assert pixels(encoder) == ((0.5, 0.5, 0.5), (0.2, 0.2, 0.3))
    assert encoder.std.tolist() == pytest.approx([0.2, 0.2, 0.3])
    assert "the encoder does not need them: epoch, generation, best_recall5\n" in capsys.readouterr().err


def in_layers(features, *others):
    """`base.0` to `base.16` are the features, the others follow."""
    return {"base": nn.Sequential(*features, *others)}


def in_one_block(features, *others):
    return {"base": nn.Sequential(*features, nn.Sequential(*others))}


def by_name(features, convolution, norm, activation):
    return {"features": features, "conv_last": convolution, "bn_last": norm, "act": activation}


def in_two_blocks(features, *others):
    return {"base": nn.Sequential(features, nn.Sequential(*others))}


@pytest.mark.parametrize(
    ("spelling", "bias"),
    [
        (in_layers, True),
        (by_name, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((in_one_block, False), (in_two_blocks, True))),
    ],
)
def test_the_student_of_wakd_is_found_with_any_names_of_its_last_layers(spelling, bias, tmp_path, capsys):
    model = openibl(nn.ModuleDict(spelling(*mobilenet_layers(bias))))
    *_, norm = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var.uniform_(0.001, 0.01)  # so that its eps counts
    encoder = imported({"state_dict": with_module(model.state_dict())}, tmp_path)
    check(encoder, lambda images: openibl_descriptors(model, images), torch.randn(2, 3, 96, 64))
    assert facts(encoder)[:4] == ("mobilenet_v3_large_512", (480, 672), None, 2048)
    assert encoder.spec.aggregation_options == {"num_clusters": 4, "regions": "thirds"}
    assert pixels(encoder) == MATCONVNET
    assert "does not give the eps of the last batch norm: 1e-05 is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "cut", "channels", "ours"),
    [
        ("resnet18", 3, 256, "resnet18_conv4"),
        ("resnet18", 2, 512, "resnet18"),
        pytest.param("resnet50", 3, 1024, "resnet50_conv4", marks=pytest.mark.slow),
        pytest.param("resnet101", 3, 1024, "resnet101_conv4", marks=pytest.mark.slow),
    ],
)
def test_the_benchmark_gives_the_descriptors_of_a_resnet_with_netvlad(architecture, cut, channels, ours, tmp_path):
    model = benchmark(architecture, cut, channels)
    checkpoint = {"epoch_num": 3, "model_state_dict": with_module(model.state_dict()), "recalls": np.array([80.5])}
    encoder = imported(checkpoint, tmp_path)
    expected = nn.Sequential(model["backbone"])
    check(encoder, lambda images: vlad_descriptors(model["aggregation"], expected(images)), torch.randn(2, 3, 96, 64))
    assert facts(encoder)[:4] == (ours, (480, 640), None, 4 * channels)
    assert pixels(encoder) == IMAGENET


def test_a_linear_layer_of_the_benchmark_after_netvlad_is_a_projection(tmp_path):
    model = benchmark("resnet18", 3, 256)
    linear = nn.Linear(1024, 24)
    state = {name.replace("aggregation.", "aggregation.0."): value for name, value in model.state_dict().items()}
    state |= {f"aggregation.1.{name}": value for name, value in linear.state_dict().items()}
    encoder = imported({"model_state_dict": state}, tmp_path)

    def descriptors(images):
        return F.normalize(linear(vlad_descriptors(model["aggregation"], model["backbone"](images))), dim=1)

    check(encoder, descriptors, torch.randn(2, 3, 96, 64))
    assert facts(encoder)[:4] == ("resnet18_conv4", (480, 640), 1024, 24)


def test_the_gem_of_the_benchmark_is_that_of_cosplace(tmp_path):
    model = benchmark_gem("resnet18", 3, 256)
    encoder = imported({"model_state_dict": with_module(model.state_dict())}, tmp_path)
    state = model.state_dict()
    names = {"aggregation.1.p": "aggregation.0.1.p"}
    names |= {f"aggregation.3.{name}": f"aggregation.1.{name}" for name in ("weight", "bias")}
    head = {name: state[theirs] for name, theirs in names.items()}
    check(encoder, lambda images: gem_descriptors(head, model["backbone"](images)), torch.randn(2, 3, 96, 64))
    assert facts(encoder)[:4] == ("resnet18_conv4", (480, 640), None, 24)


def test_pytorch_netvlad_gives_the_descriptors_of_its_encoder_and_pool(tmp_path):
    model = pytorch_netvlad(vgg16_layers())
    state = {name.replace("encoder.", "encoder.module."): value for name, value in model.state_dict().items()}
    encoder = imported({"epoch": 7, "state_dict": state, "best_score": 0.8, "parallel": True}, tmp_path)
    check(encoder, lambda images: vlad_descriptors(model["pool"], model["encoder"](images)), torch.randn(2, 3, 96, 64))
    assert facts(encoder) == ("vgg16", (480, 640), None, 2048, {"num_clusters": 4, "regions": "thirds"})
    assert pixels(encoder) == IMAGENET


@pytest.fixture(scope="module")
def states():
    torch.manual_seed(0)
    return {
        "openibl": openibl(nn.ModuleDict({"base": vgg16_layers()}), dim=24).state_dict(),
        "pytorch_netvlad": pytorch_netvlad(vgg16_layers(), bias=True).state_dict(),
        "benchmark": benchmark("resnet18", 3, 256).state_dict(),
        "alexnet": pytorch_netvlad(torchvision.models.alexnet(weights=None).features[:-2], 256).state_dict(),
        "wakd": openibl(nn.ModuleDict(in_layers(*mobilenet_layers()))).state_dict(),
    }


@pytest.mark.parametrize(
    ("program", "change", "sentence"),
    [
        ("openibl", lambda state: state.pop("net_vlad.centroids"), r"not complete: net_vlad\.centroids is missing"),
        (
            "openibl",
            lambda state: state.pop("net_vlad.conv.weight"),
            r"net_vlad\.conv\.weight should be \(4, 512\), is",
        ),
        ("openibl", lambda state: state.pop("pca_layer.weight"), r"not complete: pca_layer\.weight is missing"),
        ("openibl", lambda state: state.pop("pca_layer.bias"), r"pca_layer\.bias should be \(24,\), is missing"),
        (
            "openibl",
            lambda state: state.update({"base_model.fc.bias": torch.zeros(2)}),
            r"base_model\.fc\.bias should be absent",
        ),
        (
            "wakd",
            lambda state: state.pop("base_model.base.17.weight"),
            r"mobilenet_v3_large_512: base_model\.conv\.weight should be \(512, 960, 1, 1\), is missing",
        ),
        (
            "wakd",
            lambda state: state.pop("base_model.base.18.running_var"),
            r"base_model\.base\.18\.running_var should be \(512,\), is missing",
        ),
        (
            "wakd",
            lambda state: state.update({"base_model.base.20.weight": torch.zeros(2)}),
            r"base_model\.base\.20\.weight should be absent",
        ),
        (
            "benchmark",
            lambda state: state.pop("backbone.4.0.bn1.bias"),
            r"fit resnet18_conv4: backbone\.4\.0\.bn1\.bias should be \(64,\), is missing",
        ),
        (
            "benchmark",
            lambda state: state.update({"aggregation.0.0.p": torch.ones(1)}) or state.pop("aggregation.centroids"),
            r"holds aggregation\.0\.0\.p: GeM has an L2 normalization before it here, import one .* --l2 before_pool",
        ),
        (
            "benchmark",
            lambda state: state.update({"aggregation.1.p": torch.ones(1)}) or state.pop("aggregation.centroids"),
            r"holds aggregation\.1\.p without a linear layer: .* import one trained with --fc_output_dim",
        ),
        (
            "benchmark",
            lambda state: [state.pop(f"aggregation.{name}") for name in ("centroids", "conv.weight")],
            r"has no known format: its names begin with backbone\. Known are",
        ),
        ("pytorch_netvlad", lambda state: None, r"holds pool\.conv\.bias: .* import one trained without --vladv2"),
        (
            "alexnet",
            lambda state: None,
            r"vgg16: encoder\.0\.weight should be \(64, 3, 3, 3\), is \(64, 3, 11, 11\)",
        ),
    ],
)
def test_missing_and_unexpected_keys_are_named(program, change, sentence, states, tmp_path):
    state = dict(states[program])
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path)
    assert not (tmp_path / "encoder").exists()


def test_a_mean_without_a_std_is_refused(states, tmp_path):
    with pytest.raises(SystemExit, match="--mean and --std go together"):
        imported(states["benchmark"], tmp_path, "--mean", "[0.5,0.5,0.5]")
    assert not (tmp_path / "encoder").exists()


def student():
    return openibl(nn.ModuleDict(in_layers(*mobilenet_layers())), dim=24)


def small_network():
    return openibl(nn.ModuleDict({"base": resnet_layers("resnet18", 3)}), channels=256, dim=24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "format"), [(small_network, "torch"), *((student, format) for format in ("torch", "onnx"))]
)
def test_an_imported_netvlad_is_exported_with_its_projection(network, format, tmp_path):
    model = network()
    imported(model.state_dict(), tmp_path, "--image_size", "[96,64]")
    main(["export", str(tmp_path / "encoder"), "--out", str(tmp_path / "out"), "--format", format])
    images = torch.randn(3, 3, 128, 96)
    if format == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
        found = torch.from_numpy(session.run(["descriptors"], {"images": images.numpy()})[0])
    else:
        found = torch.export.load(tmp_path / "out/model.pt2").module()(images)
    with torch.no_grad():
        torch.testing.assert_close(found, openibl_descriptors(model, images), rtol=0, atol=1e-4)
