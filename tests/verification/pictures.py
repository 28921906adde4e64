"""Pictures with many corners, and views of them whose geometry is known."""

import cv2
import numpy as np
import torch


def picture(seed, height, width):
    """A picture of random rectangles, uint8 (3, height, width)."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(300):
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = top + rng.integers(8, 40), left + rng.integers(8, 40)
        image[top:bottom, left:right] = rng.integers(0, 256, 3)
    return torch.from_numpy(image).permute(2, 0, 1)


def texture(seed, height, width):
    """Smooth noise, no part of which looks like another, uint8 (3, height, width)."""
    rng = np.random.default_rng(seed)
    scales = (8, 16)
    noise = [rng.random((height // scale, width // scale)) for scale in scales]
    image = sum(cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in noise)
    return torch.from_numpy((100 * image + 20).clip(0, 255).astype(np.uint8)).repeat(3, 1, 1)


def warped(pixels, homography):
    """The picture seen through a homography, that maps its columns and rows to those of the view."""
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    view = cv2.warpPerspective(image, homography, (image.shape[1], image.shape[0]))
    return torch.from_numpy(view).permute(2, 0, 1)
