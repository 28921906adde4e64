"""Image sizes of CLIP's visual towers, and their position embeddings resized to fit."""

import math

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

RESNET_STRIDE = 32
ImageSize = int | tuple[int, int]


def as_height_width(image_size: ImageSize) -> tuple[int, int]:
    """Convert an image size to (height, width) in pixels.

    Raises:
        ValueError: a side below 32 pixels.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < RESNET_STRIDE:
        raise ValueError(f"`image_size` must be at least {RESNET_STRIDE} pixels a side, got {height} x {width}.")
    return height, width


def position_embedding_name(visual: nn.Module) -> str | None:
    """Return the name of a backbone's position embedding, or None for a backbone that outputs feature maps."""
    if isinstance(visual, VisionTransformer):
        return "positional_embedding"
    has_pooling = isinstance(visual, ModifiedResNet) and isinstance(visual.attnpool, AttentionPool2d)
    return "attnpool.positional_embedding" if has_pooling else None


def position_stride(visual: VisionTransformer | ModifiedResNet) -> int:
    """Return the stride of the position embedding: pixels per cell of its grid."""
    return visual.patch_size[0] if isinstance(visual, VisionTransformer) else RESNET_STRIDE


def visual_features(visual: nn.Module, images: Tensor, *, align_corners: bool = False) -> Tensor:
    """Run a visual tower on images (B, 3, H, W) of any size, with its position embedding resized to fit."""
    if position_embedding_name(visual) is None or _grid_of(visual, *images.shape[2:]) == _own_grid(visual):
        return visual(images)
    return resized_features(visual, images, align_corners=align_corners)


def resized_features(visual: nn.Module, images: Tensor, *, align_corners: bool = False) -> Tensor:
    """Run a visual tower on images (B, 3, H, W), always resizing its position embedding, if any, in float32.

    Resizing to the same size changes nothing, so an exported graph for all sizes needs no branch on the size.
    """
    if (name := position_embedding_name(visual)) is None:
        return visual(images)
    grid, embedding = _grid_of(visual, *images.shape[2:]), visual.get_parameter(name)
    resized = _resized_embedding(embedding.float(), _own_grid(visual), grid, align_corners).to(embedding.dtype)
    return functional_call(visual, {name: resized}, (images,))


def resize_input(
    visual: VisionTransformer | ModifiedResNet, image_size: tuple[int, int], *, align_corners: bool
) -> None:
    """Resize the position embedding in place for inputs of (height, width) pixels; see `load_clip`."""
    old_grid, new_grid = _own_grid(visual), _grid_of(visual, *image_size)
    visual.image_size = image_size
    owner: nn.Module = visual.attnpool if isinstance(visual, ModifiedResNet) else visual
    if isinstance(visual, VisionTransformer):
        visual.grid_size = new_grid
    if new_grid != old_grid:
        embedding = owner.get_parameter("positional_embedding").detach()
        owner.positional_embedding = nn.Parameter(_resized_embedding(embedding, old_grid, new_grid, align_corners))


def resize_stored_embedding(state: dict[str, Tensor], visual: nn.Module) -> None:
    """Resize in place the position embedding of a CLIP's state dict that was trained on squares of another size."""
    own = position_embedding_name(visual)
    name = f"visual.{own}"
    if own is None or name not in state or state[name].ndim != 2 or len(state[name]) == len(visual.get_parameter(own)):
        return
    cells = len(state[name]) - 1
    side = math.isqrt(cells)
    if side * side != cells or cells == 0:
        raise ValueError(f"its position embedding is for {cells} cells, which are no square.")
    state[name] = _resized_embedding(state[name].float(), (side, side), _own_grid(visual), False)


def _own_grid(visual: VisionTransformer | ModifiedResNet) -> tuple[int, int]:
    """Return the rows and columns of the position embedding's grid."""
    return _grid_of(visual, *as_height_width(visual.image_size))


def _grid_of(visual: VisionTransformer | ModifiedResNet, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of the position embedding that images of this size need."""
    if isinstance(visual, VisionTransformer):
        return height // visual.patch_size[0], width // visual.patch_size[1]
    # The first convolution rounds halves up; the poolings after it round down.
    return (height + 1) // 2 // (RESNET_STRIDE // 2), (width + 1) // 2 // (RESNET_STRIDE // 2)


def _resized_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], align_corners: bool
) -> Tensor:
    """Resize a position embedding (1 + h w, C) to another grid, bicubic; the first (class or mean) token is kept."""
    grid = embedding[1:].T.reshape(1, -1, *old_grid)
    # With align_corners as in published ProGEO; without it as open_clip resizes its checkpoints.
    resized = F.interpolate(grid, new_grid, mode="bicubic", align_corners=align_corners, antialias=not align_corners)
    return torch.cat([embedding[:1], resized.flatten(2)[0].T])
