"""An encoder as one graph of tensor operations, for batches and images of any size: what `torch.export` gives.

`torch.export` and not TorchScript, which PyTorch no longer develops; the ONNX file is made from the same graph, so that
both take the same sizes.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from progeo.files import replacing
from progeo.models.clip import grid_and_stride, position_embedding_name, resized_features
from progeo.models.encoder import Encoder

Input = Literal["normalised", "pixels", "photos"]
LEAST_SIDE = 64
LARGEST_DIFFERENCE = 1e-4
LARGEST_HALF_DIFFERENCE = 2e-2
_SIZES = ((1, 224, 224), (5, 320, 448))


@dataclass(frozen=True)
class Form:
    """What a graph takes and how it computes."""

    input: Input = "normalised"
    """`normalised` images, float (B, 3, H, W); `pixels`, uint8 (B, H, W, 3), normalised inside; `photos`, pixels of any
    size, resized to the encoder's inside too."""
    half: bool = False
    """The trunk in float16, images and descriptors as ever; pooling stays in float32, where its powers do not vanish."""


def build_program(encoder: Encoder, form: Form) -> ExportedProgram:
    """Record the encoder as a graph: images named `images`, of any batch, height and width -> descriptors (B, D).

    Height and width must be multiples of `side_step(encoder)` and at least 64 pixels, except of photos.
    """
    if form.input not in get_args(Input):
        raise ValueError(f"input must be one of {', '.join(get_args(Input))}, got {form.input!r}.")
    step = 1 if form.input == "photos" else side_step(encoder)
    batch, height, width = Dim("batch", min=1), _side("height", step), _side("width", step)
    sizes = (batch, 3, height, width) if form.input == "normalised" else (batch, height, width, 3)
    dynamic = {axis: size for axis, size in enumerate(sizes) if size != 3}
    # Two different images, neither of the encoder's size: nothing may be taken for a constant.
    example = example_images(encoder, form, (2, 5 * max(step, 32), 6 * max(step, 32)))
    with torch.no_grad():
        return torch.export.export(_Graph(encoder, form).eval(), (example,), dynamic_shapes=(dynamic,))


def save_program(path: Path, program: ExportedProgram) -> None:
    """Write the graph as a file for `torch.export.load(path).module()`."""
    with replacing(path) as temporary:
        torch.export.save(program, temporary)


def side_step(encoder: Encoder) -> int:
    """What height and width must be multiples of: where there is a position embedding, the pixels of one position."""
    backbone = encoder.backbone
    return 1 if position_embedding_name(backbone) is None else grid_and_stride(backbone)[1][0]


def example_images(encoder: Encoder, form: Form, size: tuple[int, int, int]) -> Tensor:
    """Random images in the form that a graph takes, (batch, height, width)."""
    batch, height, width = size
    pixels = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    return encoder.normalise(pixels.permute(0, 3, 1, 2)) if form.input == "normalised" else pixels


def compared_images(encoder: Encoder, form: Form) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of several sizes as the graph takes them, each with the descriptors (B, D) that the encoder gives."""
    step = side_step(encoder)
    for batch, *sides in (*_SIZES, (2, *encoder.image_size)):
        height, width = (max(step, side // step * step) for side in sides)
        images = example_images(encoder, form, (batch, height, width))
        yield images, _described(encoder, images, form)


def check_difference(differences: list[float], form: Form, path: Path) -> float:
    """The largest of the differences, refused where it is too large.

    Raises:
        ValueError: above 1e-4, or 2e-2 in half precision.
    """
    largest, allowed = max(differences), LARGEST_HALF_DIFFERENCE if form.half else LARGEST_DIFFERENCE
    if not largest <= allowed:
        raise ValueError(
            f"{path} would give descriptors up to {largest:.1e} away from the encoder's, allowed is {allowed:.0e}: "
            "nothing is written. Please report the versions of torch and onnxruntime."
        )
    return largest


@torch.no_grad()
def _described(encoder: Encoder, images: Tensor, form: Form) -> Tensor:
    if form.input == "normalised":
        return encoder(images)
    images = images.permute(0, 3, 1, 2)
    if form.input == "photos":
        return encoder(torch.stack([encoder.preprocess(image) for image in images]))
    return encoder(encoder.normalise(images))


def _side(name: str, step: int) -> Dim:
    least = -(-LEAST_SIDE // step)
    return Dim(name, min=least) if step == 1 else step * Dim(name, min=least)


class _Graph(nn.Module):
    """The encoder without what asks for sizes."""

    def __init__(self, encoder: Encoder, form: Form) -> None:
        super().__init__()
        # A copy, as half precision and memory format are set in place.
        encoder = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
        self.trunk = encoder.backbone.half() if form.half else encoder.backbone
        self.head = nn.Sequential(encoder.pooling, encoder.projection)
        self.register_buffer("mean", 255 * encoder.mean[:, None, None])
        self.register_buffer("std", 255 * encoder.std[:, None, None])
        self.spec, self.form = encoder.spec, form

    def forward(self, images: Tensor) -> Tensor:
        if self.form.input != "normalised":
            images = images.permute(0, 3, 1, 2).float()
            if self.form.input == "photos":
                images = _resized(images, self.spec.image_size)
            images = (images - self.mean) / self.std
        images = images.half() if self.form.half else images
        if position_embedding_name(self.trunk) is None:
            features = self.trunk(images)
        else:
            features = resized_features(self.trunk, images, align_corners=self.spec.align_corners)
        return self.head(features.float())


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 3, H, W) of 0..255 to the very values of `preprocess`: columns, then rows, each rounded."""
    weights, one = _resizing_weights(images.shape[3], size[1])
    images = (images @ weights.T / one + 0.5).floor()
    weights, one = _resizing_weights(images.shape[2], size[0])
    return (weights @ images / one + 0.5).floor()


def _resizing_weights(length: int, resized: int) -> tuple[Tensor, Tensor]:
    """What each of `length` pixels adds to each of the resized ones, (resized, length), and the number that is one.

    Weights are whole numbers below 2**15, the finest that PyTorch's resizing of uint8 images can take, as it does.
    """
    scale = length / resized
    reach = torch.sym_max(scale, 1.0)
    centres = (torch.arange(resized, dtype=torch.float64) + 0.5) * scale
    distances = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]).abs()
    weights = (1 - distances / reach).clamp(min=0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    ones = 2.0 ** torch.arange(23, dtype=torch.float64)
    one = ones[torch.clamp((0.5 + 2 * weights.max() * ones < 2**15).sum(), max=22)]
    return (weights * one + 0.5).floor().float(), one.float()
