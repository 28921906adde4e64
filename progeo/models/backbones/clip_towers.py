"""Visual towers of open_clip's CLIPs as backbones: one row of `KINDS` for each of its classes."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import partial
from typing import Any

import timm
import torch
from open_clip import CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import PatchDropout, ResidualAttentionBlock, VisionTransformer
from timm.layers import PatchDropout as TimmPatchDropout
from timm.layers import PatchDropoutWithIndices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from progeo.models.backbones import timm_layouts
from progeo.models.backbones.family import Features, Interpolation, Part, PositionEmbedding, Traits
from progeo.models.backbones.meta_run import meta_features, on_meta, remove_layers, unused_layers
from progeo.models.backbones.position_embedding import (
    as_height_width,
    check_sides,
    grid_of_patches,
    resize_positions,
)
from progeo.models.backbones.timm_layouts import Layout, measure_layout, own_size, prepare_network, resize_network

RESNET_STRIDE = 32
_PARTS: frozenset[Part] = frozenset({"map", "token"})


class TowerKind(ABC):
    """A class of visual towers: how its features are computed, and which images it takes.

    The token is the CLIP's own image features, not normalized. The map holds the patch tokens that the pooling reads,
    or the last feature map.
    """

    @abstractmethod
    def features(self, visual: Any, images: Tensor) -> Features:
        """Compute those parts of the features of normalized images (B, 3, H, W) that `with_parts` left."""

    @abstractmethod
    def traits(self, visual: Any) -> Traits:
        """Return what is known of a tower, with all parts that it has."""

    @abstractmethod
    def cells(self, visual: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of the feature map of images of (height, width) pixels."""

    @abstractmethod
    def resize(self, visual: Any, image_size: tuple[int, int], interpolation: Interpolation) -> None:
        """Prepare a tower for images of (height, width) pixels, in place."""

    @abstractmethod
    def remove_token(self, visual: Any) -> None:
        """Remove the layers that only the token passes, in place."""

    @abstractmethod
    def default_aggregation(self, vision: CLIPVisionCfg) -> str:
        """Return `gem` for a tower of convolutions, else `token`, from its settings."""

    def checkpoint_gradients(self, visual: Any) -> None:
        """Enable gradient checkpointing, see `Family.checkpoint_gradients`."""
        visual.set_grad_checkpointing(True)


class _ResNet(TowerKind):
    def features(self, visual: ModifiedResNet, images: Tensor) -> Features:
        found = visual.stem(images)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            found = layer(found)
        return Features(found, visual.attnpool(found) if "token" in parts_of(visual) else None)

    def traits(self, visual: ModifiedResNet) -> Traits:
        channels, stride = visual.layer4[-1].conv3.out_channels, RESNET_STRIDE
        grid = _grid_of_layer4(*as_height_width(visual.image_size))
        has_token = "token" in parts_of(visual)
        positions = PositionEmbedding("attnpool.positional_embedding", grid, stride, _grid_of_layer4)
        return Traits(
            channels, visual.output_dim, visual.output_dim, stride=stride, positions=positions if has_token else None
        )

    def cells(self, visual: ModifiedResNet, image_size: tuple[int, int]) -> tuple[int, int]:
        return _grid_of_layer4(*image_size)

    def resize(self, visual: ModifiedResNet, image_size: tuple[int, int], interpolation: Interpolation) -> None:
        positions = self.traits(visual).positions
        if positions is not None:
            resize_positions(visual, positions, image_size, interpolation)
        visual.image_size = image_size

    def remove_token(self, visual: ModifiedResNet) -> None:
        visual.attnpool = nn.Identity()

    def default_aggregation(self, vision: CLIPVisionCfg) -> str:
        return "gem"

    def checkpoint_gradients(self, visual: ModifiedResNet) -> None:
        raise ValueError("`gradient_checkpointing` is not possible with a ResNet of open_clip: leave it out.")


class _Vit(TowerKind):
    def features(self, visual: VisionTransformer, images: Tensor) -> Features:
        parts = parts_of(visual)
        found = self._tokens(visual, visual._embeds(images))
        pooled, patches = self._pooled(visual, found)
        grid = grid_of_patches(*images.shape[2:], patch=visual.patch_size)
        return Features(
            patches.mT.unflatten(2, grid) if "map" in parts else None,
            pooled @ visual.proj if "token" in parts else None,
        )

    def _tokens(self, visual: VisionTransformer, tokens: Tensor) -> Tensor:
        """Run the blocks on tokens (B, N, C): return all, or the class token alone (B, 1, C) if it is all that is read.

        The last block then computes the class token only, to which the others give keys and values.
        """
        *blocks, last = visual.transformer.resblocks
        reads_class_token = visual.pool_type == "tok" and visual.attn_pool is None and "map" not in parts_of(visual)
        if not reads_class_token or type(last) is not ResidualAttentionBlock:
            return visual.transformer(tokens)
        for block in blocks:
            recomputed = visual.transformer.grad_checkpointing
            tokens = checkpoint(block, tokens, use_reentrant=False) if recomputed else block(tokens)
        normed, token = last.ln_1(tokens), tokens[:, :1]
        token = token + last.ls_1(last.attention(normed[:, :1], normed, normed))
        return token + last.ls_2(last.mlp(last.ln_2(token)))

    def _pooled(self, visual: VisionTransformer, found: Tensor) -> tuple[Any, Any]:
        """Return what is projected to the token, if it is needed, and the patch tokens, of all tokens (B, N, C)."""
        if visual.attn_pool is not None:
            pooled, _ = visual._pool(found) if "token" in parts_of(visual) else (None, None)
            return pooled, visual.attn_pool.ln_k(found)[:, 1:]
        pooled, patches = visual._pool(found)
        return pooled, patches[:, 1:] if visual.pool_type == "none" else patches

    def traits(self, visual: VisionTransformer) -> Traits:
        grid_of = partial(grid_of_patches, patch=visual.patch_size)
        stride, grid = visual.patch_size[0], grid_of(*as_height_width(visual.image_size))
        return Traits(
            visual.conv1.out_channels,
            None if visual.pool_type == "none" else visual.output_dim,  # it pools no vector
            visual.output_dim,
            stride=stride,
            positions=PositionEmbedding("positional_embedding", grid, stride, grid_of),
        )

    def cells(self, visual: VisionTransformer, image_size: tuple[int, int]) -> tuple[int, int]:
        return grid_of_patches(*image_size, patch=visual.patch_size)

    def resize(self, visual: VisionTransformer, image_size: tuple[int, int], interpolation: Interpolation) -> None:
        positions = self.traits(visual).positions
        assert positions is not None
        resize_positions(visual, positions, image_size, interpolation)
        visual.image_size, visual.grid_size = image_size, positions.grid_of(*image_size)

    def remove_token(self, visual: VisionTransformer) -> None:
        visual.proj = None
        if visual.attn_pool is not None:
            remove_layers(visual, ("ln_post", "attn_pool.query", "attn_pool.ln_q", "attn_pool.attn"))
        elif visual.final_ln_after_pool:
            remove_layers(visual, ("ln_post",))

    def default_aggregation(self, vision: CLIPVisionCfg) -> str:
        return "token"


class _Timm(TowerKind):
    """A network of timm with open_clip's pooling and projection."""

    def features(self, visual: TimmModel, images: Tensor) -> Features:
        layout, parts = _prepared(visual), parts_of(visual)
        if "map" not in parts:
            return Features(None, visual(images))
        found = visual.trunk.forward_features(images)
        token = visual.head(visual.trunk.forward_head(found)) if "token" in parts else None
        return Features(layout.features(found, images.shape[2:]).map, token)

    def traits(self, visual: TimmModel) -> Traits:
        layout = _prepared(visual)
        return Traits(
            layout.channels,
            visual.token_dim,
            visual.token_dim or layout.channels,
            stride=layout.stride,
            side_multiple=layout.side_multiple,
            only_size=layout.only_size,
            positions=timm_layouts.positions_of(visual.trunk, "trunk."),
        )

    def cells(self, visual: TimmModel, image_size: tuple[int, int]) -> tuple[int, int]:
        return _prepared(visual).cells(image_size)

    def resize(self, visual: TimmModel, image_size: tuple[int, int], interpolation: Interpolation) -> None:
        layout = _prepared(visual)
        if layout.only_size is None:
            check_sides("`image_size`", *image_size, self.traits(visual))
        resize_network(visual.trunk, image_size, interpolation, visual.trunk.pretrained_cfg["architecture"])
        visual.image_size = image_size

    def remove_token(self, visual: TimmModel) -> None:
        _prepared(visual)
        visual.head = nn.Sequential()
        trunk = visual.trunk
        remove_layers(trunk, unused_layers(timm_layouts.read_features, trunk, own_size(trunk), ["map"]))

    def default_aggregation(self, vision: CLIPVisionCfg) -> str:
        return "gem" if _trunk_layout(vision.timm_model_name).first_patch is None else "token"

    def checkpoint_gradients(self, visual: TimmModel) -> None:
        timm_layouts.checkpoint_gradients(visual.trunk)


KINDS: dict[type[nn.Module], TowerKind] = {ModifiedResNet: _ResNet(), VisionTransformer: _Vit(), TimmModel: _Timm()}
"""Kinds of visual towers by open_clip's class."""


def kind_of(visual: nn.Module) -> TowerKind:
    """Return the kind of a visual tower."""
    return KINDS[type(visual)]


def kind_in(vision: CLIPVisionCfg) -> TowerKind:
    """Return the kind of tower that open_clip builds from its settings."""
    if vision.timm_model_name:
        return KINDS[TimmModel]
    return KINDS[VisionTransformer if isinstance(vision.layers, int) else ModifiedResNet]


def parts_of(visual: nn.Module) -> frozenset[Part]:
    """Return the parts of the features that a visual tower computes."""
    return getattr(visual, "parts", _PARTS)


def resize_input(visual: nn.Module, image_size: tuple[int, int], interpolation: Interpolation) -> None:
    """Prepare a visual tower in place for images of (height, width) pixels, resizing a position embedding.

    Raises:
        ValueError: a tower that does not take this size; the message names those that it takes.
    """
    kind_of(visual).resize(visual, image_size, interpolation)


def with_parts(visual: Any, parts: Collection[Part]) -> nn.Module:
    """Let a visual tower compute only these parts of its features, and remove the layers that none passes, in place."""
    for module in visual.modules():
        if isinstance(module, PatchDropout | TimmPatchDropout | PatchDropoutWithIndices):
            module.prob = 0.0  # a map needs all patches
    if "token" not in parts:
        kind_of(visual).remove_token(visual)
    visual.parts = frozenset(parts)
    return visual


def positions_of(visual: nn.Module) -> PositionEmbedding | None:
    """Return the position embedding of a visual tower; None for one without an embedding that can be resized."""
    return kind_of(visual).traits(visual).positions


def _grid_of_layer4(height: int, width: int) -> tuple[int, int]:
    # The first convolution rounds halves up; the poolings after it round down.
    return (height + 1) // 2 // (RESNET_STRIDE // 2), (width + 1) // 2 // (RESNET_STRIDE // 2)


def _prepared(visual: TimmModel) -> Layout:
    """Return the layout of a tower's network of timm; prepare both, in place, for the size in the configuration."""
    trunk = visual.trunk
    if not hasattr(trunk, "layout"):
        name = trunk.pretrained_cfg["architecture"]
        trunk.layout = _trunk_layout(name)
        prepare_network(trunk)
        image = as_height_width(visual.image_size)
        resize_network(trunk, image, "edges", name)
        visual.image_size = image
        visual.token_dim = _token_dim(visual)
    return trunk.layout


@functools.cache
def _trunk_layout(architecture: str) -> Layout:
    with on_meta():
        network = timm.create_model(architecture, num_classes=0).eval()
    prepare_network(network)
    return measure_layout(network, architecture)


def _token_dim(visual: TimmModel) -> int | None:
    """Return the dimension of a tower's image features; None if they are not one vector."""
    layout: Layout = visual.trunk.layout
    rows, columns = layout.cells(own_size(visual.trunk))
    if layout.first_patch is None:
        shape = [rows, columns, layout.channels] if layout.channels_last else [layout.channels, rows, columns]
    else:
        shape = [layout.first_patch + rows * columns, layout.channels]

    def pooled(visual: Any, images: Tensor) -> Any:
        return visual.head(visual.trunk.forward_head(torch.empty(1, *shape, device="meta")))

    found: Any = meta_features(pooled, visual, (1, 1))
    return found.shape[1] if found.ndim == 2 else None
