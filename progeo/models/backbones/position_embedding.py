"""Image sizes of backbones, and learned position embeddings resized to fit."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from progeo.models.backbones.family import Family, Features, ImageSize, Interpolation, PositionEmbedding, Traits

MIN_SIDE = 32
"""Minimum height and width in pixels of the images of an encoder."""
_CUBIC = -0.75
"""Parameter a of torch's bicubic kernel."""


def as_height_width(image_size: ImageSize, *, name: str = "image_size") -> tuple[int, int]:
    """Convert an image size to (height, width) in pixels.

    Args:
        name: what it is called in errors.

    Raises:
        ValueError: a side below 32 pixels.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"`{name}` must be at least {MIN_SIDE} pixels a side, got {height} x {width}.")
    return height, width


def grid_of_patches(height: int, width: int, *, patch: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of patches of (height, width) pixels in an image of this height and width."""
    return height // patch[0], width // patch[1]


def check_sides(what: str, height: int, width: int, traits: Traits) -> None:
    """Refuse images that a backbone does not take.

    Args:
        what: what has this height and width, as text for the error.
        traits: of the backbone.

    Raises:
        ValueError: a size that the traits exclude, or a side below 32 pixels.
    """
    got = f"got {height} x {width}"
    if traits.only_size not in (None, (height, width)):
        only = " x ".join(map(str, traits.only_size or ()))
        raise ValueError(f"{what} must be {only} pixels, the only size of this network, {got}.")
    step, min_side = traits.side_multiple, max(MIN_SIDE, traits.min_side)
    if min(height, width) < min_side or height % step or width % step:
        multiples = "" if step == 1 else f", in multiples of {step}"
        raise ValueError(f"{what} must be at least {min_side} pixels a side{multiples}, {got}.")


def sample_size(traits: Traits) -> tuple[int, int]:
    """Return the height and width of small images that a backbone takes: at least 64 pixels and one cell."""
    step = math.lcm(traits.side_multiple, traits.stride)
    side = -(-max(2 * MIN_SIDE, traits.min_side) // step) * step
    return traits.only_size or (side, side)


def sized_features(
    family: Family,
    network: nn.Module,
    images: Tensor,
    positions: PositionEmbedding | None,
    interpolation: Interpolation,
    *,
    always: bool = False,
) -> Features:
    """Run a network on images (B, 3, H, W) of any size, with its position embedding resized to fit.

    Args:
        family, positions: of the network.
        always: resize the embedding, in float32, even if it fits, which changes nothing: an exported graph for all
            sizes then needs no branch on the size.
    """
    if positions is None:
        return family.features(network, images)
    grid = positions.grid_of(*images.shape[2:])
    if not always and grid == positions.grid:
        return family.features(network, images)
    tensors = dict(positions.computed(grid)) if positions.computed else {}
    if positions.name is not None:
        embedding = network.get_parameter(positions.name)
        resized = resized_embedding(embedding.float(), positions.grid, grid, interpolation)
        tensors[positions.name] = resized.to(embedding.dtype)
    replaced = {f"network.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(_Features(family, network), replaced, (images,))


class _Features(nn.Module):
    """The features of a network as a module, whose tensors `functional_call` can replace."""

    def __init__(self, family: Family, network: nn.Module) -> None:
        super().__init__()
        self.family, self.network = family, network

    def forward(self, images: Tensor) -> Features:
        return self.family.features(self.network, images)


def resize_positions(
    network: nn.Module, positions: PositionEmbedding, image_size: tuple[int, int], interpolation: Interpolation
) -> None:
    """Resize the learned position embedding of a network in place for images of (height, width) pixels."""
    grid = positions.grid_of(*image_size)
    if grid != positions.grid and positions.name is not None:
        owner, _, name = positions.name.rpartition(".")
        embedding = network.get_parameter(positions.name)
        resized = resized_embedding(embedding.detach(), positions.grid, grid, interpolation)
        setattr(network.get_submodule(owner), name, nn.Parameter(resized, requires_grad=embedding.requires_grad))


def resized_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Resize a position embedding (P + h w, E) or (1, P + h w, E) to another grid; the first P rows are kept."""
    if embedding.ndim == 3:
        return resized_embedding(embedding[0], old_grid, new_grid, interpolation)[None]
    kept = len(embedding) - old_grid[0] * old_grid[1]
    grid = embedding[kept:].unflatten(0, old_grid)  # (h, w, E)
    if interpolation == "dinov2":
        same = torch.full((), new_grid[0]).eq(old_grid[0]) & torch.full((), new_grid[1]).eq(old_grid[1])
        rows, columns = (
            _dinov2_weights(*sizes, same).to(grid.device, non_blocking=True)
            for sizes in zip(old_grid, new_grid, strict=True)
        )
        resized = rows @ grid.double().flatten(1)  # in float64, which autocast leaves as it is
        resized = (columns @ resized.unflatten(1, grid.shape[1:])).to(grid.dtype)
    else:
        corners = interpolation == "corners"
        channels_first = grid.permute(2, 0, 1)[None]
        resized = F.interpolate(channels_first, new_grid, mode="bicubic", align_corners=corners, antialias=not corners)
        resized = resized[0].permute(1, 2, 0)
    return torch.cat([embedding[:kept], resized.flatten(0, 1)])


def _dinov2_weights(old: int, new: int, same: Tensor) -> Tensor:
    """Compute the float64 weights (new, old) of DINOv2's interpolation from `old` to `new` cells along an axis.

    It is bicubic at the scale (new + 0.1) / old, without antialiasing, where cells beyond the edge equal those at it.
    Where `same` (), a boolean, the grid keeps its size and the weights are the identity. The scale is a tensor, and
    the resizing a matrix product, so that they can be exported for every size.
    """
    scale = (torch.full((), new, dtype=torch.float64) + 0.1 * (~same).double()) / old
    centers = (torch.arange(new, dtype=torch.float64) + 0.5) / scale - 0.5
    first, cells = centers.floor(), torch.arange(old, dtype=torch.float64)
    weights = torch.zeros((), dtype=torch.float64)
    for step in range(-1, 3):
        distance = (centers - first - step).abs()
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
        cell = (first + step).clamp(0, old - 1)
        weights = weights + torch.where(distance <= 1, near, far)[:, None] * (cell[:, None] == cells)
    return weights
