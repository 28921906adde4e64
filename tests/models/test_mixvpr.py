"""MixVPR against its definition, and the one size of images that it takes."""

import json

import onnxruntime
import pytest
import torch

from progeo.export.onnx import save_onnx
from progeo.export.program import save_program
from progeo.models.aggregation import MixVPR, build_aggregation
from progeo.models.backbones.family import Traits
from progeo.models.encoder import build_encoder, restore_encoder, spec_from_json, spec_to_json

TRAITS = Traits(channels=5, token_dim=None, features_dim=5, stride=16)


def naive_mixvpr(head, feature_map):
    """The descriptor of one map (C, h, w), with the channels projected before the cells as published."""
    mixed = []
    for channel in feature_map:
        cells = channel.flatten()
        for mixer in head.mix:
            norm, first, _, second = mixer.mix
            inside = first.weight @ norm(cells) + first.bias
            cells = cells + second.weight @ inside.clamp(min=0) + second.bias
        mixed.append(cells)
    projected = []
    for position in range(feature_map[0].numel()):
        local = torch.stack([cells[position] for cells in mixed])
        projected.append(head.channel_proj.weight @ local + head.channel_proj.bias)
    rows = torch.stack(projected, dim=1) @ head.row_proj.weight.T + head.row_proj.bias
    return rows.flatten() / rows.norm()


def test_mixvpr_equals_the_definition_with_its_gradients():
    torch.manual_seed(0)
    head = MixVPR(5, (2, 3), out_channels=4, rows=3, depth=2, ratio=1.5).double()
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    assert head.mix[0].mix[1].out_features == 9
    feature_map = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([naive_mixvpr(head, each) for each in feature_map])
    found = head(feature_map)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [feature_map, *head.parameters()]
    gradients, wanted = (torch.autograd.grad(each.cos().sum(), inputs) for each in (found, expected))
    for gradient, each in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, each, rtol=0, atol=1e-12)


def test_a_map_of_another_size_is_refused_even_with_as_many_cells():
    head = MixVPR(5, (2, 3), out_channels=4, rows=3, depth=1, ratio=1.0)
    with pytest.raises(ValueError, match=r"MixVPR takes feature maps of 2 x 3 cells only, got 3 x 2: use images"):
        head(torch.zeros(1, 5, 3, 2))


@pytest.mark.parametrize(
    ("architecture", "size", "grid"),
    [("tiny-resnet", (96, 64), (3, 2)), ("timm/resnet10t", (64, 96), (2, 3)), ("tiny-vit", 64, (4, 4))],
)
def test_the_grid_follows_from_the_image_size_and_no_other_size_is_taken(architecture, size, grid):
    encoder = build_encoder(architecture, "random", size, aggregation="mixvpr", aggregation_options={"depth": 1}).eval()
    assert encoder.spec.aggregation_options["grid"] == grid
    assert encoder.traits.only_size == encoder.image_size
    height, width = encoder.image_size
    assert encoder(torch.zeros(1, 3, height, width)).shape == (1, 4096)
    with pytest.raises(ValueError, match=rf"Images must be {height} x {width} pixels, the only size of this network"):
        encoder(torch.zeros(1, 3, width, height + 32))
    again = restore_encoder(spec_from_json(json.loads(json.dumps(spec_to_json(encoder.spec)))), encoder.state_dict())
    assert again.spec == encoder.spec
    assert again.traits.only_size == encoder.image_size


@pytest.mark.parametrize(
    ("size", "options", "sentence"),
    [
        (64, {"grid": [2, 3]}, "`image_size` must be 64 x 96 pixels, the only size of this network, got 64 x 64"),
        ((112, 96), {}, "`image_size` must be 96 x 96 pixels, the only size of this network, got 112 x 96"),
        (64, {"grid": [2]}, r"grid of mixvpr must be \[rows, columns\], got \[2\]"),
        (64, {"grid": [2, "a"]}, r"grid of mixvpr must be \[rows, columns\], got \[2, 'a'\]"),
        (64, {"depth": 0}, "depth of mixvpr must be at least 1, got 0"),
        (64, {"ratio": 0.001}, "ratio of mixvpr must give at least one hidden cell, got 0.001"),
        (64, {"ratio": float("nan")}, "ratio of mixvpr must give at least one hidden cell, got nan"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_weights_are_fetched(size, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_encoder("tiny-resnet", "nowhere", size, aggregation="mixvpr", aggregation_options=options)


def test_the_image_size_follows_from_the_grid_if_it_is_not_given():
    options = {"grid": [2, 3], "depth": 1, "ratio": 2}
    spec = build_encoder("tiny-resnet", "random", aggregation="mixvpr", aggregation_options=options).spec
    assert spec.aggregation_options == {"out_channels": 1024, "rows": 4, "depth": 1, "ratio": 2, "grid": (2, 3)}
    assert spec.image_size == (64, 96)


def test_mixers_start_as_published():
    torch.manual_seed(0)
    mixer = build_aggregation("mixvpr", TRAITS).mix[0].mix
    assert mixer[1].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not mixer[3].bias.any()


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_program, save_onnx])
def test_a_graph_for_photos_of_any_size_computes_the_descriptors(save, tmp_path):
    encoder = build_encoder("tiny-vit", "random", (96, 64), aggregation="mixvpr")
    save(tmp_path / "graph", encoder, input="photos")
    photos = torch.randint(0, 256, (2, 70, 90, 3), dtype=torch.uint8)
    if save is save_onnx:
        (found,) = onnxruntime.InferenceSession(tmp_path / "graph").run(None, {"images": photos.numpy()})
    else:
        found = torch.export.load(tmp_path / "graph").module()(photos).detach()
    with torch.no_grad():
        expected = encoder(torch.stack([encoder.preprocess(photo.permute(2, 0, 1)) for photo in photos]))
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-4)
