"""How the features of any network of timm are read and which images it takes, found out on the meta device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from timm.layers import RotaryEmbeddingCat
from timm.models import Eva, VisionTransformer, VisionTransformerRelPos
from torch import Tensor, nn

from progeo.models.backbones.family import Features, Interpolation, PositionEmbedding
from progeo.models.backbones.meta_run import meta_features
from progeo.models.backbones.position_embedding import grid_of_patches, resize_positions

POSITIONS = "pos_embed"
"""Name of the learned position embedding."""


@dataclass(frozen=True)
class Layout:
    """How the output of a network's `forward_features` is read, and which images it takes."""

    channels: int
    stride: int
    """Pixels per cell of the feature map."""
    first_patch: int | None
    """Tokens before those of the patches; None for an output that is a feature map."""
    has_class_token: bool
    channels_last: bool
    """The feature map is (B, h, w, C)."""
    has_positions: bool
    """It has a position embedding, learned or rotary, that can be resized."""
    side_multiple: int
    only_size: tuple[int, int] | None = None
    """Height and width if the network takes no other images."""
    rounds_up: bool = True
    """Whether pixels beyond the last complete patch have a cell of their own."""

    def cells(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return the rows and columns of the feature map of images of this height and width."""
        more = self.stride - 1 if self.rounds_up else 0
        return (image_size[0] + more) // self.stride, (image_size[1] + more) // self.stride

    def features(self, found: Tensor, image_size: Sequence[int]) -> Features:
        """Read the map, and the class token if there is one, in the output of `forward_features`."""
        if self.first_patch is None:
            return Features(found.permute(0, 3, 1, 2) if self.channels_last else found, None)
        patches = found[:, self.first_patch :].mT
        return Features(patches.unflatten(2, self.cells(image_size)), found[:, 0] if self.has_class_token else None)


def read_features(network: Any, images: Tensor) -> Features:
    """Run `forward_features` of a network that has its layout as `network.layout`."""
    return network.layout.features(network.forward_features(images), images.shape[2:])


def measure_layout(network: Any, architecture: str) -> Layout:
    """Find out how the features of a network of timm are read, and which images it takes.

    Args:
        network: a network only for this, prepared by `prepare_network`; most of its blocks are removed.
        architecture: its name, for the error.

    Raises:
        ValueError: a network without a feature map and without patch tokens.
    """
    if isinstance(network, VisionTransformer | Eva | VisionTransformerRelPos):
        del network.blocks[2:]  # all blocks are the same
    own, stride = own_size(network), network.feature_info[-1]["reduction"]
    found: Any = meta_features(_output, network, own)
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    if isinstance(found, Tensor) and found.ndim == 4:
        layout = Layout(found.shape[3 if channels_last else 1], stride, None, False, channels_last, False, 1)
    else:
        tokens = found.shape[1] if isinstance(found, Tensor) and found.ndim == 3 else -1
        layout = Layout(
            0, stride, 0, False, False, False, stride, rounds_up=tokens >= prod(-(-s // stride) for s in own)
        )
        first = tokens - prod(layout.cells(own))
        if first < 0 or first != (getattr(network, "num_prefix_tokens", None) or min(first, 1)):
            raise ValueError(f"`architecture` {architecture!r} of timm has neither a feature map nor patch tokens.")
        layout = replace(
            layout,
            channels=found.shape[2],
            first_patch=first,
            has_class_token=first > (getattr(network, "num_reg_tokens", 0) or 0),
            has_positions=_has_positions(network, first),
        )
    network.layout = layout
    for multiple in sorted({1, layout.stride, 224}):
        if _takes_multiples(network, multiple):
            network.layout = replace(layout, side_multiple=multiple)
            return network.layout
    network.layout = replace(layout, side_multiple=1, has_positions=False, only_size=own)
    return network.layout


def prepare_network(network: Any) -> None:
    """Let a network with a position embedding take images of any size, once the embedding is resized."""
    size = own_size(network)
    network.input_size = size
    learned = isinstance(getattr(network, POSITIONS, None), nn.Parameter)
    if (learned or _rotary(network) is not None) and hasattr(network, "patch_embed"):
        network.patch_embed.strict_img_size = False
        if any(side % each for side, each in zip(size, network.patch_embed.patch_size, strict=True)):
            network.patch_embed.img_size = None  # else it refuses pixels beyond the last complete patch


def own_size(network: Any) -> tuple[int, int]:
    """Return the height and width of the images that a network was built for, or resized to."""
    if hasattr(network, "input_size"):
        return network.input_size
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    return tuple(size or network.pretrained_cfg["input_size"][1:])


def positions_of(network: Any, prefix: str = "") -> PositionEmbedding | None:
    """Return the position embedding of a network with a layout; None if it has none that can be resized.

    Args:
        prefix: of the names of its parameters in a module that holds the network.
    """
    layout: Layout = network.layout
    if not layout.has_positions:
        return None
    patch, rope = network.patch_embed, _rotary(network)
    return PositionEmbedding(
        f"{prefix}{POSITIONS}" if getattr(network, POSITIONS, None) is not None else None,
        tuple(patch.grid_size),
        layout.stride,
        partial(grid_of_patches, patch=(layout.stride, layout.stride)),
        None if rope is None else partial(_rotations, rope, f"{prefix}rope.pos_embed"),
    )


def resize_network(network: Any, image_size: tuple[int, int], interpolation: Interpolation, architecture: str) -> None:
    """Prepare a network with a layout for images of this height and width, in place.

    Raises:
        ValueError: a network that does not take this size; the message names those that it takes.
    """
    layout: Layout = network.layout
    if image_size == own_size(network):
        return
    if (positions := positions_of(network)) is not None:
        resize_positions(network, positions, image_size, interpolation)
        set_grid(network, image_size)
    elif layout.only_size is not None:
        try:
            network.set_input_size(img_size=image_size)
            network.layout = replace(layout, only_size=image_size)
            meta_features(read_features, network, image_size)
        except Exception:  # anything can fail in a network that is not made for this size
            raise ValueError(
                f"`image_size` of {architecture} cannot be {image_size[0]} x {image_size[1]}: use "
                f"{layout.only_size[0]} x {layout.only_size[1]}, or perhaps a multiple of it."
            ) from None
    network.input_size = image_size


def set_grid(network: Any, image_size: tuple[int, int]) -> None:
    """Give a network with positions the grid of images of this height and width; its learned embedding stays."""
    network.patch_embed.set_input_size(img_size=image_size)
    if (rope := _rotary(network)) is not None:
        rope.update_feat_shape(network.patch_embed.grid_size)
    if not network.layout.rounds_up:
        network.patch_embed.img_size = None
    network.input_size = image_size


def checkpoint_gradients(network: Any) -> None:
    """Enable gradient checkpointing of a network of timm, see `Family.checkpoint_gradients`."""
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise ValueError("`gradient_checkpointing` is not possible with this network of timm.") from None


def fill_buffers(network: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Compute, in place, the buffers of a network on the meta device that state dicts do not hold.

    Args:
        build: builds the network with values, from which buffers are taken if timm cannot compute them alone: those of
            a SwinV2 depend on buffers or weights on the meta device.
    """
    if not _can_fill_buffers(network):
        for module, other in zip(network.modules(), build().modules(), strict=True):
            module._buffers |= {name: other._buffers[name] for name in module._non_persistent_buffers_set}


def _can_fill_buffers(network: Any) -> bool:
    try:
        for module in network.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                for name in module._non_persistent_buffers_set:
                    if (buffer := module._buffers[name]) is not None:
                        module._buffers[name] = torch.empty_like(buffer, device="cpu")
                module.init_non_persistent_buffers()
    except NotImplementedError:  # values are copied from the meta device
        return False
    state = network.state_dict()
    return not any(buffer.is_meta for name, buffer in network.named_buffers() if name not in state)


def _output(network: Any, images: Tensor) -> Any:
    return network.forward_features(images)


def _takes_multiples(network: Any, multiple: int) -> bool:
    """Return whether a network takes images of other sizes in multiples of some pixels."""
    rows, columns = (side // multiple + 1 + extra for side, extra in zip(own_size(network), (2, 1), strict=True))
    size = (rows * multiple, columns * multiple)
    other = {}
    try:
        if (positions := positions_of(network)) is not None:
            grid = positions.grid_of(*size)
            if positions.name is not None:
                embedding = network.get_parameter(positions.name)
                count = embedding.shape[1] - prod(positions.grid) + prod(grid)
                other[positions.name] = embedding.new_empty(1, count, embedding.shape[2])
            if positions.computed is not None:
                other |= positions.computed(grid)
        found = meta_features(read_features, network, size, other).map
    except Exception:  # anything can fail in a network that is built for one size
        return False
    return found is not None


def _has_positions(network: Any, num_prefix_tokens: int) -> bool:
    embedding = getattr(network, POSITIONS, None)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None:
        return False
    if embedding is None:
        return _rotary(network) is not None
    is_grid = isinstance(embedding, nn.Parameter) and embedding.ndim == 3
    return is_grid and embedding.shape[1] - prod(grid) in (0, num_prefix_tokens)


def _rotary(network: Any) -> RotaryEmbeddingCat | None:
    """Return the rotary position embedding of a network that is computed for one grid, if it has one."""
    rope = getattr(network, "rope", None)
    return rope if isinstance(rope, RotaryEmbeddingCat) and rope.feat_shape is not None else None


def _rotations(rope: RotaryEmbeddingCat, name: str, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Compute the buffer of a rotary position embedding for another grid, as `update_feat_shape` does."""
    assert rope.pos_embed is not None
    return {name: rope._build_embed_cat(list(grid), rope.get_buffer("bands"), dtype=rope.pos_embed.dtype)}
