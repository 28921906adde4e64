"""Quantize an ONNX export to 8-bit integers, and measure on photos what that changes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from progeo.atomic import replacing
from progeo.data.decode import read_image
from progeo.export.onnx import build_onnx, check_onnx, content_of, open_session, without_warnings
from progeo.export.program import LARGEST_DIFFERENCE, Input
from progeo.models.encoder import Encoder
from progeo.models.preprocessing import resize_image
from progeo.places.paths import find_paths
from progeo.progress import Progress

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

Int8 = Literal["dynamic", "static"]
MIN_COSINE = 0.95
"""Minimum `centered_cosine` of a file."""
_MAX_SHARE_OF_SIZE = 0.7
_MIN_PHOTOS, _MAX_PHOTOS = 20, 200
_MATRICES = ["MatMul", "Gemm"]


@dataclass(frozen=True)
class Int8Report:
    """What quantizing changed, measured on photos that it was not calibrated on."""

    method: Int8
    num_photos: int
    mean_cosine: float
    """Mean cosine of descriptors with those of the float file."""
    min_cosine: float
    centered_cosine: float
    """Mean cosine of what tells photos apart: descriptors without the mean of all float ones.

    It falls with a change of lengths, too, which distances depend on where descriptors are not L2-normalized."""
    share_of_size: float
    """Size of the file, divided by that of the float file."""
    share_of_time: float
    """Median time of a photo, divided by that with the float file."""

    def __str__(self) -> str:
        return (
            f"{self.method}; on {self.num_photos} photos the cosine with the float descriptors is "
            f"{self.mean_cosine:.4f} on average and {self.min_cosine:.4f} at least, and {self.centered_cosine:.4f} on "
            f"average of what tells photos apart; {self.share_of_size:.2f} of the float file's size, "
            f"{self.share_of_time:.2f} of its time on the CPU that exported it"
        )


def save_int8(path: Path, encoder: Encoder, folder: Path, *, method: Int8, input: Input = "normalized") -> Int8Report:
    """Export an encoder to ONNX with weights, and where it helps also activations, of 8 bits.

    Args:
        folder: photos like those that the file will get, searched recursively. Every second one calibrates, if the
            method needs that, and the others are compared with the float file; at most 200 are used, evenly spread.
        method: a row of `METHODS`.
        input: see `build_program`.

    Raises:
        ValueError: descriptors differ too much, little is gained, or there are fewer than 20 photos; nothing is
            written. See also `save_onnx`.
    """
    photos = spread(folder)
    model = build_onnx(encoder, input)
    exact = content_of(model, path, advice="Use `format` torch.")
    check_onnx(exact, encoder, input, LARGEST_DIFFERENCE, path)
    quantized = quantize(model, method, _read(photos[::2], encoder, input, "calibrating"))
    report = compare(exact, quantized, method, _read(photos[1::2], encoder, input, "comparing"))
    check_report(report, path)
    with replacing(path) as temporary:
        temporary.write_bytes(quantized)
    return report


def quantize(model: "ModelProto", method: Int8, images: Iterator[np.ndarray]) -> bytes:
    """Quantize an ONNX model, and return the content of its file.

    Args:
        method: a row of `METHODS`.
        images: inputs of the model, for calibrating.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(prefix="progeo_int8_") as name, without_warnings("root"):
        exact, prepared, quantized = (Path(name) / f"{step}.onnx" for step in ("exact", "prepared", "quantized"))
        exact.write_bytes(model.SerializeToString())
        quant_pre_process(exact, prepared, skip_symbolic_shape=True)  # which folds batch norms into convolutions
        METHODS[method](prepared, quantized, images)
        return quantized.read_bytes()


def compare(exact: bytes, quantized: bytes, method: Int8, images: Iterator[np.ndarray]) -> Int8Report:
    """Compare two ONNX files on images, one after the other."""
    sessions = [open_session(exact), open_session(quantized)]
    descriptors, times_s = [], []
    for each in images:
        results = [_timed(session, each) for session in sessions]
        descriptors.append([found for found, _ in results])
        times_s.append([seconds for _, seconds in results])
    expected, found = np.concatenate(descriptors, axis=1).astype(np.float64)
    cosines, (exact_s, quantized_s) = _cosines(expected, found), np.median(times_s, axis=0)
    middle = expected.mean(axis=0)
    return Int8Report(
        method=method,
        num_photos=len(cosines),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        centered_cosine=float(_cosines(expected - middle, found - middle).mean()),
        share_of_size=len(quantized) / len(exact),
        share_of_time=float(quantized_s / exact_s),
    )


def _dynamic(prepared: Path, quantized: Path, _: Iterator[np.ndarray]) -> None:
    """Quantize weights of matrices now, and what they are multiplied with when the file runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(prepared, quantized, op_types_to_quantize=_MATRICES, per_channel=True, weight_type=QuantType.QInt8)


def _static(prepared: Path, quantized: Path, images: Iterator[np.ndarray]) -> None:
    """Quantize weights, and activations by the ranges that they have on images."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(prepared).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    quantize_static(
        prepared,
        quantized,
        _Reader(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*_MATRICES, "Conv", "Relu", "Clip", "MaxPool"],
        per_channel=True,
        activation_type=QuantType.QUInt8,  # not negative after a ReLU
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=products,  # of two activations, as in attention
        extra_options={"OpTypesToExcludeOutputQuantization": _MATRICES},  # faster and more exact in a ViT
    )


METHODS: Mapping[Int8, Callable[[Path, Path, Iterator[np.ndarray]], None]] = MappingProxyType(
    {"dynamic": _dynamic, "static": _static}
)
"""Functions that quantize a prepared file to another, with images for calibrating."""


@dataclass(frozen=True)
class _Reader:
    """Gives images to onnxruntime, one after another."""

    images: Iterator[np.ndarray]

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.images, None)
        return None if images is None else {"images": images}


def spread(folder: Path) -> list[Path]:
    """Choose photos of a folder evenly by name."""
    names = [name for batch in find_paths(folder).batches for name in batch.to_pylist()]
    if len(names) < _MIN_PHOTOS:
        raise ValueError(f"`calibration_folder` must hold at least {_MIN_PHOTOS} photos, {folder} has {len(names)}.")
    chosen = np.linspace(0, len(names) - 1, min(len(names), _MAX_PHOTOS)).round().astype(int)
    return [folder / names[row] for row in chosen]


def _read(photos: Sequence[Path], encoder: Encoder, input: Input, doing: str) -> Iterator[np.ndarray]:
    """Read photos one by one, in the form that the graph takes."""
    with Progress(doing, total=len(photos)) as progress:
        for photo in photos:
            pixels = read_image(photo)
            if input == "pixels":
                pixels = resize_image(pixels, encoder.image_size, encoder.resize)
            images = encoder.preprocess(pixels) if input == "normalized" else pixels.permute(1, 2, 0)
            yield images[None].contiguous().numpy()
            progress.update()


def _cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the cosine (N,) of each of N vectors (N, D) with the other of its row; NaN for a vector of zeros."""
    with np.errstate(invalid="ignore"):
        return (vectors * others).sum(axis=1) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1))


def _timed(session: "InferenceSession", images: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute descriptors, and measure the time in seconds."""
    start = time.perf_counter()
    (descriptors,) = session.run(["descriptors"], {"images": images})
    return descriptors, time.perf_counter() - start


def check_report(report: Int8Report, path: Path) -> None:
    """Refuse to write a file that loses too much or gains too little.

    Raises:
        ValueError: it does; the message names the file and says what to use.
    """
    other = "static" if report.method == "dynamic" else "dynamic"
    if not report.centered_cosine >= MIN_COSINE:  # or NaN
        raise ValueError(
            f"{path} is not written: what tells {report.num_photos} photos apart in its descriptors would have a mean "
            f"cosine of {report.centered_cosine:.3f} with that of the float file, and {MIN_COSINE} is needed. Use "
            f"`int8` {other} or `fp16`."
        )
    if report.share_of_size > _MAX_SHARE_OF_SIZE:
        raise ValueError(
            f"{path} is not written: it would have {report.share_of_size:.0%} of the size of the float file. `int8` "
            f"dynamic quantizes matrices only, not convolutions: use `int8` static."
        )
