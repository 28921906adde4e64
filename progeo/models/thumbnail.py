"""A baseline encoder that any trained one must beat: the raw pixels of a 16 x 16 thumbnail."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from progeo.models.preprocessing import resize_image
from progeo.pixels import pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image


class ThumbnailEncoder(nn.Module):
    """Baseline encoder without parameters: the descriptor is the image resized to 16 x 16 pixels."""

    image_size = (16, 16)
    descriptor_dim = 3 * 16 * 16
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, 768) of images (B, 3, H, W) in 0..1."""
        return F.interpolate(images, self.image_size, mode="bilinear", antialias=True).flatten(1)

    def normalize(self, images: Tensor) -> Tensor:
        """Convert uint8 images to floats in 0..1."""
        return images.float() / 255

    def preprocess(self, image: "Image | Tensor") -> Tensor:
        """Resize a PIL image or a uint8 tensor (3, H, W) to float (3, 16, 16) in 0..1."""
        pixels = image if isinstance(image, Tensor) else pixels_of(image)
        return self.normalize(resize_image(pixels, self.image_size))
