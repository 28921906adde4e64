"""Export an encoder as a `torch.export` graph for dynamic batch and image sizes.

TorchScript is not used, as PyTorch no longer develops it. The ONNX file is made from the same graph, so that both
accept the same sizes.
"""

import copy
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from progeo.atomic import replacing
from progeo.image_files import Resize
from progeo.models.encoder import Encoder

Input = Literal["normalized", "pixels", "photos"]
LARGEST_DIFFERENCE = 1e-4
_MIN_SIDE = 64
_SIZES = ((1, 224, 224), (5, 320, 448))


def build_program(encoder: Encoder, input: Input) -> ExportedProgram:
    """Export the encoder as a graph: input `images`, of any batch size, height and width -> descriptors (B, D).

    Height and width must be at least `min_side(encoder)` and, except with `photos`, multiples of `side_step(encoder)`.

    The graph runs on the CPU; `torch.export.passes.move_to_device_pass` converts it for another device.

    Args:
        encoder: not changed.
        input: `normalized`: normalized images, float (B, 3, H, W); `pixels`: uint8 (B, H, W, 3), normalized in the
            graph; `photos`: as `pixels`, and also resized in the graph to the encoder's image size.

    Raises:
        ValueError: the graph would not accept the encoder's own image size, or the encoder takes no other.
    """
    if input != "photos" and encoder.traits.only_size:
        raise ValueError(
            f"A graph for images of many sizes cannot be made of {encoder.spec.architecture}, which takes one size "
            f"only: use `input` photos."
        )
    step, minimum = (1, _MIN_SIDE) if input == "photos" else (side_step(encoder), min_side(encoder))
    if input != "photos" and any(side < minimum or side % step for side in encoder.image_size):
        raise ValueError(
            f"The encoder's own images of {encoder.image_size[0]} x {encoder.image_size[1]} pixels would not be "
            f"accepted: a graph accepts sides from {minimum} pixels in multiples of {step}. Use `input` photos."
        )
    batch, height, width = Dim("batch", min=1), *(_side(name, minimum, step) for name in ("height", "width"))
    sizes = (batch, 3, height, width) if input == "normalized" else (batch, height, width, 3)
    dynamic = {axis: size for axis, size in enumerate(sizes) if size != 3}
    unit = -(-max(32, -(-minimum // 5)) // step) * step
    example = _random_images(encoder, input, (2, 5 * unit, 6 * unit))
    with torch.no_grad(), explaining_failure(encoder):
        program = torch.export.export(
            _Graph(encoder, input).eval(),
            (example,),
            dynamic_shapes=(dynamic,),
            # Some guards of a VGG hold for all sizes, but the solver cannot prove it.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # source lines, with paths of this machine
        if node.target is torch.ops.aten.view.default:  # attention has another memory layout on other devices
            node.target = torch.ops.aten.reshape.default
    return program


@contextmanager
def explaining_failure(encoder: Encoder) -> Iterator[None]:
    """Raise any error in this block as a ValueError that names the encoder."""
    try:
        yield
    except Exception as error:  # an operation of any network can be one that no graph holds
        reason = re.split(r"[.!](?= |$)", (str(error) or type(error).__name__).splitlines()[0])[0]
        raise ValueError(
            f"No graph can be made of {encoder.spec.architecture}: {reason}. Use `input` photos, whose graph computes "
            f"images of one size, or `format` safetensors."
        ) from error


def save_program(path: Path, encoder: Encoder, *, input: Input = "normalized") -> float:
    """Export the encoder to a file for `torch.export.load(path).module()`.

    Returns:
        The largest `relative_difference` to the encoder, over images of several sizes.

    Raises:
        ValueError: the difference is above 1e-4; nothing is written. See also `build_program`.
    """
    program = build_program(encoder, input)
    compared = compared_images(encoder, input)
    with explaining_failure(encoder):  # a graph can be made that turns out to hold for one size only
        exported = program.module()
        differences = [relative_difference(exported(images), expected) for images, expected in compared]
    largest = check_difference(differences, LARGEST_DIFFERENCE, path)
    program.example_inputs = None  # they would be pickled
    content = io.BytesIO()  # otherwise the archive would contain the temporary name
    torch.export.save(program, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return largest


def side_step(encoder: Encoder) -> int:
    """Return the step of heights and widths that a graph accepts: that of the backbone and of its positions."""
    positions = encoder.traits.positions
    return math.lcm(encoder.traits.side_multiple, 1 if positions is None else positions.stride)


def min_side(encoder: Encoder) -> int:
    """Return the minimum height and width that a graph accepts: 64 pixels, or that of the encoder if it is above."""
    return max(_MIN_SIDE, encoder.traits.min_side)


def compared_images(encoder: Encoder, input: Input) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield test images of several sizes, in the form that the graph takes, with the encoder's descriptors (B, D)."""
    step = side_step(encoder)
    minimum = -(-min_side(encoder) // step) * step
    for batch, *sides in (*_SIZES, (2, *encoder.image_size)):
        height, width = (max(minimum, side // step * step) for side in sides)
        images = _random_images(encoder, input, (batch, height, width))
        yield images, _descriptors(encoder, images, input)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Compute the largest absolute difference of descriptors (B, D), divided by the mean norm of the expected ones."""
    return ((found - expected).abs().max() / expected.norm(dim=1).mean()).item()


def check_difference(differences: list[float], allowed: float, path: Path) -> float:
    """Return the largest of the differences, or refuse to write the file if it is above `allowed` or NaN.

    Raises:
        ValueError: the difference is too large; the message names the file.
    """
    largest = torch.tensor(differences, dtype=torch.float64).max().item()  # NaN if any is NaN
    if math.isnan(largest):
        raise ValueError(f"{path} is not written: the encoder's descriptors are not finite, or all are zero.")
    if not largest <= allowed:
        raise ValueError(
            f"{path} is not written: its descriptors would be up to {largest:.1e} away from the encoder's, and "
            f"{allowed:.0e} is allowed. Try other versions of torch and onnxruntime."
        )
    return largest


@torch.no_grad()
def _descriptors(encoder: Encoder, images: Tensor, input: Input) -> Tensor:
    if input == "normalized":
        return encoder(images)
    images = images.permute(0, 3, 1, 2)
    if input == "photos":
        # Equal to `preprocess` on a CPU with AVX2; on others torchvision resizes in floats and rounds once.
        images = F.interpolate(images, encoder.image_size, mode=encoder.resize, antialias=True)
    return encoder(encoder.normalize(images))


def _random_images(encoder: Encoder, input: Input, size: tuple[int, int, int]) -> Tensor:
    """Generate random images in the form that the graph takes, for a `size` of (batch, height, width)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
    return encoder.normalize(pixels.permute(0, 3, 1, 2)) if input == "normalized" else pixels


def _side(name: str, minimum: int, step: int) -> Dim:
    min_steps = -(-minimum // step)
    return Dim(name, min=min_steps) if step == 1 else step * Dim(name, min=min_steps)


class _Graph(nn.Module):
    """The encoder without operations that depend on the image size in Python, so that it can be exported."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, input: Input) -> None:
        super().__init__()
        # A copy, as requires_grad and memory format are set in place.
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).to(memory_format=torch.contiguous_format)
        self.register_buffer("mean", 255 * encoder.mean[:, None, None])
        self.register_buffer("std", 255 * encoder.std[:, None, None])
        self.input = input

    def forward(self, images: Tensor) -> Tensor:
        if self.input != "normalized":
            images = images.permute(0, 3, 1, 2).float()
            if self.input == "photos":
                images = _resized(images, self.encoder.image_size, self.encoder.resize)
            images = (images - self.mean) / self.std
        return self.encoder.aggregate(self.encoder.features(images, resized=self.input != "photos"))


def _resized(images: Tensor, size: tuple[int, int], resize: Resize) -> Tensor:
    """Resize (B, 3, H, W) of 0..255 as `preprocess` does: width, then height, each rounded to integers in 0..255.

    In float64, as float32 cannot hold the weighted sums of pixels exactly, so that some would be rounded differently.
    """
    weights, one = _resizing_weights(images.shape[3], size[1], resize)
    images = (images.double() @ weights.T / one + 0.5).floor().clamp(0, 255)
    weights, one = _resizing_weights(images.shape[2], size[0], resize)
    return (weights @ images / one + 0.5).floor().clamp(0, 255).float()


def _resizing_weights(length: int, resized: int, resize: Resize) -> tuple[Tensor, Tensor]:
    """Compute fixed-point weights (resized, length) for resizing `length` pixels, and the integer that stands for 1.

    As in PyTorch's resizing of uint8 images, weights are integers below 2**15, at the finest scale that allows.
    """
    scale = torch.full((), length, dtype=torch.float64) / resized  # a tensor, as ONNX divides sizes in float32
    reach = scale.clamp(min=1)
    centers = (torch.arange(resized, dtype=torch.float64) + 0.5) * scale
    distances = (torch.arange(length, dtype=torch.float64) + 0.5 - centers[:, None]).abs()
    weights = _FILTERS[resize](distances / reach)
    weights = weights / weights.sum(dim=1, keepdim=True)
    ones = 2.0 ** torch.arange(23, dtype=torch.float64)
    one = 2.0 ** (0.5 + 2 * weights.max() * ones < 2**15).sum().clamp(max=22).double()
    return (weights * one + 0.5).floor(), one


def _triangle(distances: Tensor) -> Tensor:
    """Compute the filter of bilinear interpolation at distances of at least 0, in pixels."""
    return (1 - distances).clamp(min=0)


def _cubic(distances: Tensor) -> Tensor:
    """Compute the filter of bicubic interpolation (Keys 1981, a = -0.5) at distances of at least 0, in pixels."""
    near, far = distances.clamp(max=1), distances.clamp(1, 2)  # one of the two terms is 0
    return (1.5 * near - 2.5) * near**2 + 1 - 0.5 * (((far - 5) * far + 8) * far - 4)


_FILTERS = MappingProxyType({"bilinear": _triangle, "bicubic": _cubic})
"""Filters by `Resize`."""
