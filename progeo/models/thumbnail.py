"""A baseline encoder that any trained one must beat: the raw pixels of a 16 x 16 thumbnail."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.backbones.family import Traits
from progeo.models.encoder import Encoder, EncoderSpec

_SIDE = 16
_SPEC = EncoderSpec(
    family="progeo",
    architecture="thumbnail",
    image_size=(_SIDE, _SIDE),
    descriptor_dim=3 * _SIDE * _SIDE,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    aggregation="token",
    normalized=False,
)


class ThumbnailEncoder(Encoder):
    """Baseline encoder without weights: the descriptor is the image resized to 16 x 16 pixels."""

    has_weights = False

    def __init__(self) -> None:
        nn.Module.__init__(self)  # not that of an encoder: there is no backbone
        self.spec, self.traits = _SPEC, Traits(None, _SPEC.descriptor_dim, _SPEC.descriptor_dim, stride=1)
        self.register_buffer("mean", torch.tensor(_SPEC.mean), persistent=False)
        self.register_buffer("std", torch.tensor(_SPEC.std), persistent=False)

    def forward(self, images: Tensor, **_: object) -> Tensor:  # type: ignore[override]
        """Compute descriptors (B, 768) of images (B, 3, H, W) in 0..1."""
        return F.interpolate(images, self.image_size, mode="bilinear", antialias=True).flatten(1)
