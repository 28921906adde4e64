"""From pixels to what a network takes: one way to resize and one to normalise, for training and for use."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 image (3, H, W) to (height, width), bilinear with antialiasing; the aspect may change."""
    if image.shape[1:] == size:
        return image
    return F.resize(image, list(size), antialias=True)


def normalise_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn images (..., 3, H, W), uint8 in 0..255 or float in 0..1, into floats of the network's mean and spread."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return (floats - mean[:, None, None]).div_(std[:, None, None])
