"""ONNX files of a few nodes, which take milliseconds to make."""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from progeo.models.encoder import build_encoder, spec_to_json


def as_onnx(nodes, weights, images=TensorProto.FLOAT, shape=("batch", 3, "height", "width")):
    """A model of `images` -> `descriptors`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", images, shape)],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ("batch", None))],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def convolutions():
    """A model of a convolution and a matrix, with random weights of very different channels."""
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((8, 3, 3, 3)) * 10.0 ** np.arange(-3, 5)[:, None, None, None]
    weights = {"kernels": kernels, "bias": rng.standard_normal(8), "matrix": rng.standard_normal((8, 6))}
    nodes = [
        helper.make_node("Conv", ["images", "kernels", "bias"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["map"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["descriptors"]),
    ]
    return as_onnx(nodes, {name: values.astype(np.float32) for name, values in weights.items()})


def colors(input, scale=1.0):
    """The mean color of images of 64 x 96 pixels, as an encoder that `progeo export --input` writes."""
    axes = [1, 2] if input == "pixels" else [2, 3]
    shape = ("batch", "height", "width", 3) if input == "pixels" else ("batch", 3, "height", "width")
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["descriptors"]),
    ]
    weights = {"axes": np.array(axes), "scale": np.float32(scale)}
    images = TensorProto.UINT8 if input == "pixels" else TensorProto.FLOAT
    model = as_onnx(nodes, weights, images, shape)
    spec = spec_to_json(build_encoder("tiny-resnet", "random", (64, 96), resize="bicubic").spec)
    model.metadata_props.add(key="progeo", value=json.dumps({**spec, "input": input}))
    return model
