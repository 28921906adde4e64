"""Visual towers of CLIPs: their position embeddings, and the layers that an encoder needs."""

from collections.abc import Collection
from functools import partial

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from progeo.models.backbones.family import Interpolation, Part, PositionEmbedding
from progeo.models.backbones.position_embedding import as_height_width, grid_of_patches, resize_positions

RESNET_STRIDE = 32


def resize_input(
    visual: VisionTransformer | ModifiedResNet, image_size: tuple[int, int], interpolation: Interpolation
) -> None:
    """Resize the position embedding of a visual tower in place for inputs of (height, width) pixels."""
    positions = positions_of(visual)
    assert positions is not None
    resize_positions(visual, positions, image_size, interpolation)
    visual.image_size = image_size
    if isinstance(visual, VisionTransformer):
        visual.grid_size = positions.grid_of(*image_size)


def with_parts(
    visual: VisionTransformer | ModifiedResNet, parts: Collection[Part]
) -> VisionTransformer | ModifiedResNet:
    """Remove the layers of a visual tower, changed in place, that only an unused token passes."""
    if isinstance(visual, ModifiedResNet):
        if "token" not in parts:
            visual.attnpool = nn.Identity()
        return visual
    if "map" in parts:
        visual.output_tokens = True
    if "token" not in parts:
        visual.proj = None
    return visual


def positions_of(visual: nn.Module) -> PositionEmbedding | None:
    """Return the position embedding of a visual tower; None for a ResNet without attention pooling."""
    assert isinstance(visual, VisionTransformer | ModifiedResNet)
    size = as_height_width(visual.image_size)
    if isinstance(visual, VisionTransformer):
        grid_of = partial(grid_of_patches, patch=visual.patch_size)
        return PositionEmbedding("positional_embedding", grid_of(*size), visual.patch_size[0], grid_of)
    if isinstance(visual.attnpool, nn.Identity):
        return None
    return PositionEmbedding("attnpool.positional_embedding", _grid_of_layer4(*size), RESNET_STRIDE, _grid_of_layer4)


def _grid_of_layer4(height: int, width: int) -> tuple[int, int]:
    # The first convolution rounds halves up; the poolings after it round down.
    return (height + 1) // 2 // (RESNET_STRIDE // 2), (width + 1) // 2 // (RESNET_STRIDE // 2)
