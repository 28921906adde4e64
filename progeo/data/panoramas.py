"""Perspective views of equirectangular panoramas."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from progeo.image_files import open_image, taking_turns
from progeo.pixels import pixels_of
from progeo.remote_files import RemotePath

_PANORAMA_PIXELS = 1.5
"""Panorama pixels per view pixel at the center of a view. At its sides, a degree has up to twice as many pixels."""


def width_for(fov_deg: float, size: int) -> int:
    """Compute the panorama width in pixels that views of this field of view and size need; larger ones are resized."""
    pixels_per_radian = size / 2 / math.tan(math.radians(fov_deg) / 2)
    return math.ceil(_PANORAMA_PIXELS * 2 * math.pi * pixels_per_radian / 8) * 8


def read_panorama(path: Path | RemotePath, width: int) -> Tensor:
    """Decode a panorama to uint8 RGB (3, H, 2H); JPEG files are decoded at a reduced size of at least `width`.

    Raises:
        ValueError: the file is not an image, or is truncated.
    """
    try:
        with open_image(path) as image:
            image.draft(None, (width, width // 2))
            with taking_turns(image):
                return pixels_of(image)
    except Exception as error:  # decoders raise many kinds of errors
        raise ValueError(f"The panorama {path} cannot be decoded: {error}.") from None


def cut_views(panorama: Tensor, turns_deg: Sequence[float], *, fov_deg: float, size: int) -> Iterator[Tensor]:
    """Cut square perspective views out of a panorama, without pitch and roll.

    Args:
        panorama: uint8 (3, H, 2H); columns go around clockwise, rows from 90 degrees up to 90 down.
        turns_deg: direction of each view's center, in degrees clockwise from the panorama's center column.
        fov_deg: horizontal and vertical field of view, between the outer edges of the outermost pixels; below 180.
        size: side of a view in pixels.

    Yields:
        uint8 (3, size, size) for each direction.
    """
    width = width_for(fov_deg, size)
    if panorama.shape[-1] > width:
        panorama = _resized(panorama, width)
    # Pad with the first column after the last and vice versa, to interpolate across the seam.
    around = torch.cat([panorama[..., -1:], panorama, panorama[..., :1]], dim=-1).float()
    for turn_deg in turns_deg:
        column, row = pixels_seen(turn_deg, fov_deg, size, (panorama.shape[-2], panorama.shape[-1]))
        across, down = (2 * column + 3) / around.shape[-1] - 1, (2 * row + 1) / around.shape[-2] - 1
        grid = torch.stack([across, down], dim=-1)[None].float()
        view = F.grid_sample(around[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        yield view.round().to(torch.uint8)


def pixels_seen(turn_deg: float, fov_deg: float, size: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute the panorama coordinates of each pixel of a view.

    Args:
        turn_deg, fov_deg, size: of the view, see `cut_views`.
        shape: height and width of the panorama.

    Returns:
        Column from -0.5 to W - 0.5 and row from -0.5 to H - 0.5, float64 (size, size); integers are pixel centers.
    """
    height, width = shape
    edge = math.tan(math.radians(fov_deg) / 2)
    offsets = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    right, down = offsets * edge, offsets[:, None] * edge  # of a ray with forward component 1
    longitude = (torch.atan(right) + math.radians(turn_deg)).expand(size, size)
    latitude = torch.atan2(-down, torch.sqrt(1 + right**2))
    column = (longitude / (2 * math.pi) + 0.5) % 1 * width - 0.5
    return column, (0.5 - latitude / math.pi) * height - 0.5


def _resized(panorama: Tensor, width: int) -> Tensor:
    """Resize a panorama across its seam, by padding each side with a part of the other while resizing."""
    parts = math.gcd(panorama.shape[-1], width, 8)
    part = panorama.shape[-1] // parts
    around = torch.cat([panorama[..., -part:], panorama, panorama[..., :part]], dim=-1)
    resized = resize(around, [width // 2, width + 2 * (width // parts)], antialias=True)
    return resized[..., width // parts :][..., :width]
