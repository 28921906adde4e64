"""Augmentation: random crops of single images as they are read, and color jitter of batches on the device.

The distributions are those of torchvision's ColorJitter, RandomResizedCrop and RandAugment. All parameters of a batch
are drawn in advance by one generator on the CPU, so the same seed gives the same augmentation on every device, and each
process takes the parameters of its share of the batch. `color_plan` arranges them for `jitter_colors`, also on the CPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from progeo.data.crops import CROP_DRAWS, RandAugmentedCrop, RandomCrop
from progeo.data.options import Augmentation
from progeo.image_files import Resize

_LUMA = (0.2989, 0.587, 0.114)
_BRIGHTNESS, _CONTRAST, _HUE = 0, 1, 3
_UNCHANGED = (1.0, 1.0, 1.0, 0.0)
"""The amounts of brightness, contrast, saturation and hue that leave an image as it is."""
_NUM_BLENDS = 3
"""Brightness, contrast and saturation: blends of an image with black, its mean gray and its grayscale version."""
_NUM_ARGUMENTS = 5
"""Number of arguments of `_blended` for each image."""


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
    how = (size, augmentation.crop_scale, augmentation.crop_ratio, resize)
    if not augmentation.rand_augment:
        return RandomCrop(*how)
    return RandAugmentedCrop(*how, augmentation.rand_augment, augmentation.rand_augment_magnitude)


class ColorPlan(NamedTuple):
    """The color jitter of a batch; its tensors are to be moved to the device of the images."""

    order: Tensor
    """int64 (B, 4): the order of operations of each image."""
    amounts: Tensor
    """(B, 4): the amounts of brightness, contrast, saturation and hue."""
    blends: Tensor
    """(5 S, B, 1, 1, 1): the arguments of `_blended` for S blends: 3 before and 3 after the hue shift, 3 without one,
    or none. A blend that an image does not have at this point leaves it exactly as it is."""
    angles: Tensor | None
    """(B, 3, 1, 1): the angles of `_turned_hue`; None without a hue shift."""


def color_plan(changes: Changes) -> ColorPlan:
    """Arrange the parameters of a batch for `jitter_colors`, on the CPU.

    The operations of a device do not depend on what was drawn, so that images need not be grouped by their order.
    """
    shares, turns = changes.shares, changes.turns
    turns_hue, blends = bool(turns.any()), bool((shares != 1).any())
    return ColorPlan(
        changes.order,
        torch.cat([shares, turns[:, None]], dim=1),
        _blend_arguments(changes, _NUM_BLENDS * (1 + turns_hue) if blends else 0),
        _angles(turns) if turns_hue else None,
    )


def jitter_colors(images: Tensor, plan: ColorPlan, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Jitter the colors of images (B, 3, H, W), uint8 or floats in 0..1; return floats in 0..1 of the same strides.

    Nothing waits for the device, and nothing is made there of values on the CPU.

    Args:
        images: left as they are.
        plan: of these images, on the same device.
        finish: applied to the jittered images (..., 3, H, W), such as `Encoder.normalize`.
    """
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        jittered = _jittered_batch(images, plan)
        return jittered if finish is None else finish(jittered)
    # One image at a time, so that intermediate results stay in a core's caches and reuse memory.
    results = torch.empty_like(images, dtype=torch.float32)
    for row, (order, amounts) in enumerate(zip(plan.order.tolist(), plan.amounts.tolist(), strict=True)):
        steps = [(kind, amounts[kind]) for kind in order if amounts[kind] != _UNCHANGED[kind]]
        jittered = _jittered_image(images[row], steps, None if plan.angles is None else plan.angles[row])
        results[row] = jittered if finish is None else finish(jittered)
    return results


def _jittered_batch(images: Tensor, plan: ColorPlan) -> Tensor:
    jittered = images / 255 if images.dtype == torch.uint8 else images
    arguments = plan.blends.unbind()
    blends = [arguments[first : first + _NUM_ARGUMENTS] for first in range(0, len(arguments), _NUM_ARGUMENTS)]
    for blend in blends[:_NUM_BLENDS]:
        jittered = _blended(jittered, *blend)
    if plan.angles is not None:
        jittered = _turned_hue(jittered, plan.angles)
    for blend in blends[_NUM_BLENDS:]:
        jittered = _blended(jittered, *blend)
    return jittered


def _jittered_image(image: Tensor, steps: list[tuple[int, float]], angles: Tensor | None) -> Tensor:
    """Jitter the colors of an image (3, H, W) by the operations and amounts of `steps`."""
    # Operations on one channel are only vectorized if its pixels are next to each other.
    layout = torch.contiguous_format if steps else torch.preserve_format
    jittered = image.to(torch.float32, memory_format=layout, copy=True)
    if image.dtype == torch.uint8:
        jittered.div_(255)
    for kind, amount in steps:
        if kind == _HUE:
            assert angles is not None  # an image turns
            jittered = _turned_hue(jittered, angles)
        else:
            _BLEND_IMAGE[kind](jittered, amount)
            if amount > 1:  # else the result is between two colors
                jittered.clamp_(0, 1)
    return jittered


def _blend_with_black(image: Tensor, share: float) -> None:
    image.mul_(share)


def _blend_with_mean(image: Tensor, share: float) -> None:
    means = image.mean(dim=(1, 2)).tolist()
    gray = sum(luma * mean for luma, mean in zip(_LUMA, means, strict=True))
    image.mul_(share).add_((1 - share) * gray)


def _blend_with_gray(image: Tensor, share: float) -> None:
    red, green, blue = image.split(1)
    gray = (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    torch.lerp(gray, image, share, out=image)


_BLEND_IMAGE = (_blend_with_black, _blend_with_mean, _blend_with_gray)
"""Functions that keep a share of an image (3, H, W), in place, and blend in another one for the rest, by operation."""


def _blend_arguments(changes: Changes, num_blends: int) -> Tensor:
    """Compute the arguments of `_blended` for each blend of a batch, see `ColorPlan.blends`."""
    is_hue = changes.order == _HUE
    kinds = changes.order[~is_hue].view(-1, _NUM_BLENDS)
    shares = changes.shares.gather(1, kinds)
    if num_blends > _NUM_BLENDS:
        is_before = torch.arange(_NUM_BLENDS) < is_hue.int().argmax(dim=1, keepdim=True)
        shares = torch.cat([shares.where(is_before, 1), shares.where(~is_before, 1)], dim=1)
        kinds = kinds.repeat(1, 2)
    others = (1 - shares) * (kinds != _BRIGHTNESS)
    arguments = torch.stack([shares, *(others * luma for luma in _LUMA), kinds == _CONTRAST], dim=2)
    return arguments[:, :num_blends].permute(1, 2, 0).reshape(-1, len(kinds), 1, 1, 1)


def _blended(images: Tensor, shares: Tensor, red: Tensor, green: Tensor, blue: Tensor, of_mean: Tensor) -> Tensor:
    """Keep a fraction `shares` of each image (3, H, W), and add a weighted sum of its channels.

    `of_mean` is 1 for the mean of that sum over the image, else 0. All arguments are (B, 1, 1, 1).
    """
    channels = images.split(1, dim=1)
    others = (red * channels[0]).addcmul_(green, channels[1]).addcmul_(blue, channels[2])
    others = torch.lerp(others, others.mean(dim=(2, 3), keepdim=True), of_mean)
    return torch.addcmul(others, images, shares).clamp_(0, 1)


def _angles(turns: Tensor) -> Tensor:
    """Compute the angles from each channel's hue to red after turns (B,), within -3 to 3 sixths of the circle."""
    return (torch.remainder(6 * turns[:, None] - torch.tensor([0.0, 2.0, 4.0]) + 3, 6) - 3)[:, :, None, None]


def _turned_hue(images: Tensor, angles: Tensor) -> Tensor:
    """Shift the hue of images (..., 3, H, W) in HSV space by `_angles`, without divisions or branches.

    Angles are in sixths of the circle, multiplied by the chroma. A channel has its maximum within 1 of its own hue and
    its minimum from 2 on; in between it falls linearly by the chroma. For red, at angle 0, this gives the angle of a
    color as green + blue - red - lowest + chroma, signed toward green or blue.
    """
    red, green, blue = images.split(1, dim=-3)
    lowest, highest = images.amin(-3, keepdim=True), images.amax(-3, keepdim=True)
    chroma = highest - lowest
    below = lowest - chroma
    from_red = (green + blue).sub_(red).sub_(below).copysign_(green - blue)
    angles = torch.addcmul(from_red, chroma, angles, out=torch.empty_like(images))  # or channels would not be last
    # Angles are now within -6 to 6. 3 - | |angle| - 3 | is the circular distance to the channel's own hue; a channel
    # exceeds the lowest by 2 minus that distance, clamped to 0..1.
    return angles.abs_().sub_(chroma, alpha=3).abs_().add_(below).clamp_(lowest, highest)
