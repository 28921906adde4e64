"""Export an encoder to ONNX, checked against the encoder before the file is written."""

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from progeo.atomic import replacing
from progeo.export.folders import without_folders
from progeo.export.program import (
    LARGEST_DIFFERENCE,
    Input,
    build_program,
    check_difference,
    compared_images,
    explaining_failure,
    relative_difference,
)
from progeo.models.encoder import Encoder, spec_to_json

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_DIFFERENCE_OF_HALVES = 1e-2
_LARGEST_FILE_BYTES = 2**31 - 1
_OPSET = 20


def save_onnx(path: Path, encoder: Encoder, *, input: Input = "normalized", fp16: bool = False) -> float:
    """Export an encoder to ONNX: `images` of any batch size, height and width -> `descriptors` (B, D).

    Args:
        input: form and allowed sizes of the images, see `build_program`.
        fp16: store weights in half precision, which halves the file; they are cast to float32 for computing.

    Returns:
        The largest `relative_difference` between onnxruntime and the encoder, over images of several sizes.

    Raises:
        ValueError: the difference is above 1e-4 (with fp16, 1e-2), the weights exceed one file (2 GiB), or a package of
            the extra `onnx` is missing; nothing is written. See also `build_program`.
    """
    model = build_onnx(encoder, input)
    if fp16:
        _store_halves(model)
    advice = "Use `format` torch." if fp16 else "Use `fp16` true or `format` torch."
    content = content_of(model, path, advice=advice)
    largest = check_onnx(content, encoder, input, _LARGEST_DIFFERENCE_OF_HALVES if fp16 else LARGEST_DIFFERENCE, path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return largest


def build_onnx(encoder: Encoder, input: Input) -> "ModelProto":
    """Build the ONNX model of an encoder, see `save_onnx`.

    Raises:
        ValueError: a package of the extra `onnx` is missing; see also `build_program`.
    """
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise ValueError(f"An ONNX file needs the package {name}: pip install 'progeo[onnx]'.") from None
    height, width = (2, 3) if input == "normalized" else (1, 2)
    program = build_program(encoder, input)
    hushed = without_warnings("onnxscript", "torch.onnx", "onnx_ir")
    with hushed, warnings.catch_warnings(), explaining_failure(encoder):
        warnings.simplefilter("ignore")
        # The dynamo exporter, not that of TorchScript, which PyTorch keeps for old programs only and which does not
        # support bicubic resizing with antialiasing.
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["descriptors"],
            dynamic_shapes=({0: "batch", height: "height", width: "width"},),
        )
    assert exported is not None  # with dynamo
    model = exported.model_proto
    for part in (*model.graph.node, *model.graph.value_info):  # source locations, larger than the graph
        del part.metadata_props[:]
    spec = without_folders(spec_to_json(encoder.spec))
    model.metadata_props.add(key="progeo", value=json.dumps({**spec, "input": input}))
    return model


def _store_halves(model: "ModelProto") -> None:
    """Store float32 matrices and kernels as float16, with a cast to float32 where they are used.

    Tensors with fewer than two dimensions or with values beyond float16's range stay in float32.
    """
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def content_of(model: "ModelProto", path: Path, *, advice: str) -> bytes:
    """Return the content of the file of a model.

    Raises:
        ValueError: it is too large for one file; the message names the file, and ends with the advice.
    """
    if model.ByteSize() > _LARGEST_FILE_BYTES:
        raise ValueError(f"{path} would have {model.ByteSize() / 1e9:.1f} GB, one ONNX file holds 2.1 GB. {advice}")
    return model.SerializeToString()


def check_onnx(content: bytes, encoder: Encoder, input: Input, allowed: float, path: Path) -> float:
    """Return the largest `relative_difference` between an ONNX file and its encoder, over images of several sizes.

    Args:
        allowed, path: see `check_difference`.

    Raises:
        ValueError: the difference is too large.
    """
    session = open_session(content)
    differences = [
        relative_difference(torch.from_numpy(session.run(["descriptors"], {"images": images.numpy()})[0]), expected)
        for images, expected in compared_images(encoder, input)
    ]
    return check_difference(differences, allowed, path)


def open_session(file: bytes | Path) -> "InferenceSession":
    """Open an ONNX file, or its content, to run it on the CPU."""
    from onnxruntime import InferenceSession

    return InferenceSession(file, providers=["CPUExecutionProvider"])


@contextmanager
def without_warnings(*names: str) -> Iterator[None]:
    """Silence warnings of these loggers and those below them."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
