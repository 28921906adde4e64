"""Detect the open_clip architecture of a CLIP's visual tower from the shapes of its weights."""

import math
import re
from collections.abc import Mapping
from typing import Any

import open_clip
from torch import Tensor

from progeo.convert.converted_encoder import tensor_named
from progeo.models.backbones.clip_configurations import known_architectures
from progeo.models.backbones.clip_towers import RESNET_STRIDE
from progeo.models.backbones.family import ImageSize
from progeo.models.backbones.position_embedding import as_height_width

_PLAIN = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
_PLAIN_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}


def tower_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def features_dim(visual: Mapping[str, Tensor]) -> int:
    """Return the dimension of a tower's image features."""
    if is_vit(visual):
        return tensor_named(visual, "proj", 2).shape[1]
    return len(tensor_named(visual, "attnpool.c_proj.weight", 2))


def is_vit(visual: Mapping[str, Tensor]) -> bool:
    """Return whether a visual tower is a ViT, else it is a ResNet; names are without prefix."""
    return "class_embedding" in visual


def tower_architecture(visual: Mapping[str, Tensor], *, quickgelu: bool, head_width: float | None = None) -> str:
    """Find the open_clip architecture with such a visual tower.

    Args:
        visual: weights of the tower, names without prefix.
        quickgelu: whether the activation is QuickGELU, as in OpenAI's CLIP, else GELU.
        head_width: dimension of an attention head, which shapes do not reveal; None if it is not known.

    Raises:
        ValueError: open_clip has no such architecture.
    """
    shape = _shape(visual) | ({} if head_width is None else {"head width": head_width})
    configs = {name: open_clip.get_model_config(name) for name in known_architectures()}
    fitting = [
        name
        for name, config in configs.items()
        if config.get("quick_gelu", False) == quickgelu and _shape_in(config).items() >= shape.items()
    ]
    if not fitting:
        raise ValueError(
            f"open_clip has no plain CLIP {'with QuickGELU' if quickgelu else 'with GELU'} whose visual tower has "
            f"{', '.join(f'{name} {value}' for name, value in shape.items())}."
        )
    return min(fitting, key=lambda name: (len(name), name))


def tower_image_size(visual: Mapping[str, Tensor], wanted: ImageSize | None) -> tuple[int, int]:
    """Return the image height and width in pixels that a tower's position embedding is for.

    Args:
        visual: weights of the tower, names without prefix.
        wanted: image size given by the user; None assumes a square.

    Raises:
        ValueError: the position embedding does not have the grid of the wanted size; or no size is given and its grid
            is not a square.
    """
    if is_vit(visual):
        embedding, cell_px = tensor_named(visual, "positional_embedding", 2), visual["conv1.weight"].shape[-1]
    else:
        embedding, cell_px = tensor_named(visual, "attnpool.positional_embedding", 2), RESNET_STRIDE
    cells = len(embedding) - 1
    side = math.isqrt(cells)
    is_square = side * side == cells
    if wanted is not None:
        height, width = as_height_width(wanted)
        rows, columns = height // cell_px, width // cell_px
        if rows * columns != cells or (is_square and rows != columns):
            own = f"{side} x {side}" if is_square else cells
            raise ValueError(
                f"`image_size` {height} x {width} is {rows} x {columns} cells of {cell_px} pixels, but the position "
                f"embedding is for {own} cells{': omit it' if is_square else ''}."
            )
        return height, width
    if not is_square:
        raise ValueError(
            f"The position embedding is for {cells} cells, not a square: set `image_size` to (height, width)."
        )
    return side * cell_px, side * cell_px


def _shape(visual: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read a tower's layers, width, patch size and embedding dimension (if known) from the shapes of its weights."""
    first = tensor_named(visual, "conv1.weight", 4)
    if is_vit(visual):
        return {
            "layers": _count(visual, r"transformer\.resblocks\.(\d+)\."),
            "width": len(first),
            "patch size": first.shape[-1],
            "embed dim": features_dim(visual),
        }
    shape = {
        "layers": [_count(visual, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)],
        "width": len(tensor_named(visual, "layer1.0.conv1.weight", 4)),
        "patch size": None,
    }
    if "attnpool.c_proj.weight" not in visual:  # missing from encoders that use the feature map
        return shape
    return {**shape, "embed dim": features_dim(visual)}


def _shape_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the same from a configuration of open_clip; empty if it is not of a plain CLIP."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if config.keys() - _PLAIN or vision.keys() - _PLAIN_VISION or text.keys() - _PLAIN_TEXT:
        return {}
    if not {"layers", "width", "patch_size"} <= vision.keys():
        return {}
    return {
        "layers": vision["layers"],
        "width": vision["width"],
        "patch size": vision["patch_size"],
        "embed dim": config["embed_dim"],
        "head width": vision.get("head_width", 64),
    }


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in names if (found := re.match(pattern, name))})
