"""Import DINOv2 of its authors, and find it in the files of all programs whose backbone it is."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from progeo.convert.converted_encoder import (
    Choices,
    ConvertedEncoder,
    convert_encoder,
    single_precision,
    tensor_named,
)
from progeo.convert.source import Source
from progeo.models.backbones import FAMILIES, empty_traits
from progeo.models.backbones.family import ImageSize, Interpolation
from progeo.models.backbones.position_embedding import as_height_width, check_sides
from progeo.models.backbones.timm import PRENORM, kept_positions
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS
from progeo.models.weight_files.checkpoints import FoundWeights

_SIZES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
"""Names by channels and number of blocks."""
DINOV2_PATCH = 14
"""Pixels per row and column of its feature map."""
_IMAGE_SIZE = 518
"""Side of the images that the last steps of its training were with."""
_BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.")
"""A block, of which some files name a chunk, too: the second of two numbers counts all blocks."""
_SCALE = re.compile(r"blocks\.(?:\d+\.)?0\.ls1\.gamma")
_TO_TIMM = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}
"""Layers of the giant, whose activation is SwiGLU."""


@dataclass(frozen=True)
class FoundDinov2:
    """A DINOv2 among weights, with the fields that it gives an `EncoderSpec` of the family `timm`."""

    architecture: str
    """Timm's name."""
    configuration: dict[str, Any]
    """The size of its position embedding, see `Timm.configuration`."""
    interpolation: Interpolation
    found: FoundWeights
    """The weights: `backbone.*` with timm's names, and all others."""


def is_dinov2(source: Source) -> bool:
    """Return whether a file has the parameter names of DINOv2 alone, as its authors publish it."""
    return {"cls_token", "pos_embed", "mask_token"} <= source.state.keys() and any(map(_SCALE.match, source.state))


def read_dinov2(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert DINOv2 to an encoder of its class token; for errors see `find_dinov2` and `convert_encoder`."""
    image_size = choices.image_size or _IMAGE_SIZE
    dinov2 = find_dinov2(source.found, "", image_size)
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family="timm",
        architecture=dinov2.architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=len(tensor_named(dinov2.found.state, "backbone.norm.weight", 1)),
        normalized=True if choices.normalized is None else choices.normalized,
        mean=mean,
        std=std,
        aggregation="token",
        interpolation=dinov2.interpolation,
        configuration=dinov2.configuration,
    )
    return convert_encoder(spec, dinov2.found, their_name=lambda ours: ours)


def find_dinov2(found: FoundWeights, prefix: str, image_size: ImageSize, *, has_norm: bool = True) -> FoundDinov2:
    """Rename a DINOv2 among weights to timm's names.

    Args:
        found: the weights; those without the prefix keep their names. The mask token, which only pretraining uses, is
            ignored.
        prefix: what the names of the DINOv2 begin with, such as `backbone.model.`.
        image_size: that of the encoder.
        has_norm: whether the program normalizes tokens by the last layer norm, which is else ignored.

    Raises:
        ValueError: a missing tensor, the sizes of no DINOv2, or an image size that it does not take.
    """
    theirs = {name.removeprefix(prefix): value for name, value in found.state.items() if name.startswith(prefix)}
    architecture = _architecture(theirs)
    check_sides("`image_size`", *as_height_width(image_size), empty_traits(f"timm/{architecture}"))
    ignored = [name for name in theirs if name == "mask_token" or (name.startswith("norm.") and not has_norm)]
    ours = {_timm_name(name): tensor for name, tensor in theirs.items() if name not in ignored}
    embedding = tensor_named(theirs, "pos_embed", 3)
    side = math.isqrt(embedding.shape[1] - 1)
    if side * side != embedding.shape[1] - 1:
        raise ValueError(f"{prefix}pos_embed should be of a class token and a square, is {tuple(embedding.shape)}.")
    if "register_tokens" in theirs:  # timm has the position of the class token in the token itself
        ours["cls_token"] = single_precision(theirs["cls_token"]) + single_precision(embedding[:, :1])
        ours["pos_embed"] = embedding[:, 1:]
        ours["reg_token"] = ours.pop("register_tokens")
    others = {name: tensor for name, tensor in found.state.items() if not name.startswith(prefix)}
    renamed = {f"backbone.{name}": tensor for name, tensor in ours.items()}
    return FoundDinov2(
        architecture if has_norm else f"{architecture}{PRENORM}",
        kept_positions(side * DINOV2_PATCH),
        FAMILIES["timm"].interpolation(architecture),
        replace(found, state=others | renamed, ignored=(*found.ignored, *(f"{prefix}{name}" for name in ignored))),
    )


def _architecture(state: Mapping[str, Tensor]) -> str:
    """Return timm's name of the DINOv2 with weights of these names (without prefix) and shapes."""
    channels = tensor_named(state, "cls_token", 3).shape[2]
    blocks = len({block[1] for name in state if (block := _BLOCK.match(name))})
    if (channels, blocks) not in _SIZES:
        known = ", ".join(f"{size} ({each} channels, {count} blocks)" for (each, count), size in _SIZES.items())
        raise ValueError(f"A ViT of {channels} channels and {blocks} blocks is no DINOv2: there are {known}.")
    if "register_tokens" not in state:
        return f"vit_{_SIZES[channels, blocks]}_patch{DINOV2_PATCH}_dinov2"
    registers = tensor_named(state, "register_tokens", 3).shape[1]
    return f"vit_{_SIZES[channels, blocks]}_patch{DINOV2_PATCH}_reg{registers}_dinov2"


def _timm_name(name: str) -> str:
    name = _BLOCK.sub(r"blocks.\1.", name, count=1)
    for theirs, ours in _TO_TIMM.items():
        name = name.replace(theirs, ours)
    return name
