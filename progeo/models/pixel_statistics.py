"""The mean and std that pixels are normalized with: those that weights were trained with, or others that are set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from progeo.models.backbones.open_clip import NORMALIZATIONS, said_of_pixels
from progeo.models.backbones.torchvision import CONVNETS, own_normalization

_MIN_STD = 0.001
"""A std of 0 cannot be divided by; the least that published weights have is 1/255."""


@dataclass(frozen=True)
class PixelStatistics:
    """Of red, green and blue in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    """Where they come from, in words."""

    def __str__(self) -> str:
        return f"mean {_triple(self.mean)}, std {_triple(self.std)}, {self.source}"


def pixel_statistics(
    architecture: str,
    weights: str,
    *,
    normalization: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> PixelStatistics:
    """Take the statistics that are asked for, else those that the weights were trained with.

    Args:
        architecture, weights: see `own_statistics`.
        normalization, mean, std: see `chosen_statistics`.
    """
    return chosen_statistics(normalization, mean, std) or own_statistics(architecture, weights)


def chosen_statistics(
    normalization: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> PixelStatistics | None:
    """Take the statistics that settings ask for; None where they leave it to the weights.

    Args:
        normalization: `clip` or `imagenet`.
        mean, std: of red, green and blue in 0..1, in place of `normalization`; both or neither.

    Raises:
        ValueError: one without the other, or what no pixels in 0..1 can have.
    """
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise ValueError(f"model.normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}.")
    if mean is not None and std is not None:
        return PixelStatistics(*_checked(mean, std, "model."), "as set")
    if mean is not None or std is not None:
        raise ValueError(f"model.mean and model.std go together, got {mean} and {std}: give both or leave both out.")
    return None if normalization is None else PixelStatistics(*NORMALIZATIONS[normalization], f"{normalization} as set")


def own_statistics(architecture: str, weights: str) -> PixelStatistics:
    """Take the statistics that the weights of a backbone were trained with.

    Where nothing says them they are CLIP's, of a backbone of torchvision ImageNet's.

    Args:
        architecture, weights: see `build_backbone`, which must have read them.

    Raises:
        ValueError: weights that say what no pixels in 0..1 can have.
    """
    is_convnet = architecture in CONVNETS
    said = (own_normalization if is_convnet else said_of_pixels)(architecture, weights)
    usual, whose = ("imagenet", "ImageNet's") if is_convnet else ("clip", "CLIP's")
    why = "random weights have none of their own" if weights == "random" else f"{weights} does not say its own"
    mean, std = NORMALIZATIONS[usual]
    if not said:
        return PixelStatistics(mean, std, f"{whose} since {why}")
    missing = [name for name in ("mean", "std") if name not in said]
    source = f"as {weights} says{f', but for the {missing[0]}, which is {whose}' if missing else ''}"
    return PixelStatistics(*_checked(said.get("mean", mean), said.get("std", std), f"{weights}: its "), source)


def _checked(mean: Any, std: Any, whose: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for name, values, least in (("mean", mean, 0), ("std", std, _MIN_STD)):
        if (
            not isinstance(values, list | tuple)
            or len(values) != 3
            or not all(type(value) in (int, float) and least <= value <= 1 for value in values)
        ):
            raise ValueError(f"{whose}{name} must be three numbers from {least} to 1, of pixels in 0..1, got {values}.")
    return tuple(map(float, mean)), tuple(map(float, std))


def _triple(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
