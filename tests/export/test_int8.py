import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from running import files_in
from small_onnx import as_onnx, convolutions

from progeo.cli import main
from progeo.export.int8 import Int8Report, check_report, compare, quantize, spread
from progeo.export.weights import load_encoder, save_encoder
from progeo.models.encoder import build_encoder

REPORT = Int8Report(
    "static", 10, mean_cosine=0.99, min_cosine=0.9, centered_cosine=0.98, share_of_size=0.26, share_of_time=0.5
)


def images(count, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((1, 3, 16, 16), dtype=np.float32) for _ in range(count))


def weights_of(content):
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load_from_string(content).graph.initializer}


def test_static_quantizes_kernels_and_matrices_by_channel_and_changes_little():
    content = quantize(convolutions(), "static", images(20))
    found = weights_of(content)
    kinds = {values.shape: values.dtype for values in found.values() if values.ndim > 1}
    assert kinds == {(8, 3, 3, 3): np.int8, (8, 6): np.int8}
    scales = [values.shape for name, values in found.items() if name.startswith("kernels") and "scale" in name]
    assert scales == [(8,)]
    report = compare(convolutions().SerializeToString(), content, "static", images(10, seed=1))
    assert report.num_photos == 10
    assert report.min_cosine > 0.999


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_products_of_two_activations_stay_exact(method):
    nodes = [
        helper.make_node("MatMul", ["images", "matrix"], ["product"], "of a weight"),
        helper.make_node("Transpose", ["product"], ["transposed"], "transpose"),
        helper.make_node("MatMul", ["product", "transposed"], ["descriptors"], "of activations"),
    ]
    model = as_onnx(nodes, {"matrix": np.eye(2, dtype=np.float32)}, shape=("batch", 2))
    graph = onnx.load_from_string(quantize(model, method, given((1, 2), (3, 4)))).graph
    kinds = {name: node.op_type for node in graph.node for name in node.output}
    (exact,) = (node for node in graph.node if node.name == "of activations")
    assert kinds[exact.input[1]] == "Transpose"
    assert {node.op_type for node in graph.node} >= {"static": {"DequantizeLinear"}, "dynamic": {"MatMulInteger"}}[
        method
    ]


def test_dynamic_quantizes_matrices_alone():
    found = weights_of(quantize(convolutions(), "dynamic", images(0)))
    kinds = {values.shape: values.dtype for values in found.values() if values.ndim > 1}
    assert kinds == {(8, 3, 3, 3): np.float32, (8, 6): np.int8}
    assert [values.shape for name, values in found.items() if "matrix" in name and "scale" in name] == [(6,)]


def test_ranges_are_those_of_the_images_that_it_is_calibrated_on():
    content = quantize(convolutions(), "static", images(20, scale=0.01))
    report = compare(convolutions().SerializeToString(), content, "static", images(10, seed=1))
    assert report.centered_cosine < 0.5


def matrix(values):
    """A model that multiplies two numbers with a matrix."""
    nodes = [helper.make_node("MatMul", ["images", "matrix"], ["descriptors"])]
    return as_onnx(nodes, {"matrix": np.array(values, np.float32)}, shape=("batch", 2)).SerializeToString()


def given(*inputs):
    return (np.array([each], np.float32) for each in inputs)


def test_files_are_compared_by_the_cosine_of_their_descriptors():
    turned = matrix([[0.5, -math.sqrt(0.75)], [math.sqrt(0.75), 0.5]])  # by 60 degrees
    report = compare(matrix(np.eye(2)), turned, "static", given((2, 0), (-2, 0)))
    assert (report.num_photos, report.share_of_size) == (2, 1.0)
    cosines = (report.mean_cosine, report.min_cosine, report.centered_cosine)
    assert cosines == pytest.approx((0.5, 0.5, 0.5))
    mirrored = matrix([[1, 0], [0, -1]])
    report = compare(matrix(np.eye(2)), mirrored, "static", given((4, 3), (4, -3), (1, 0)))
    assert report.mean_cosine == pytest.approx((7 / 25 + 7 / 25 + 1) / 3)
    assert report.min_cosine == pytest.approx(7 / 25)


def test_a_change_of_the_length_of_descriptors_hides_no_loss():
    report = compare(matrix(np.eye(2)), matrix(np.eye(2) * 1.5), "static", given((100, 1), (100, -1)))
    assert report.min_cosine == pytest.approx(1)
    assert report.centered_cosine < 0.1  # of (0, 1) and (50, 1.5), and of (0, -1) and (50, -1.5)


def test_photos_that_are_all_alike_tell_nothing():
    report = compare(matrix(np.eye(2)), matrix(np.eye(2)), "static", given((1, 2), (1, 2)))
    assert math.isnan(report.centered_cosine)
    with pytest.raises(ValueError, match="mean cosine of nan"):
        check_report(report, Path("model.onnx"))


def test_what_all_descriptors_have_in_common_hides_no_loss():
    first_alone = matrix([[1.0001, 0], [0, 0]])
    report = compare(matrix(np.eye(2)), first_alone, "static", given((100, 1), (100, -1)))
    assert report.min_cosine > 0.9999
    assert report.centered_cosine == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"centered_cosine": 0.94}, r"mean cosine of 0\.940 .* and 0\.95 is needed\. Use `int8` dynamic or `fp16`"),
        ({"centered_cosine": math.nan}, "mean cosine of nan"),
        ({"share_of_size": 0.95, "method": "dynamic"}, "95% of the size .* dynamic quantizes matrices only.* static"),
    ],
)
def test_a_file_that_loses_too_much_or_gains_too_little_is_refused(changed, sentence, tmp_path):
    check_report(REPORT, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=rf"model\.onnx is not written: .*{sentence}"):
        check_report(replace(REPORT, **changed), tmp_path / "model.onnx")


def test_photos_are_chosen_evenly_from_a_folder(tmp_path):
    for number in range(400):
        (tmp_path / f"{number:03}.jpg").touch()
    chosen = [int(path.stem) for path in spread(tmp_path)]
    assert (len(chosen), chosen[0], chosen[-1]) == (200, 0, 399)
    assert set(np.diff(chosen)) == {2, 3} or set(np.diff(chosen)) == {2}
    for number in range(19, 400):
        (tmp_path / f"{number:03}.jpg").unlink()
    with pytest.raises(ValueError, match=r"`calibration_folder` must hold at least 20 photos, .* has 19"):
        spread(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--int8", "static"], "--int8 is for the format onnx, not for safetensors: leave it out."),
        (["--format", "onnx", "--int8", "static"], "--int8 needs --calibration_folder, with photos to compare on"),
        (["--format", "onnx", "--calibration_folder", "x"], "--int8 needs --calibration_folder, with photos"),
        (["--format", "onnx", "--int8", "static", "--fp16", "true"], "--fp16 and --int8 exclude each other"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_before_any_work(arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        main(["export", "nowhere", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("input", ["normalized", "pixels", "photos"])
def test_an_encoder_leaves_in_8_bits_and_can_be_evaluated(input, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(24):  # smooth, as photos are
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize((128, 96)).save(tmp_path / f"photos/{number}.png")
    encoder = build_encoder("tiny-resnet", "random", (64, 96)).eval()
    save_encoder(tmp_path / "encoder", encoder, provenance={}, recalls={})
    folders = ("--calibration_folder", str(tmp_path / "photos"), "--out", str(tmp_path / "out"))
    main(["export", str(tmp_path / "encoder"), "--format", "onnx", "--int8", "static", "--input", input, *folders])
    assert files_in(tmp_path / "out") == {"model.onnx", "README.md"}
    content = (tmp_path / "out/model.onnx").read_bytes()
    assert len(content) < 0.4 * (tmp_path / "encoder/model.safetensors").stat().st_size
    assert str(tmp_path).encode() not in content
    assert b"progeo_int8" not in content
    assert (
        "| 8-bit integers | static; on 12 photos the cosine with the float descriptors is 0.9"
        in (tmp_path / "out/README.md").read_text()
    )
    loaded = load_encoder(f"onnx:{tmp_path / 'out/model.onnx'}")
    photo = encoder.preprocess(Image.open(tmp_path / "photos/3.png"))[None]
    assert (loaded(photo) * encoder(photo)).sum() > 0.99
