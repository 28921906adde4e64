"""BoQ, MixVPR, GSV-Cities and OpenVPRLab, imported from what they save."""

import pytest
import torch
from published_gsv import BoQ, ConvAP, CosPlace, GeMPool, Mean, MixVPR, Published, dinov2, resnet
from test_salad import Salad
from torch import nn

import progeo
from progeo.cli import main


def imported(content, tmp_path, *options):
    torch.save(content, tmp_path / "model.ckpt")
    main(["import", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "encoder"), *options])
    return progeo.load_encoder(tmp_path / "encoder")


@torch.no_grad()
def check(encoder, published, *sizes):
    for size in sizes or [encoder.image_size]:
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(encoder(images), published(images), rtol=0, atol=2e-5)


def facts(encoder):
    spec = encoder.spec
    return spec.architecture, spec.aggregation, spec.image_size, spec.descriptor_dim, spec.resize


@pytest.fixture(scope="module")
def small_dinov2():
    torch.manual_seed(0)
    return dinov2("small")[0]


def test_boq_of_dinov2_gives_the_published_descriptors_at_every_size(small_dinov2, tmp_path, capsys):
    published = Published(small_dinov2, BoQ(384, 128, num_queries=6, num_layers=2, rows=4))
    encoder = imported(published.state_dict(), tmp_path)
    check(encoder, published, (84, 84), (98, 56))
    assert facts(encoder) == ("vit_small_patch14_dinov2_prenorm", "boq", (322, 322), 512, "bicubic")
    assert encoder.spec.aggregation_options == {"channels": 128, "num_queries": 6, "num_layers": 2, "rows": 4}
    log = capsys.readouterr().err
    assert "BoQ: vit_small_patch14_dinov2_prenorm, 322 x 322 pixels of mean (0.485, 0.456, 0.406)" in log
    assert "need them: backbone.dino (3)" in log.replace(
        ".* (3)", " (3)"
    )  # the mask token, weight and bias of the norm


def test_boq_of_a_resnet_gives_the_published_descriptors(tmp_path):
    backbone, channels = resnet("resnet18", crop=True, naming="net")
    published = Published(backbone, BoQ(channels, 64, num_queries=4, num_layers=1, rows=8))
    state = {f"module.{name}": tensor for name, tensor in published.state_dict().items()}
    encoder = imported({"state_dict": state, "datamodule_hyper_parameters": {"val_img_size": (96, 64)}}, tmp_path)
    check(encoder, published, (96, 64), (70, 80))
    assert facts(encoder) == ("resnet18_conv4", "boq", (96, 64), 512, "bicubic")


@pytest.mark.parametrize(("bias", "ratio"), [(True, 1.17), (False, 1)])
def test_mixvpr_gives_the_published_descriptors_of_its_one_image_size(bias, ratio, tmp_path):
    backbone, channels = resnet("resnet18", crop=True, naming="model")
    published = Published(backbone, MixVPR(channels, 25, 12, depth=2, ratio=ratio, rows=3, bias=bias))
    if bias:
        nn.init.normal_(published.aggregator.row_proj.bias)
    encoder = imported(published.state_dict(), tmp_path)
    check(encoder, published)
    assert facts(encoder) == ("resnet18_conv4", "mixvpr", (80, 80), 36, "bilinear")
    assert encoder.spec.aggregation_options["grid"] == (5, 5)
    with pytest.raises(ValueError, match="Images must be 80 x 80 pixels, the only size of this network, got 32 x 200"):
        encoder(torch.zeros(1, 3, 32, 200))


def test_the_grid_of_mixvpr_follows_the_image_size_that_is_given(tmp_path):
    backbone, channels = resnet("resnet18", crop=False, naming="model")
    published = Published(backbone, MixVPR(channels, 6, 8, depth=1))
    encoder = imported(published.state_dict(), tmp_path, "--image_size", "[64,96]")
    check(encoder, published)
    assert facts(encoder)[:3] == ("resnet18", "mixvpr", (64, 96))


@pytest.mark.slow
def test_mixvpr_of_dinov2_takes_images_of_its_grid(small_dinov2, tmp_path):
    published = Published(small_dinov2, MixVPR(384, 16, 8, depth=1))
    encoder = imported({"state_dict": published.state_dict(), "epoch": 3}, tmp_path)
    check(encoder, published)
    assert facts(encoder) == ("vit_small_patch14_dinov2_prenorm", "mixvpr", (56, 56), 32, "bicubic")


@pytest.mark.parametrize(
    ("arguments", "parts", "remark"),
    [
        pytest.param(
            {},
            (2, 2),
            "does not give the rows and columns of the parts of Conv-AP: 2 and 2 are",
            marks=pytest.mark.slow,
        ),
        ({"s1": 3, "s2": 1}, (3, 1), ""),
    ],
)
def test_convap_of_gsv_cities_gives_the_published_descriptors(arguments, parts, remark, tmp_path, capsys):
    backbone, channels = resnet("resnet18", crop=False, naming="model")
    published = Published(backbone, ConvAP(channels, 8, *parts))
    checkpoint = {"state_dict": published.state_dict(), "hyper_parameters": {"agg_config": arguments}}
    encoder = imported(checkpoint, tmp_path)
    check(encoder, published, (96, 64), (100, 130))
    assert facts(encoder) == ("resnet18", "convap", (320, 320), 8 * parts[0] * parts[1], "bilinear")
    assert (remark in (log := capsys.readouterr().err)) and ("Conv-AP" in log) == bool(remark)


@pytest.mark.parametrize(
    ("aggregator", "name", "num_frozen"),
    [
        (lambda channels: CosPlace(channels, 24), "gem", 3),
        pytest.param(lambda channels: GeMPool(), "gem_pool", 0, marks=pytest.mark.slow),
        (lambda channels: Mean(), "mean", 4),
    ],
)
def test_openvprlab_gives_the_published_descriptors_of_a_resnet(aggregator, name, num_frozen, tmp_path):
    backbone, channels = resnet("resnet18", crop=True, naming="parts", num_frozen=num_frozen)
    published = Published(backbone, aggregator(channels))
    settings = {"datamodule": {"train_image_size": [96, 96], "val_image_size": None}, "aggregator": {"params": {}}}
    encoder = imported({"state_dict": published.state_dict(), "hyper_parameters": settings}, tmp_path)
    check(encoder, published, (64, 96))
    assert facts(encoder)[:3] == ("resnet18_conv4", name, (96, 96))


def test_openvprlab_gives_the_published_descriptors_of_salad_without_the_last_norm(small_dinov2, tmp_path):
    backbone, _ = dinov2("small", with_token=True)
    backbone.load_state_dict(small_dinov2.state_dict())
    published = Published(backbone, Salad(384, 6, 8, token_dim=4))
    encoder = imported(published.state_dict(), tmp_path)
    check(encoder, published, (84, 84))
    assert facts(encoder) == ("vit_small_patch14_dinov2_prenorm", "salad", (322, 322), 6 * 8 + 4, "bicubic")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"])
@pytest.mark.parametrize("crop", [True, False])
def test_every_resnet_is_found(architecture, crop, tmp_path):
    backbone, channels = resnet(architecture, crop=crop, naming="model")
    published = Published(backbone, CosPlace(channels, 24))
    encoder = imported(published.state_dict(), tmp_path)
    check(encoder, published, (96, 64))
    assert encoder.spec.architecture == f"{architecture}_conv4" if crop else architecture


@pytest.mark.slow
def test_the_published_boq_of_dinov2_gives_the_published_descriptors(tmp_path):
    published = Published(dinov2("base")[0], BoQ(768, 384, num_queries=64, num_layers=2, rows=32))
    encoder = imported(published.state_dict(), tmp_path)
    assert facts(encoder)[2:4] == ((322, 322), 12288)
    check(encoder, published, (224, 224), (322, 322), (518, 518), (322, 238))


@pytest.mark.slow
def test_the_published_boq_of_a_resnet_gives_the_published_descriptors(tmp_path):
    backbone, channels = resnet("resnet50", crop=True, naming="net")
    published = Published(backbone, BoQ(channels, 512, num_queries=64, num_layers=2, rows=32))
    encoder = imported(published.state_dict(), tmp_path)
    assert facts(encoder)[:4] == ("resnet50_conv4", "boq", (384, 384), 16384)
    check(encoder, published, (320, 320), (384, 384), (320, 240))


@pytest.mark.slow
def test_the_published_mixvpr_gives_the_published_descriptors(tmp_path):
    backbone, channels = resnet("resnet50", crop=True, naming="model")
    published = Published(backbone, MixVPR(channels, 400, 1024))
    encoder = imported(published.state_dict(), tmp_path)
    assert facts(encoder) == ("resnet50_conv4", "mixvpr", (320, 320), 4096, "bilinear")
    check(encoder, published)


@pytest.fixture(scope="module")
def states(small_dinov2):
    torch.manual_seed(0)
    backbone, channels = resnet("resnet18", crop=True, naming="model")
    mixvpr = Published(backbone, MixVPR(channels, 15, 4, depth=1)).state_dict()
    boq = Published(small_dinov2, BoQ(384, 64, num_queries=2, num_layers=1, rows=2)).state_dict()
    return {"mixvpr": mixvpr, "boq": boq}


@pytest.mark.parametrize(
    ("name", "change", "options", "sentence"),
    [
        (
            "mixvpr",
            lambda state: None,
            [],
            "MixVPR takes feature maps of 15 cells here, not of 3 x 3: set --image_size",
        ),
        ("mixvpr", lambda state: None, ["--image_size", "[80,64]"], "15 cells here, not of 5 x 4"),
        (
            "mixvpr",
            lambda state: state.pop("backbone.model.layer3.0.bn1.bias"),
            ["--image_size", "[80,48]"],
            r"fit resnet18_conv4: backbone\.model\.layer3\.0\.bn1\.bias should be \(256,\), is missing",
        ),
        (
            "mixvpr",
            lambda state: state.pop("aggregator.mix.0.mix.1.weight"),
            [],
            r"aggregator\.mix|mix\.0\.mix\.1\.weight",
        ),
        (
            "boq",
            lambda state: state.pop("aggregator.boqs.0.norm_q.bias"),
            [],
            r"aggregator\.boqs\.0\.norm_q\.bias should",
        ),
        ("boq", lambda state: state.update({"aggregator.x": torch.ones(1)}), [], r"aggregator\.x should be absent"),
        ("boq", lambda state: None, ["--image_size", "320"], "--image_size must be at least 32 pixels a side, in mult"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_a_sentence(name, change, options, sentence, states, tmp_path):
    state = dict(states[name])
    change(state)
    with pytest.raises(SystemExit, match=sentence):
        imported(state, tmp_path, *options)
    assert not (tmp_path / "encoder").exists()
