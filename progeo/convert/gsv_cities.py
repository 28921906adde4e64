"""Convert encoders of MixVPR, BoQ and OpenVPRLab, which are trained on GSV-Cities: `backbone.*` and `aggregator.*`.

These programs name the layers of backbones differently, those of aggregations alike.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, convert_encoder, tensor_named
from progeo.convert.dinov2 import DINOV2_PATCH, find_dinov2
from progeo.convert.numbered_convnets import RESNETS, best_architecture
from progeo.convert.salad import convert_salad
from progeo.convert.source import Source
from progeo.image_files import Resize
from progeo.models.aggregation import aggregation_dim, filled_options
from progeo.models.backbones import empty_traits
from progeo.models.backbones.family import ImageSize
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS
from progeo.models.weight_files.checkpoints import FoundWeights

_DINOV2 = "backbone.dino."
DINOV2_MARK = f"{_DINOV2}cls_token"
"""Name of a weight of the DINOv2 of BoQ and OpenVPRLab, which end before its last norm."""
_SALAD_MARK, _MIXVPR_MARK = "aggregator.dust_bin", "aggregator.row_proj.weight"
_IMAGE_SIZES = (
    ("hyper_parameters", "datamodule", "val_image_size"),
    ("hyper_parameters", "datamodule", "train_image_size"),
    ("datamodule_hyper_parameters", "val_img_size"),
    ("datamodule_hyper_parameters", "image_size"),
)
"""Where checkpoints hold the height and width of images, the first that there is counts."""
_ARGUMENTS = (("hyper_parameters", "agg_config"), ("hyper_parameters", "aggregator", "params"))
"""Where checkpoints hold the arguments of their aggregation."""
_PARTS = {"rows": "s1", "columns": "s2"}
"""Arguments of Conv-AP that its weights do not show, by our names."""


@dataclass(frozen=True)
class _Aggregator:
    """An aggregation of these programs."""

    aggregation: str
    """A row of `AGGREGATIONS`."""
    mark: str
    """The name of a weight that no row before has."""
    options: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]] = lambda state, arguments: {}
    """Returns the options, from the weights and from the arguments in the checkpoint."""
    their_name: Callable[[str], str] = lambda ours: ours
    """Maps our names of its parameters, in its module, to theirs."""
    linear: str = ""
    """The name of the weight (D, C) of a linear layer that decides the dimension of descriptors, if it has one."""


def _boq_options(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "channels": len(tensor_named(state, "aggregator.proj_c.weight", 4)),
        "num_queries": tensor_named(state, "aggregator.boqs.0.queries", 3).shape[1],
        "num_layers": _count(state, "aggregator.boqs."),
        "rows": len(tensor_named(state, "aggregator.fc.weight", 2)),
    }


def _mixvpr_options(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    rows, cells = tensor_named(state, _MIXVPR_MARK, 2).shape
    return {
        "out_channels": len(tensor_named(state, "aggregator.channel_proj.weight", 2)),
        "rows": rows,
        "depth": _count(state, "aggregator.mix."),
        "ratio": len(tensor_named(state, "aggregator.mix.0.mix.1.weight", 2)) / cells,
    }


def _convap_options(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    given = {ours: arguments[theirs] for ours, theirs in _PARTS.items() if theirs in arguments}
    return {"out_channels": len(tensor_named(state, "aggregator.channel_pool.weight", 4)), **given}


def _gem_name(ours: str) -> str:
    return "gem.p" if ours == "p" else ours.replace("linear.", "fc.", 1)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered layers with a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})


_AGGREGATORS = (
    _Aggregator("boq", "aggregator.proj_c.weight", _boq_options),
    _Aggregator("mixvpr", _MIXVPR_MARK, _mixvpr_options),
    _Aggregator("convap", "aggregator.channel_pool.weight", _convap_options),
    _Aggregator("gem", "aggregator.gem.p", their_name=_gem_name, linear="aggregator.fc.weight"),
    _Aggregator("gem_pool", "aggregator.p"),
)
_AVERAGE = _Aggregator("mean", "")
"""That of a file without weights of an aggregation."""


def convert_gsv(
    source: Source,
    choices: Choices,
    *,
    resnet_name: Callable[[str], str],
    image_sizes: tuple[int, int],
    resize: Resize,
) -> ConvertedEncoder:
    """Convert an encoder of DINOv2 without its last norm, or of a ResNet.

    Args:
        resnet_name: maps torchvision's names of the layers of a ResNet, such as `backbone.conv1.weight`, to those in
            the file.
        image_sizes: sides of the images that the program tests DINOv2 and a ResNet with.
        resize: interpolation by which the program resizes images.

    Raises:
        ValueError: see `find_dinov2`, `aggregation_dim` and `convert_encoder`.
    """
    has_dinov2 = DINOV2_MARK in source.state
    size = choices.image_size or _stored(source.content, _IMAGE_SIZES, _is_size)
    if has_dinov2 and _SALAD_MARK in source.state:
        choices = replace(choices, image_size=size or image_sizes[0])
        return convert_salad(
            source.found, choices, backbone=_DINOV2, salad="aggregator.", has_norm=False, resize=resize
        )
    aggregator = _find_aggregator(source)
    resnet = "" if has_dinov2 else best_architecture(RESNETS, source.state, "backbone.", lambda _: resnet_name)
    if aggregator.row.mark == _MIXVPR_MARK:
        stride = DINOV2_PATCH if has_dinov2 else empty_traits(f"torchvision/{resnet}").stride
        grid = _grid(source.state[_MIXVPR_MARK].shape[1], size, stride)
        aggregator.options["grid"], size = grid, (grid[0] * stride, grid[1] * stride)
    size = as_height_width(size or image_sizes[0 if has_dinov2 else 1])
    if has_dinov2:
        dinov2 = find_dinov2(aggregator.found, _DINOV2, size, has_norm=False)
        spec = _spec(f"timm/{dinov2.architecture}", size, resize, aggregator)
        spec = replace(spec, configuration=dinov2.configuration, interpolation=dinov2.interpolation)
        return convert_encoder(spec, dinov2.found, their_name=aggregator.their_name)
    spec = _spec(f"torchvision/{resnet}", size, resize, aggregator)
    return convert_encoder(
        spec, aggregator.found, their_name=lambda ours: aggregator.their_name(ours, backbone_name=resnet_name)
    )


def _spec(
    architecture: str, image_size: tuple[int, int], resize: Resize, aggregator: "_FoundAggregator"
) -> EncoderSpec:
    name, options = aggregator.row.aggregation, filled_options(aggregator.row.aggregation, aggregator.options)
    family, _, own_name = architecture.partition("/")
    mean, std = NORMALIZATIONS["imagenet"]
    return EncoderSpec(
        family=family,
        architecture=own_name,
        image_size=image_size,
        descriptor_dim=aggregation_dim(name, empty_traits(architecture), aggregator.dim, options, own_name),
        mean=mean,
        std=std,
        aggregation=name,
        aggregation_options=options,
        resize=resize,
    )


@dataclass(frozen=True)
class _FoundAggregator:
    """An aggregation among weights."""

    row: _Aggregator
    options: dict[str, Any]
    dim: int | None
    """Dimension of descriptors, if the options do not decide it."""
    found: FoundWeights
    """The weights, with those that the file leaves out."""

    def their_name(self, ours: str, backbone_name: Callable[[str], str] = lambda ours: ours) -> str:
        """Convert one of our names of the encoder's parameters to that among the weights."""
        if not ours.startswith("aggregation."):
            return backbone_name(ours)
        return f"aggregator.{self.row.their_name(ours.removeprefix('aggregation.'))}"


def _find_aggregator(source: Source) -> _FoundAggregator:
    """Find the aggregation among weights, with a remark on options that the file does not give."""
    found, state = source.found, source.state
    row = next((each for each in _AGGREGATORS if each.mark in state), _AVERAGE)
    arguments = _stored(source.content, _ARGUMENTS, lambda value: isinstance(value, Mapping)) or {}
    options = row.options(state, arguments)
    if row.mark == _MIXVPR_MARK:  # the first release has no bias
        found = replace(found, state={"aggregator.row_proj.bias": torch.zeros(options["rows"])} | found.state)
    if row.aggregation == "convap" and not _PARTS.keys() <= options.keys():
        remark = "The file does not give the rows and columns of the parts of Conv-AP: 2 and 2 are taken, as published."
        found = replace(found, remarks=(*found.remarks, remark))
    dim = len(tensor_named(state, row.linear, 2)) if row.linear else None
    return _FoundAggregator(row, options, dim, found)


def _grid(cells: int, image_size: ImageSize | None, stride: int) -> tuple[int, int]:
    """Return the rows and columns of feature maps of so many cells, a square if there is no image size.

    Raises:
        ValueError: maps of images of this size have other numbers of cells, or there is no such square.
    """
    side = math.isqrt(cells)
    grid = (side, side)
    if image_size is not None:
        height, width = as_height_width(image_size)
        grid = (height // stride, width // stride)
    if grid[0] * grid[1] != cells:
        raise ValueError(
            f"MixVPR takes feature maps of {cells} cells here, not of {grid[0]} x {grid[1]}: set `image_size` to the "
            f"height and width that it was trained with, in multiples of {stride}."
        )
    return grid


def _stored(content: Any, addresses: Iterable[tuple[str, ...]], is_valid: Callable[[Any], bool]) -> Any:
    """Return the first valid value at one of these addresses in a checkpoint; None if there is none."""
    for address in addresses:
        value = content
        for name in address:
            value = value.get(name) if isinstance(value, Mapping) else None
        if is_valid(value):
            return value
    return None


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value)
