"""To be replaced by `resized_embedding` and `resize_positions` of position_embedding.py."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.backbones.family import Interpolation, PositionEmbedding


def resize_positions(
    network: nn.Module, positions: PositionEmbedding, image_size: tuple[int, int], interpolation: Interpolation
) -> None:
    """Resize the position embedding of a network in place for images of (height, width) pixels."""
    grid = positions.grid_of(*image_size)
    if grid != positions.grid:
        owner, _, name = positions.name.rpartition(".")
        embedding = network.get_parameter(positions.name).detach()
        resized = nn.Parameter(resized_embedding(embedding, positions.grid, grid, interpolation))
        setattr(network.get_submodule(owner), name, resized)


def resized_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """Resize a position embedding (P + h w, E) or (1, P + h w, E) to another grid; the first P rows are kept."""
    if embedding.ndim == 3:
        return resized_embedding(embedding[0], old_grid, new_grid, interpolation)[None]
    kept = len(embedding) - old_grid[0] * old_grid[1]
    grid = embedding[kept:].T.reshape(1, -1, *old_grid)
    if interpolation == "dinov2":
        scale = [(new + 0.1) / old for new, old in zip(new_grid, old_grid, strict=True)]
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    else:
        corners = interpolation == "corners"
        resized = F.interpolate(grid, new_grid, mode="bicubic", align_corners=corners, antialias=not corners)
    return torch.cat([embedding[:kept], resized.flatten(2)[0].T])
