"""The common space of descriptors and text features for the image-text loss; used in training only."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN_LEARNED = 0.01
_ROUNDING = 1e-3
"""OpenAI's CLIPs, which learned the minimum, store its logarithm in half precision: their temperature is 0.009997."""


def chosen_temperature(temperature: float | Literal["clip"], logit_scale: float | None) -> float:
    """Return a temperature, or for `clip` that of the CLIP whose cosines are multiplied by `logit_scale`.

    A CLIP's constant `logit_bias` is not needed: a softmax over classes does not change with it.

    Raises:
        ValueError: the CLIP has no finite positive scale.
    """
    if temperature != "clip":
        return temperature
    assert logit_scale is not None  # of the CLIP of the texts
    if not 0 < logit_scale < math.inf:
        raise ValueError(
            f"`temperature` clip is not possible: the CLIP of the texts multiplies cosines by {logit_scale}. Give "
            f"it as a number."
        )
    return 1 / logit_scale


class TextSpace(nn.Module):
    """Map descriptors to the text space: dot products with `texts(...)` are the logits of the image-text loss.

    Args:
        descriptor_dim: D.
        text_dim: E; if it differs from D, a linear map is learned.
        normalized: L2-normalize both sides; the published method compares raw features.
        temperature: the dot products are divided by it.
        learn_temperature: learn the logarithm of the temperature, as CLIP does (Radford et al., ICML 2021, section
            2.3), with a minimum temperature of 0.01.

    Raises:
        ValueError: a learned temperature that starts below 0.01.
    """

    def __init__(
        self,
        descriptor_dim: int,
        text_dim: int,
        *,
        normalized: bool = False,
        temperature: float = 1.0,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        if learn_temperature and temperature < _MIN_LEARNED * (1 - _ROUNDING):
            raise ValueError(
                f"`temperature` must be at least {_MIN_LEARNED} where `learn_temperature` is on, got {temperature}."
            )
        self.linear = nn.Identity() if descriptor_dim == text_dim else nn.Linear(descriptor_dim, text_dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)
        self.normalized = normalized

    def forward(self, descriptors: Tensor) -> Tensor:
        """Map descriptors (B, D) to features (B, E), divided by the temperature."""
        if self.log_temperature.requires_grad:
            with torch.no_grad():  # clamp the parameter itself: a clamped copy would pass no gradient below the minimum
                self.log_temperature.clamp_(min=math.log(_MIN_LEARNED))
        return self._compared(self.linear(descriptors)) / self.log_temperature.exp()

    def texts(self, features: Tensor) -> Tensor:
        """Normalize text features (C, E) if descriptors are normalized, so that the two can be compared."""
        return self._compared(features)

    def _compared(self, features: Tensor) -> Tensor:
        return F.normalize(features) if self.normalized else features
