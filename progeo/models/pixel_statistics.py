"""How pixels are resized and normalized: as those that the weights were trained with, or as the settings say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast, get_args

from progeo.image_files import Resize
from progeo.models.backbones import FAMILIES, find_family

Color = tuple[float, float, float]
"""Values of red, green and blue."""
NORMALIZATIONS: Mapping[str, tuple[Color, Color]] = MappingProxyType(
    {
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
)
"""Pixel mean and std by name."""
_MIN_STD = 0.001
"""Minimum std, as normalization divides by it; the smallest std of published weights is 1/255."""


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and std of red, green and blue for pixels in 0..1, and the interpolation that resized them."""

    mean: Color
    std: Color
    source: str
    """Where mean and std come from, as text for the log."""
    resize: Resize = "bilinear"
    """Interpolation by which images are resized, always with antialiasing."""

    def __str__(self) -> str:
        return f"{self.resize}, mean {color_in_words(self.mean)}, std {color_in_words(self.std)}, {self.source}"


def pixel_statistics(
    architecture: str,
    weights: str,
    *,
    normalization: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: Resize | None = None,
) -> PixelStatistics:
    """Return the pixel statistics in the settings, see `chosen_statistics`, else those of the weights.

    Args:
        architecture, weights: see `build_encoder`, which must have accepted them.
        normalization, mean, std: see `chosen_statistics`.
        resize: interpolation; None takes `own_resize`.
    """
    statistics = chosen_statistics(normalization, mean, std) or own_statistics(architecture, weights)
    return replace(statistics, resize=resize or own_resize(architecture, weights))


def chosen_statistics(
    normalization: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> PixelStatistics | None:
    """Return the pixel statistics in the settings, or None if the settings have none.

    Args:
        normalization: `clip` or `imagenet`.
        mean, std: values for red, green and blue in 0..1, which replace `normalization`; both or neither.

    Raises:
        ValueError: an unknown `normalization`, a mean without a std or the reverse, or values out of range.
    """
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise ValueError(f"`normalization` must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}.")
    if mean is not None and std is not None:
        return _checked(mean, std, source="as set")
    if mean is not None or std is not None:
        raise ValueError(f"`mean` and `std` go together, got {mean} and {std}: give both or neither.")
    return None if normalization is None else PixelStatistics(*NORMALIZATIONS[normalization], f"{normalization} as set")


def own_statistics(architecture: str, weights: str) -> PixelStatistics:
    """Return the pixel statistics that the weights of a backbone were trained with.

    Where they are not known, the backbone gets those that all known weights of its architecture have, else the
    `usual_normalization` of its family.

    Args:
        architecture, weights: see `build_encoder`, which must have accepted them.

    Raises:
        ValueError: the weights come with values out of range.
    """
    name, own_name = find_family(architecture)
    family = FAMILIES[name]
    own, usual = family.own_normalization(own_name, weights), family.usual_pixels(own_name)
    mean, std = NORMALIZATIONS[family.usual_normalization]
    whose = {"imagenet": "ImageNet's", "clip": "CLIP's"}[family.usual_normalization]
    if usual:
        known = _checked(usual["mean"], usual["std"], source=f"those of all weights of {own_name}", weights=own_name)
        if (known.mean, known.std) != (mean, std):
            mean, std, whose = known.mean, known.std, known.source
    why = "random weights have none of their own" if weights == "random" else f"those of {weights} are unknown"
    if not own:
        return _checked(mean, std, source=f"{whose} since {why}", weights=weights)
    missing = [name for name in ("mean", "std") if name not in own]
    source = f"those of {weights}{f', but the {missing[0]} is {whose}' if missing else ''}"
    return _checked(own.get("mean", mean), own.get("std", std), source=source, weights=weights)


def own_resize(architecture: str, weights: str) -> Resize:
    """Return the interpolation that images were resized with for the weights of a backbone, see `Family.own_resize`.

    Args:
        architecture, weights: see `build_encoder`, which must have accepted them.

    Raises:
        ValueError: the weights come with an interpolation that is not known here.
    """
    name, own_name = find_family(architecture)
    found = FAMILIES[name].own_resize(own_name, weights)
    if found not in get_args(Resize):
        allowed = " or ".join(get_args(Resize))
        raise ValueError(f"{weights}: its interpolation must be {allowed}, got {found!r}: set `resize` to one of them.")
    return cast(Resize, found)


def _checked(mean: Any, std: Any, *, source: str, weights: str | None = None) -> PixelStatistics:
    """Return pixel statistics, or refuse values out of range, of `weights` if given, else of the settings."""
    for name, values, minimum in (("mean", mean, 0), ("std", std, _MIN_STD)):
        is_triple = isinstance(values, list | tuple) and len(values) == 3
        if not is_triple or not all(type(value) in (int, float) and minimum <= value <= 1 for value in values):
            label = f"`{name}`" if weights is None else f"{weights}: its {name}"
            raise ValueError(f"{label} must be three numbers from {minimum} to 1, for pixels in 0..1, got {values}.")
    return PixelStatistics(_color(mean), _color(std), source)


def _color(values: Sequence[float]) -> Color:
    red, green, blue = map(float, values)
    return red, green, blue


def color_in_words(values: Sequence[float]) -> str:
    """Format values of red, green and blue for people."""
    return f"({', '.join(f'{value:.4g}' for value in values)})"
