"""Where descriptors meet the texts of their places; used in training only."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LOWEST_LEARNED = 0.01


class TextSpace(nn.Module):
    """Bring descriptors to the texts, so that dot products with `texts(...)` are the logits of the image-text loss.

    Args:
        descriptor_dim: D.
        text_dim: E; where it differs from D a linear map is learned.
        normalized: compare directions only; the published method compares raw features.
        temperature: divides the dot products.
        learn_temperature: train its logarithm, as CLIP does (Radford et al., ICML 2021, section 2.3), down to 0.01.

    Raises:
        ValueError: a temperature to learn that begins below 0.01.
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
        if learn_temperature and temperature < _LOWEST_LEARNED:
            raise ValueError(
                f"text.temperature must be at least {_LOWEST_LEARNED} where text.learn_temperature is on, "
                f"got {temperature}."
            )
        self.linear = nn.Identity() if descriptor_dim == text_dim else nn.Linear(descriptor_dim, text_dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)
        self.normalized = normalized

    def forward(self, descriptors: Tensor) -> Tensor:
        """Features (B, E) of descriptors (B, D)."""
        if self.log_temperature.requires_grad:
            with torch.no_grad():  # the parameter itself: with its value clamped it would get no gradient any more
                self.log_temperature.clamp_(min=math.log(_LOWEST_LEARNED))
        return self._compared(self.linear(descriptors)) / self.log_temperature.exp()

    def texts(self, features: Tensor) -> Tensor:
        """Text features (C, E) as they are compared."""
        return self._compared(features)

    def _compared(self, features: Tensor) -> Tensor:
        return F.normalize(features) if self.normalized else features
