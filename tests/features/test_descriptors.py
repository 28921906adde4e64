"""Descriptors are kept for the encoder that made them, and for no other."""

import dataclasses
import json
import sys
from pathlib import Path
from types import MethodType

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

import progeo
from progeo import plugins
from progeo.engine.accelerator import start_accelerator
from progeo.features.descriptors import (
    descriptor_extractor,
    descriptor_metadata,
    extract_descriptors,
    is_metadata_of,
)
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.models.encoder import Encoder, build_encoder
from progeo.models.thumbnail import ThumbnailEncoder
from progeo.places.catalogue import read_catalogue


class Constant(nn.Module):
    """An encoder of another program: every descriptor is its weights."""

    image_size = (32, 32)
    descriptor_dim = 2

    def __init__(self, value, factor=1.0):
        super().__init__()
        self.value = nn.Parameter(torch.full((2,), value))
        self.factor = factor

    def normalize(self, images):
        return images.float()

    def forward(self, images):
        return (self.value * self.factor).expand(len(images), 2)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for east in (550000, 550010):
        Image.new("RGB", (32, 32)).save(folder / f"@{east}@4180000@.jpg")
    return read_catalogue(folder)


@pytest.fixture
def descriptors(catalogue, tmp_path):
    accelerator = start_accelerator("no")
    work, cache = WorkOptions(num_workers=0), CacheOptions(descriptor_cache=tmp_path / "cache")

    def extract(encoder):
        extractor = descriptor_extractor(encoder, ImageOptions(), accelerator)
        (part,) = extract_descriptors(extractor, catalogue, accelerator, work=work, cache=cache).parts()
        return part

    return extract


def test_networks_of_one_class_get_descriptors_of_their_own(descriptors, tmp_path):
    expected = {(1.0, 1.0): 1.0, (2.0, 1.0): 2.0, (1.0, 3.0): 3.0}
    for _ in range(2):  # the second time they are read from the cache
        for arguments, value in expected.items():
            np.testing.assert_array_equal(descriptors(Constant(*arguments)), np.full((2, 2), value))
    assert len(list((tmp_path / "cache").iterdir())) == len(expected)


def test_a_network_that_cannot_be_told_from_others_keeps_no_descriptors(descriptors, tmp_path):
    network = Constant(1.0)
    network.factor = lambda: 2
    with pytest.raises(ValueError, match="A Constant cannot be told from others by what it holds"):
        descriptors(network)
    assert not (tmp_path / "cache").exists()


class Subclass(Encoder):
    def forward(self, images):
        return -super().forward(images)


def halved(encoder, images):
    return images / 2


def doubled(encoder, images, descriptors):
    return descriptors * 2


def changed(change):
    encoder = build_encoder("tiny-resnet", "random", 64, descriptor_dim=8).eval()
    change(encoder)
    return encoder


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: setattr(encoder, "aggregation", nn.Sequential(encoder.aggregation, nn.Softmax(dim=1))),
        lambda encoder: setattr(encoder, "projection", nn.Tanh()),
        lambda encoder: setattr(encoder, "__class__", Subclass),
        lambda encoder: encoder.mean.fill_(0.5),
        lambda encoder: nn.init.zeros_(encoder.aggregation.linear.bias),
        lambda encoder: setattr(encoder, "forward", MethodType(halved, encoder)),
        lambda encoder: setattr(encoder, "normalize", MethodType(halved, encoder)),
        lambda encoder: setattr(encoder.aggregation, "forward", torch.zeros_like),
        lambda encoder: setattr(encoder.backbone.layer1[0].act3, "forward", torch.abs),
        lambda encoder: encoder.register_forward_hook(doubled),
        lambda encoder: encoder.train(),
        lambda encoder: encoder.double(),
        lambda encoder: setattr(encoder, "spec", dataclasses.replace(encoder.spec, image_size=(96, 96))),
    ],
)
def test_an_encoder_that_was_changed_is_another(change):
    assert descriptor_metadata(changed(change)) != descriptor_metadata(changed(lambda encoder: None))


@pytest.mark.parametrize(
    ("traits", "options", "sentence"),
    [
        ({"side_multiple": 14}, {"image_size": (98, 100)}, "`image_size` must be .* in multiples of 14, got 98 x 100"),
        ({"side_multiple": 14}, {"database_preprocessing": "native"}, "preprocessing native gives images of many"),
        ({"only_size": (64, 64)}, {"image_size": 96}, "`image_size` must be 64 x 64 pixels, the only size"),
        ({"only_size": (64, 64)}, {"database_preprocessing": "single_query"}, "tiny-resnet does not take them all"),
    ],
)
def test_images_of_sizes_that_an_encoder_does_not_take_are_refused_first(traits, options, sentence):
    encoder = changed(lambda encoder: None)
    encoder.traits = dataclasses.replace(encoder.traits, **traits)
    with pytest.raises(ValueError, match=sentence):
        descriptor_extractor(encoder, ImageOptions(**options), start_accelerator("no"))


def test_our_encoders_are_told_by_their_spec_and_weights_whatever_their_texts_are():
    encoder = changed(lambda encoder: None)
    values = descriptor_metadata(encoder)
    assert values["encoder"]["architecture"] == "tiny-resnet"
    encoder.spec = dataclasses.replace(encoder.spec, text_weights="openai")
    assert descriptor_metadata(encoder) == values
    assert descriptor_metadata(ThumbnailEncoder()) == descriptor_metadata(ThumbnailEncoder())


def test_metadata_leaves_out_what_earlier_versions_did_not_have_where_it_changes_nothing():
    values = descriptor_metadata(build_encoder("tiny-resnet", "random", aggregation="gem"))
    assert "resize" not in values["encoder"]
    assert values["encoder"]["aggregation_options"] == {}
    options = {"local_linear": True}
    other = build_encoder("tiny-resnet", "random", aggregation="gem", aggregation_options=options, resize="bicubic")
    values = descriptor_metadata(other)
    assert (values["encoder"]["resize"], values["encoder"]["aggregation_options"]) == ("bicubic", options)


_PEAK = """
from progeo.models.aggregation import AGGREGATIONS, Aggregation, MeanPool


class Peak(MeanPool):
    def forward(self, feature_map):
        return {expression}


AGGREGATIONS["peak"] = Aggregation(build=lambda traits, dim: Peak(), needs=("map",), dim=lambda traits: traits.channels)
"""


def test_an_encoder_is_another_once_the_code_of_its_plugin_changed(plugins_forgotten, tmp_path):
    found = []
    for number, expression in enumerate(["feature_map.amax((2, 3))", "feature_map.amin((2, 3))"]):
        (tmp_path / f"peak{number}").mkdir()
        file = tmp_path / f"peak{number}/peak_of_mine.py"
        file.write_text(_PEAK.format(expression=expression))
        plugins.import_plugin(file)
        found.append(descriptor_metadata(build_encoder("tiny-resnet", "random", aggregation="peak").eval()))
        del sys.modules["peak_of_mine"], plugins._IMPORTED["peak_of_mine"]  # as another process has it
        sys.path.remove(str(file.parent))
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0] != found[1]


FORMAT_2 = Path(__file__).parents[1] / "export/format_2"
DIGESTS = {
    "gem": "459a2b521932c349599cdd52273388fc8cfe72b13b1a25b3f93dea34884baf49",
    "clip": "ee9ccb7b0b8f9c4d7c1f5ad40817e78d5ca4c931045b5eb22777e6c3e95676e8",
}
"""Digests of the weights of the encoders of format 2 in place indexes of that version."""


@pytest.mark.parametrize("name", DIGESTS)
def test_the_encoder_of_a_place_index_of_format_2_is_known_again(name, monkeypatch):
    for file in FORMAT_2.glob("micro-*.json"):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, file.stem, json.loads(file.read_text()))
    encoder = progeo.load_encoder(FORMAT_2 / name)
    spec = json.loads((FORMAT_2 / name / "model.json").read_text())["encoder"]
    stored = {"encoder": {**spec, "text_weights": None}, "weights": DIGESTS[name]}
    assert is_metadata_of(stored, encoder)
    assert is_metadata_of(descriptor_metadata(encoder), encoder)
    for changed in ({"pooling": "mean"}, {"align_corners": not spec["align_corners"]}, {"image_size": [96, 96]}):
        assert not is_metadata_of({**stored, "encoder": stored["encoder"] | changed}, encoder)
    assert not is_metadata_of(stored | {"weights": "0"}, encoder)


def test_an_encoder_that_memory_does_not_hold_twice_is_not_taken_for_another(monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")

    encoder = build_encoder("tiny-vit", "random", 32).eval()
    monkeypatch.setattr("progeo.features.descriptors.restore_encoder", fail)
    with pytest.raises(MemoryError, match=r"^Out of memory\. An encoder and its copy must fit in memory\."):
        descriptor_metadata(encoder)
