import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from small_onnx import colors, convolutions

from progeo.export.weights import load_encoder
from progeo.features.descriptors import descriptor_metadata


@pytest.mark.parametrize("input", ["normalized", "pixels"])
def test_a_file_gets_images_in_the_form_that_it_was_exported_for(input, tmp_path):
    (tmp_path / "model.onnx").write_bytes(colors(input).SerializeToString())
    encoder = load_encoder(f"onnx:{tmp_path}/model.onnx")
    assert (encoder.image_size, encoder.descriptor_dim, encoder.has_weights) == ((64, 96), 3, False)
    assert encoder.resize == "bicubic"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    found = encoder(torch.stack([encoder.preprocess(Image.fromarray(photo)) for photo in pixels]))
    expected = pixels.mean((1, 2))
    if input == "normalized":
        expected = (expected / 255 - encoder.mean.numpy()) / encoder.std.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_that_is_sent_to_another_machine_needs_no_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(colors("pixels").SerializeToString())
    encoder = load_encoder(f"onnx:{tmp_path}/model.onnx")
    (tmp_path / "model.onnx").unlink()
    images = torch.rand(2, 3, 64, 96)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(images), encoder(images))


def test_descriptors_of_one_file_are_not_taken_for_those_of_another(tmp_path):
    for name, scale in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / f"{name}.onnx").write_bytes(colors("pixels", scale).SerializeToString())
    a, b, again = (descriptor_metadata(load_encoder(f"onnx:{tmp_path}/{name}.onnx"))["encoder"] for name in "aba")
    assert a == again
    assert a != b


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no file .*model.onnx"),
        (b"no model", "model.onnx cannot be opened by onnxruntime: "),
        (convolutions().SerializeToString(), "model.onnx is not an ONNX file as progeo exports it: 'progeo'"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load_encoder(f"onnx:{tmp_path}/model.onnx")
