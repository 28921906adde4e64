"""Colour jitter and random resized crops of whole batches, on their device, each image with its own parameters.

The distributions are those of torchvision's ColorJitter and RandomResizedCrop. What is done to a batch is drawn first,
by one generator on the CPU: the same seed gives the same augmentation on every device, and each process takes its part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_LUMA = (0.2989, 0.587, 0.114)
_CONTRAST, _SATURATION, _HUE = 1, 2, 3
_CROP_TRIES = 10


class Changes(NamedTuple):
    """What is done to each image of a batch; all on the CPU."""

    shares: Tensor
    """(B, 3): factors of brightness, contrast and saturation."""
    turns: Tensor
    """(B,): shares of the circle that hues turn by."""
    order: Tensor
    """int64 (B, 4): brightness, contrast, saturation and hue as 0 to 3, in the order of their turn."""
    boxes: Tensor
    """(B, 4): whole pixels top, left, height, width of what is cut out."""

    def of(self, rows: slice) -> "Changes":
        """Those of some images of the batch."""
        return Changes(*(values[rows] for values in self))


@dataclass(frozen=True)
class Augmentation:
    """How strongly training images are changed."""

    brightness: float = 0.7
    """Brightness is multiplied by a factor from 1 - this to 1 + this; 0 leaves it alone."""
    contrast: float = 0.7
    """Contrast is multiplied by a factor from 1 - this to 1 + this; 0 leaves it alone."""
    saturation: float = 0.7
    """Saturation is multiplied by a factor from 1 - this to 1 + this; 0 leaves it alone."""
    hue: float = 0.5
    """Hue is turned by up to this share of the full circle, at most 0.5; 0 leaves it alone."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """A random crop covers this share of the image's area, and is resized back; 1 and 1 crop nothing."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name} must be from 0 to 1, got {getattr(self, name)}.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"augmentation.hue must be from 0 to 0.5, got {self.hue}.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"augmentation.crop_scale must rise within 0 to 1, got {list(self.crop_scale)}.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"augmentation.crop_ratio must rise and be positive, got {list(self.crop_ratio)}.")

    def draw(self, count: int, image_size: tuple[int, int], generator: Generator) -> Changes:
        """Draw what is done to a batch.

        Args:
            count: B, its images.
            image_size: their height and width.
            generator: on the CPU.
        """
        strengths = (self.brightness, self.contrast, self.saturation)
        shares = [torch.empty(count).uniform_(1 - by, 1 + by, generator=generator) for by in strengths]
        turns = torch.empty(count).uniform_(-self.hue, self.hue, generator=generator)
        order = torch.rand(count, 4, generator=generator).argsort(dim=1)
        if self.crop_scale == (1, 1):
            boxes = torch.tensor([[0.0, 0.0, *image_size]]).expand(count, -1)
        else:
            boxes = random_boxes(count, *image_size, self.crop_scale, self.crop_ratio, generator)
        return Changes(torch.stack(shares, 1), turns, order, boxes)


def augment(images: Tensor, changes: Changes) -> Tensor:
    """Augment uint8 images (B, 3, H, W): jitter, then crop and resize back; floats in 0..1 of the same shape."""
    jittered = jitter_colours(images, changes)
    if (changes.boxes[:, 2:] == torch.tensor(images.shape[2:])).all():
        return jittered
    return crop_and_resize(jittered, changes.boxes.to(images.device))


def jitter_colours(images: Tensor, changes: Changes) -> Tensor:
    """Jitter images (B, 3, H, W), uint8 or floats in 0..1; returns floats in 0..1 of the same shape.

    Brightness, contrast and saturation all blend an image with another one: black, its mean grey, its own greys. So
    they are one operation for images that have them in different orders; the hue's turn is what groups the images.
    """
    count, device = len(images), images.device
    place_of_hue = (changes.order == _HUE).nonzero()[:, 1]
    blends = changes.order[changes.order != _HUE].view(count, 3)
    # (3, B, 3): what _blend takes, for each image and each of its blends in turn.
    amounts = torch.stack([changes.shares.gather(1, blends), blends == _CONTRAST, blends == _SATURATION]).to(device)
    hues_turn, turns = bool(changes.turns.any()), changes.turns.to(device)

    jittered = torch.empty(images.shape, device=device)
    for place in range(4):
        group = (place_of_hue == place).nonzero()[:, 0].to(device)
        # On a CPU one image at a time: its steps stay in a core's caches and take no new memory from the system.
        for rows in group.split(1 if device.type == "cpu" else count):
            part = _floats(images[rows])
            for step in range(4):
                if step == place and hues_turn:
                    part = _turned_hue(part, turns[rows])
                if step < 3:
                    _blend(part, *amounts[:, rows, step])
            jittered[rows] = part
    return jittered


def random_boxes(
    count: int, height: int, width: int, scale: Sequence[float], ratio: Sequence[float], generator: Generator
) -> Tensor:
    """Draw boxes of random area and shape inside an image, as torchvision's RandomResizedCrop does.

    Returns:
        (count, 4) whole pixels: top, left, height, width; the central crop of allowed shape where ten tries failed.
    """
    area = height * width * torch.empty(count, _CROP_TRIES).uniform_(scale[0], scale[1], generator=generator)
    log_ratio = torch.empty(count, _CROP_TRIES).uniform_(math.log(ratio[0]), math.log(ratio[1]), generator=generator)
    widths = (area * log_ratio.exp()).sqrt().round()
    heights = (area / log_ratio.exp()).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.float().argmax(dim=1, keepdim=True)
    shape = width / height
    fallback_width = float(round(height * ratio[1])) if shape > ratio[1] else float(width)
    fallback_height = float(round(width / ratio[0])) if shape < ratio[0] else float(height)
    none = ~fits.any(dim=1)
    box_height = torch.where(none, fallback_height, heights.gather(1, first)[:, 0])
    box_width = torch.where(none, fallback_width, widths.gather(1, first)[:, 0])
    where = torch.rand(2, count, generator=generator)
    where[:, none] = 0.5
    top = (where[0] * (height - box_height + 1)).floor().clamp(max=height - 1)
    left = (where[1] * (width - box_width + 1)).floor().clamp(max=width - 1)
    return torch.stack([top, left, box_height, box_width], dim=1)


def crop_and_resize(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box (top, left, height, width in pixels; (B, 4)) out of each image and resize it to the image's size."""
    height, width = images.shape[2:]
    top, left, box_height, box_width = boxes.T
    rows = _sampled(top, box_height, height)[:, :, None].expand(-1, -1, width)
    columns = _sampled(left, box_width, width)[:, None, :].expand(-1, height, -1)
    return F.grid_sample(images, torch.stack([columns, rows], dim=3), align_corners=False)


def _sampled(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the `size` pixels of a resized box lie along one side, (B, size) in grid_sample's -1..1."""
    centres = (torch.arange(size, device=start.device) + 0.5) / size
    pixels = start[:, None] + centres * length[:, None]
    # Not beyond the centres of the box's outer pixels: what lies outside the box is not seen.
    inside = torch.maximum(torch.minimum(pixels, (start + length)[:, None] - 0.5), start[:, None] + 0.5)
    return 2 * inside / size - 1


def _floats(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _blend(images: Tensor, shares: Tensor, of_mean: Tensor, of_grey: Tensor) -> None:
    """Keep a share (B,) of each image, in place; the rest is its mean grey, its greys or, where both are 0, black."""
    red, green, blue = images.split(1, dim=1)
    others = (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    means = _per_image(of_mean) * others.mean(dim=(2, 3), keepdim=True)
    torch.addcmul(means, others, _per_image(of_grey), out=others)
    torch.lerp(others, images, _per_image(shares), out=images).clamp_(0, 1)


def _turned_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV space by a share of the circle (B,), with no division and no branches.

    All angles are in sixths of the circle, times the chroma. A channel is at its highest within 1 of its own hue and at
    its lowest from 2 on; between them it falls by the chroma. For red, at angle 0, that gives the angle of a colour
    as chroma + green + blue - red - lowest, on green's side or on blue's.
    """
    red, green, blue = images.split(1, dim=1)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    from_red = (green + blue).sub_(red).sub_(lowest).add_(chroma).copysign_(green - blue)
    hues = torch.tensor([[0.0, 2.0, 4.0]], device=images.device)
    from_channels = torch.remainder(6 * turns[:, None] - hues + 3, 6) - 3
    angles = torch.addcmul(from_red, chroma, from_channels[:, :, None, None])
    # Within -6 to 6 by now. 3 - | |angle| - 3 | is the way round to the channel's own hue, and a channel lies above its
    # lowest by 2 minus that, at least 0 and at most 1.
    return angles.abs_().sub_(3 * chroma).abs_().clamp_(chroma, 2 * chroma).add_(lowest.sub_(chroma))


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
