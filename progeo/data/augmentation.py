"""Augmentation: random crops of single images as they are read, and color jitter of batches on the device.

The distributions are those of torchvision's ColorJitter and RandomResizedCrop. All parameters of a batch are drawn in
advance by one generator on the CPU, so the same seed gives the same augmentation on every device, and each process
takes the parameters of its share of the batch.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from progeo.data.crops import CROP_DRAWS, RandomCrop
from progeo.data.options import Augmentation
from progeo.image_files import Resize

_LUMA = (0.2989, 0.587, 0.114)
_CONTRAST, _SATURATION, _HUE = 1, 2, 3


class Changes(NamedTuple):
    """The augmentation parameters of each image of a batch, on the CPU."""

    shares: Tensor
    """(B, 3): factors of brightness, contrast and saturation."""
    turns: Tensor
    """(B,): hue shifts as fractions of the full circle."""
    order: Tensor
    """int64 (B, 4): the order of operations; 0 to 3 are brightness, contrast, saturation and hue."""
    crops: Tensor
    """float64 (B, CROP_DRAWS): uniform in 0..1; `RandomCrop` computes a box in pixels from them."""

    def of(self, rows: slice) -> "Changes":
        """Return the parameters of some images of the batch."""
        return Changes(*(values[rows] for values in self))


def draw_changes(augmentation: Augmentation, count: int, generator: Generator) -> Changes:
    """Draw the augmentation parameters of a batch of `count` images, with a generator on the CPU."""
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    shares = [torch.empty(count).uniform_(1 - by, 1 + by, generator=generator) for by in strengths]
    turns = torch.empty(count).uniform_(-augmentation.hue, augmentation.hue, generator=generator)
    order = torch.rand(count, 4, generator=generator).argsort(dim=1)
    crops = torch.rand(count, CROP_DRAWS, dtype=torch.float64, generator=generator)
    return Changes(torch.stack(shares, 1), turns, order, crops)


def build_crop(augmentation: Augmentation, size: tuple[int, int], resize: Resize = "bilinear") -> RandomCrop:
    """Build the crop to (height, width) pixels that uses the random numbers drawn by `draw_changes`."""
    return RandomCrop(size, augmentation.crop_scale, augmentation.crop_ratio, resize)


def jitter_colors(images: Tensor, changes: Changes) -> Tensor:
    """Jitter the colors of images (B, 3, H, W), uint8 or floats in 0..1; return floats in 0..1 of the same shape.

    Brightness, contrast and saturation each blend the image with another one: black, its mean gray, or its grayscale
    version. So images with different orders of these three share one operation, and only the position of the hue shift
    divides the batch into groups.
    """
    count, device = len(images), images.device
    hue_steps = (changes.order == _HUE).nonzero()[:, 1]
    blends = changes.order[changes.order != _HUE].view(count, 3)
    # (3, B, 3): the arguments of _blend, for each image and each of its blends in order.
    amounts = torch.stack([changes.shares.gather(1, blends), blends == _CONTRAST, blends == _SATURATION]).to(device)
    hues_turn, turns = bool(changes.turns.any()), changes.turns.to(device)

    jittered = torch.empty(images.shape, device=device)
    for hue_step in range(4):
        group = (hue_steps == hue_step).nonzero()[:, 0].to(device)
        # One image at a time on a CPU, so that intermediate results stay in a core's caches and reuse memory.
        for rows in group.split(1 if device.type == "cpu" else count):
            part = images[rows].float().div_(255) if images.dtype == torch.uint8 else images[rows]
            for step in range(4):
                if step == hue_step and hues_turn:
                    part = _turned_hue(part, turns[rows])
                if step < 3:
                    _blend(part, *amounts[:, rows, step])
            jittered[rows] = part
    return jittered


def _blend(images: Tensor, shares: Tensor, of_mean: Tensor, of_gray: Tensor) -> None:
    """Keep a fraction `shares` (B,) of each image, in place, and blend in another image for the rest.

    The other image is its mean gray where `of_mean` is 1, its grayscale where `of_gray` is 1, else black.
    """
    red, green, blue = images.split(1, dim=1)
    others = (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    means = _per_image(of_mean) * others.mean(dim=(2, 3), keepdim=True)
    torch.addcmul(means, others, _per_image(of_gray), out=others)
    torch.lerp(others, images, _per_image(shares), out=images).clamp_(0, 1)


def _turned_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue in HSV space by a fraction of the circle (B,), without divisions or branches.

    Angles are in sixths of the circle, multiplied by the chroma. A channel has its maximum within 1 of its own hue and
    its minimum from 2 on; in between it falls linearly by the chroma. For red, at angle 0, this gives the angle of a
    color as chroma + green + blue - red - lowest, signed toward green or blue.
    """
    red, green, blue = images.split(1, dim=1)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    from_red = (green + blue).sub_(red).sub_(lowest).add_(chroma).copysign_(green - blue)
    hues = torch.tensor([[0.0, 2.0, 4.0]], device=images.device)
    from_channels = torch.remainder(6 * turns[:, None] - hues + 3, 6) - 3
    angles = torch.addcmul(from_red, chroma, from_channels[:, :, None, None])
    # Angles are now within -6 to 6. 3 - | |angle| - 3 | is the circular distance to the channel's own hue; a channel
    # exceeds the lowest by 2 minus that distance, clamped to 0..1.
    return angles.abs_().sub_(3 * chroma).abs_().clamp_(chroma, 2 * chroma).add_(lowest.sub_(chroma))


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
