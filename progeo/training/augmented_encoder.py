"""The encoder behind the augmentation of a device: what is compiled together, and what processes train together."""

from typing import NamedTuple

from torch import Tensor, nn

from progeo.data.augmentation import ColorPlan, jitter_colors
from progeo.models.backbones.family import Features
from progeo.models.encoder import Encoder


class Encoded(NamedTuple):
    """What a step computes of images."""

    images: Tensor | None
    """Jittered floats in 0..1 (B, 3, H, W), for a teacher, which normalizes by its own statistics; None without one."""
    normalized: Tensor
    """Normalized floats (B, 3, H, W), the input of the encoder."""
    descriptors: Tensor
    """(B, D)."""
    features: Features
    """The features of the backbone."""


class AugmentedEncoder(nn.Module):
    """Jitters colors, normalizes and encodes, as one region for torch.compile."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor, plan: ColorPlan, *, with_images: bool = False) -> Encoded:
        """Encode cropped images.

        Args:
            pixels: uint8 (B, 3, H, W).
            plan: the color jitter.
            with_images: return the jittered images, too.
        """
        images = jitter_colors(pixels, plan) if with_images else None
        normalize = self.encoder.normalize
        normalized = jitter_colors(pixels, plan, normalize) if images is None else normalize(images)
        descriptors, features = self.encoder(normalized, with_features=True)
        return Encoded(images, normalized, descriptors, features)
