import dataclasses
import itertools
import json
import math

import pytest
import torch
from contracts import (
    check_gradients,
    check_onnx,
    check_program,
    check_reload,
    check_resume,
    check_shapes,
    stop_after_a_step,
    trainer_of,
    training_builder,
)

from progeo.engine.stopping import StopRequest
from progeo.models.aggregation import (
    AGGREGATIONS,
    Aggregation,
    GeM,
    aggregation_dim,
    build_aggregation,
    filled_options,
)
from progeo.models.backbones.family import Traits
from progeo.models.encoder import build_encoder, restore_encoder, spec_from_json, spec_to_json


@pytest.mark.parametrize("local_linear", [False, True])
def test_gem_head_equals_the_definition(local_linear):
    torch.manual_seed(0)
    head = GeM(5, 3, local_linear=local_linear).double()
    head.p.data.fill_(2.5)
    feature_map = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    for descriptor, channels in zip(head(feature_map), feature_map, strict=True):
        if local_linear:
            layer = head.local_linear
            channels = torch.einsum("oc,cyx->oyx", layer.weight, channels) + layer.bias[:, None, None]
        pooled = torch.zeros(5, dtype=torch.float64)
        for c in range(5):
            total = 0.0
            for y, x in itertools.product(range(4), range(6)):
                total += max((channels[c, y, x] / channels[:, y, x].norm()).item(), 1e-6) ** 2.5
            pooled[c] = (total / 24) ** (1 / 2.5)
        expected = head.linear.weight @ pooled + head.linear.bias
        torch.testing.assert_close(descriptor, expected / expected.norm())


def test_the_power_starts_at_three_and_is_learned():
    head = GeM(4, 2)
    assert head.p.item() == 3
    head(torch.rand(1, 4, 2, 2)).sum().backward()
    assert head.p.grad.abs() > 0


def test_a_map_of_zeros_gives_finite_descriptors_and_gradients():
    head = GeM(4, 2)
    feature_map = torch.zeros(1, 4, 2, 2, requires_grad=True)
    descriptors = head(feature_map)
    descriptors.sum().backward()
    assert torch.isfinite(descriptors).all()
    assert torch.isfinite(feature_map.grad).all()


TRAITS = Traits(channels=5, token_dim=4, features_dim=6, stride=16)
NETWORK = "tiny-vit"
"""A network that has all parts of the features."""
TRAINING = {
    "model.architecture": NETWORK,
    "encoder.descriptor_dim": "null",
    "text.weight": 0,
    "training.batch_size": 2,
}
ALIKE = dataclasses.replace(TRAITS, channels=16, token_dim=16)
TRAITS_OF = {"edtformer": ALIKE}
"""Traits for aggregations that do not take all."""
SMALL: dict[str, dict[str, int]] = {
    "boq": {"channels": 64, "num_queries": 3},
    "edtformer": {"num_queries": 3, "channels": 6, "rows": 2},
    "salad": {"num_clusters": 6, "cluster_dim": 4, "token_dim": 3, "hidden_dim": 8},
}
"""Options of aggregations whose defaults are for larger maps, or large."""
GRIDS = {"mixvpr": {"grid": (3, 4)}}
"""Options for feature maps of 3 x 4 cells alone."""


@pytest.fixture(params=AGGREGATIONS)
def name(request):
    return request.param


def test_every_aggregation_makes_descriptors_of_its_dimension_from_its_parts(name):
    row, traits = AGGREGATIONS[name], TRAITS_OF.get(name, TRAITS)
    options = SMALL.get(name, {}) | GRIDS.get(name, {})
    sizes = {"map": (2, traits.channels, 3, 4), "token": (2, traits.token_dim)}
    for dim in (None, 7) if row.any_dim else (None,):
        module = build_aggregation(name, traits, dim, **options)
        parts = [torch.rand(sizes[part], requires_grad=True) for part in row.needs]
        descriptors = module(*parts)
        assert descriptors.shape == (2, aggregation_dim(name, traits, dim, options, "net"))
        lengths = descriptors.norm(dim=1)
        assert torch.allclose(lengths, torch.ones(2)) == row.always_normalized
        descriptors.cos().sum().backward()
        assert all(tensor.grad is not None for tensor in [*parts, *module.parameters()])


def test_every_aggregation_refuses_another_dimension_unless_it_takes_any(name):
    if AGGREGATIONS[name].any_dim:
        assert aggregation_dim(name, TRAITS, 7, {}, "net") == 7
        return
    with pytest.raises(ValueError, match=rf"net with {name} have \d+ dimensions, `descriptor_dim` cannot be 7"):
        build_aggregation(name, TRAITS_OF.get(name, TRAITS), 7, architecture="net")


def test_every_aggregation_refuses_a_backbone_without_the_parts_it_needs(name):
    lacking = {"map": {"channels": None}, "token": {"token_dim": None}}
    for part in AGGREGATIONS[name].needs:
        with pytest.raises(ValueError, match=rf"`aggregation` {name} needs a .*{part}, and net gives a .* only"):
            aggregation_dim(name, dataclasses.replace(TRAITS, **lacking[part]), None, {}, "net")


def small_encoder(name):
    return build_encoder(NETWORK, "random", 64, aggregation=name, aggregation_options=SMALL.get(name)).eval()


def test_an_encoder_with_every_aggregation_is_the_same_as_a_file(name, tmp_path):
    check_reload(small_encoder(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_program, check_onnx])
def test_an_encoder_with_every_aggregation_is_the_same_as_a_graph(name, check, tmp_path):
    of_many_sizes = "A graph for images of many sizes cannot be made of tiny-vit, which takes one size only"
    check(small_encoder(name), tmp_path, refused=of_many_sizes if AGGREGATIONS[name].has_grid else None)


def test_an_encoder_with_every_aggregation_has_the_shapes_and_gradients_promised(name):
    encoder = small_encoder(name)
    check_shapes(encoder)
    check_gradients(encoder)


RESUMED = ("edtformer", "gem", "netvlad", "salad")
"""Aggregations that training is resumed with by default: those with dropout, with a start, and the usual one."""


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in RESUMED else pytest.mark.slow) for each in AGGREGATIONS]
)
def test_a_training_with_every_aggregation_that_is_resumed_ends_with_the_same_bits(name, config, tmp_path):
    options = " ".join(f"{option}={value}" for option, value in SMALL.get(name, {}).items())
    settings = {**TRAINING, "encoder.aggregation": name, "encoder.aggregation_options": options or "{}"}
    check_resume(training_builder(config, settings), tmp_path)


@pytest.mark.gpu
def test_half_precision_on_a_gpu_gives_nearly_the_descriptors_of_full_precision(name):
    row, traits = AGGREGATIONS[name], TRAITS_OF.get(name, TRAITS)
    module = build_aggregation(name, traits, None, **SMALL.get(name, {}) | GRIDS.get(name, {})).cuda().eval()
    sizes = {"map": (2, traits.channels, 3, 4), "token": (2, traits.token_dim)}
    parts = [torch.rand(sizes[part], device="cuda", requires_grad=True) for part in row.needs]
    expected = module(*parts)
    with torch.autocast("cuda", dtype=torch.float16):
        found = module(*parts)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-2)
    found.float().cos().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in [*parts, *module.parameters()])


@pytest.mark.parametrize("ema_decay", ["null", "0.5"])
def test_an_aggregation_is_initialized_once_before_the_first_step(ema_decay, config, tmp_path, monkeypatch):
    calls = []

    def initialize(module, local_features, seed):
        calls.append((local_features, seed))
        module.linear.bias.data.copy_(torch.arange(128.0))

    row = dataclasses.replace(AGGREGATIONS["mean_linear"], initialize=initialize)
    monkeypatch.setitem(AGGREGATIONS, "own", row)
    settings = {**TRAINING, "encoder.aggregation": "own", "training.ema_decay": ema_decay, "seed": 7}
    build = training_builder(config, settings)
    trainer = trainer_of(build(), tmp_path)
    trainer.resume()
    ((local_features, seed),) = calls
    assert local_features.shape == (84 * 100, 128)  # of all images
    assert (local_features.dtype, local_features.requires_grad, seed) == (torch.float32, False, 7)
    assert 84 * 16 * 0.9 < len(local_features.unique(dim=0)) <= 84 * 16  # 4 x 4 of each image, with repetitions
    assert torch.equal(trainer.model.aggregation.linear.bias, torch.arange(128.0))
    assert torch.equal(trainer.task.model.aggregation.linear.bias, torch.arange(128.0))
    again = trainer_of(build(), tmp_path / "stopped")
    stop_after_a_step(again)
    assert len(calls) == 2
    assert torch.equal(*(features for features, _ in calls))
    resumed = trainer_of(build(), tmp_path / "stopped")
    resumed.resume()
    resumed.train_epoch(StopRequest())
    assert len(calls) == 2


def test_tokens_in_a_backbone_are_initialized_before_the_first_step(config, tmp_path):
    settings = {**TRAINING, "model.architecture": "aggregation_tokens/test_vit+3@4", "encoder.aggregation": "token"}
    trainer = trainer_of(training_builder(config, settings)(), tmp_path)
    tokens = trainer.task.encoder.backbone.aggregation_tokens
    assert tokens.norm() < 1e-4
    trainer.resume()
    lengths = tokens.norm(dim=2)
    assert lengths.min() > math.log(100)  # divided by a difference of cosines
    torch.testing.assert_close(lengths, lengths[:, :1].expand(1, 3))
    assert torch.equal(trainer.model.backbone.aggregation_tokens, tokens)


@pytest.mark.parametrize("dim", [0, -3])
def test_a_dimension_below_one_is_refused(dim):
    with pytest.raises(ValueError, match=f"`descriptor_dim` must be at least 1, got {dim}"):
        build_encoder("tiny-resnet", "random", descriptor_dim=dim)


def test_dimensions_are_those_of_features_channels_or_token():
    dims = {name: aggregation_dim(name, TRAITS_OF.get(name, TRAITS), None, {}, "net") for name in AGGREGATIONS}
    assert dims == {
        "boq": 512 * 32,
        "convap": 512 * 2 * 2,
        "edtformer": 256 * 16,
        "gem": 6,
        "gem_pool": 5,
        "mean": 5,
        "mean_linear": 5,
        "mixvpr": 1024 * 4,
        "netvlad": 64 * 5,
        "salad": 64 * 128 + 256,
        "token": 4,
        "token_gem": 4 + 5,
    }


def test_a_row_with_options_and_two_parts_is_built_with_them(monkeypatch):
    class Both(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, feature_map, token):
            return torch.cat([self.scale * feature_map.mean(dim=(2, 3)), token], dim=1)

    row = Aggregation(
        build=lambda traits, dim, scale=2.0, shift=False: Both(scale),
        needs=("map", "token"),
        dim=lambda traits, scale, shift: traits.channels + traits.token_dim,
        always_normalized=False,
    )
    monkeypatch.setitem(AGGREGATIONS, "both", row)
    assert filled_options("both", {"scale": 3}) == {"scale": 3, "shift": False}
    module = build_aggregation("both", TRAITS, scale=3)
    assert torch.equal(module(torch.ones(2, 5, 3, 4), torch.zeros(2, 4)), torch.tensor([[3.0] * 5 + [0.0] * 4] * 2))
    encoder = build_encoder("tiny-vit", "random", 64, aggregation="both", aggregation_options={"scale": 3}).eval()
    again = restore_encoder(spec_from_json(spec_to_json(encoder.spec)), encoder.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert encoder(images).shape == (1, 128 + 128)
    assert torch.equal(encoder(images), again(images))
    for options, sentence in (
        ({"scale": "much"}, "`aggregation_options`: scale of both must be a float, got 'much'"),
        ({"shift": 1}, "shift of both must be a bool, got 1"),
        ({"size": 1}, "has 'size', which is no option of both: its options are scale, shift"),
    ):
        with pytest.raises(ValueError, match=sentence):
            filled_options("both", options)


def test_an_option_without_a_default_must_be_given(monkeypatch):
    row = Aggregation(build=lambda traits, dim, size: torch.nn.Identity(), needs=("map",), dim=lambda traits, size: 3)
    monkeypatch.setitem(AGGREGATIONS, "sized", row)
    assert filled_options("sized", {"size": 4}) == {"size": 4}
    with pytest.raises(ValueError, match="`aggregation_options`: sized needs size"):
        filled_options("sized", {})


def test_options_come_back_from_a_file_or_are_refused_at_once(monkeypatch):
    def build(traits, dim, *, sizes=(1, 2), folder=None):
        return AGGREGATIONS["mean"].build(traits, dim)

    row = dataclasses.replace(AGGREGATIONS["mean"], build=build, dim=lambda traits, **options: traits.channels)
    monkeypatch.setitem(AGGREGATIONS, "sized", row)
    for options, found in (({}, (1, 2)), ({"sizes": [3, 4]}, (3, 4))):  # JSON and YAML have lists only
        spec = build_encoder("tiny-resnet", "random", 64, aggregation="sized", aggregation_options=options).spec
        assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
        assert spec.aggregation_options["sizes"] == found
    with pytest.raises(ValueError, match="`aggregation_options`: sizes of sized must be a tuple, got 3"):
        build_encoder("tiny-resnet", "random", 64, aggregation="sized", aggregation_options={"sizes": 3})
    with pytest.raises(ValueError, match="cannot be an encoder: Object of type complex is not JSON serializable"):
        build_encoder("tiny-resnet", "random", 64, aggregation="sized", aggregation_options={"folder": 1j})
    with pytest.raises(ValueError, match=r"cannot be an encoder: expected one of .*got 'cubic' in interpolation"):
        build_encoder("tiny-resnet", "random", 64, interpolation="cubic")
