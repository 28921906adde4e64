"""Colour jitter and random resized crops of whole batches, on their device, each image with its own parameters.

The distributions are those of torchvision's ColorJitter and RandomResizedCrop. All randomness comes from one
generator on the CPU, so that the same seed gives the same augmentation on every device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_LUMA = (0.2989, 0.587, 0.114)
_CROP_TRIES = 10


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

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augment uint8 images (B, 3, H, W): jitter, then crop and resize back; floats in 0..1 of the same shape."""
        floats = images.float() / 255
        jittered = jitter_colours(
            floats,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            generator=generator,
        )
        if self.crop_scale == (1, 1):
            return jittered
        height, width = images.shape[2:]
        boxes = random_boxes(len(images), height, width, self.crop_scale, self.crop_ratio, generator)
        return crop_and_resize(jittered, boxes.to(images.device))


def jitter_colours(
    images: Tensor, *, brightness: float, contrast: float, saturation: float, hue: float, generator: Generator
) -> Tensor:
    """Jitter floats (B, 3, H, W) in 0..1, in a random order of the four steps for each image."""
    count = len(images)
    steps = [
        (_scaled_brightness, _factors(count, brightness, generator)),
        (_scaled_contrast, _factors(count, contrast, generator)),
        (_scaled_saturation, _factors(count, saturation, generator)),
        (_turned_hue, torch.empty(count).uniform_(-hue, hue, generator=generator)),
    ]
    order = torch.rand(count, len(steps), generator=generator).argsort(dim=1)
    strengths = (brightness, contrast, saturation, hue)
    for turn in range(len(steps)):
        for index, (change, amounts) in enumerate(steps):
            rows = (order[:, turn] == index).nonzero()[:, 0]
            if len(rows) and strengths[index] > 0:
                rows_there = rows.to(images.device)
                amounts_there = amounts[rows].to(images.device)[:, None, None, None]
                images = images.index_copy(0, rows_there, change(images[rows_there], amounts_there))
    return images


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


def _factors(count: int, strength: float, generator: Generator) -> Tensor:
    return torch.empty(count).uniform_(1 - strength, 1 + strength, generator=generator)


def _blended(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    return (share * images + (1 - share) * others).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def _scaled_brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _scaled_contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def _scaled_saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(images, _grey(images), factor)


def _turned_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue in HSV space by a share of the circle (B, 1, 1, 1)."""
    value, _ = images.max(dim=1, keepdim=True)
    chroma = value - images.min(dim=1, keepdim=True).values
    red, green, blue = images.split(1, dim=1)
    safe = chroma.clamp(min=1e-8)
    sextant = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = sextant + 6 * turn
    # Each channel falls from value to value - chroma as the hue leaves it: red from 0, green from 2, blue from 4.
    offsets = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    distance = (offsets + turned) % 6
    return value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1)
