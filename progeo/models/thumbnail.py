"""A baseline encoder that any trained one must beat: the raw pixels of a 16 x 16 thumbnail."""

import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.encoder import Encoder, EncoderSpec

_SIDE = 16
_SPEC = EncoderSpec(
    architecture="thumbnail",
    image_size=(_SIDE, _SIDE),
    descriptor_dim=3 * _SIDE * _SIDE,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    pooling="clip",
    normalized=False,
)


class ThumbnailEncoder(Encoder):
    """Baseline encoder without weights: the descriptor is the image resized to 16 x 16 pixels."""

    has_weights = False

    def __init__(self) -> None:
        super().__init__(_SPEC, nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, 768) of images (B, 3, H, W) in 0..1."""
        return F.interpolate(images, self.image_size, mode="bilinear", antialias=True).flatten(1)
