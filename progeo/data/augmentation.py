"""Augmentation: crops of single images while they are read, color jitter of whole batches on their device.

The distributions are those of torchvision's ColorJitter and RandomResizedCrop. What is done to a batch is drawn first,
by one generator on the CPU: the same seed gives the same augmentation on every device, and each process takes its part.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from progeo.data.crops import CROP_DRAWS, RandomCrop

_LUMA = (0.2989, 0.587, 0.114)
_CONTRAST, _SATURATION, _HUE = 1, 2, 3


class Changes(NamedTuple):
    """What is done to each image of a batch; all on the CPU."""

    shares: Tensor
    """(B, 3): factors of brightness, contrast and saturation."""
    turns: Tensor
    """(B,): shares of the circle that hues turn by."""
    order: Tensor
    """int64 (B, 4): brightness, contrast, saturation and hue as 0 to 3, in the order of their turn."""
    crops: Tensor
    """float64 (B, CROP_DRAWS): uniform in 0..1; `RandomCrop` makes a box of them in an image's own pixels."""

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
    """A random crop covers this fraction of the photo's own pixels, and is resized once; 1 and 1 crop nothing."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop, in the photo's own pixels."""

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

    def draw(self, count: int, generator: Generator) -> Changes:
        """Draw what is done to a batch of `count` images, with a generator on the CPU."""
        strengths = (self.brightness, self.contrast, self.saturation)
        shares = [torch.empty(count).uniform_(1 - by, 1 + by, generator=generator) for by in strengths]
        turns = torch.empty(count).uniform_(-self.hue, self.hue, generator=generator)
        order = torch.rand(count, 4, generator=generator).argsort(dim=1)
        crops = torch.rand(count, CROP_DRAWS, dtype=torch.float64, generator=generator)
        return Changes(torch.stack(shares, 1), turns, order, crops)

    def crop(self, size: tuple[int, int]) -> RandomCrop:
        """Build the crop to (height, width) pixels that takes what `draw` drew."""
        return RandomCrop(size, self.crop_scale, self.crop_ratio)


def jitter_colors(images: Tensor, changes: Changes) -> Tensor:
    """Jitter images (B, 3, H, W), uint8 or floats in 0..1; returns floats in 0..1 of the same shape.

    Brightness, contrast and saturation all blend an image with another one: black, its mean gray, its own grays. So
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


def _floats(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _blend(images: Tensor, shares: Tensor, of_mean: Tensor, of_gray: Tensor) -> None:
    """Keep a share (B,) of each image, in place; the rest is its mean gray, its grays or, where both are 0, black."""
    red, green, blue = images.split(1, dim=1)
    others = (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    means = _per_image(of_mean) * others.mean(dim=(2, 3), keepdim=True)
    torch.addcmul(means, others, _per_image(of_gray), out=others)
    torch.lerp(others, images, _per_image(shares), out=images).clamp_(0, 1)


def _turned_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV space by a share of the circle (B,), with no division and no branches.

    All angles are in sixths of the circle, times the chroma. A channel is at its highest within 1 of its own hue and at
    its lowest from 2 on; between them it falls by the chroma. For red, at angle 0, that gives the angle of a color
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
