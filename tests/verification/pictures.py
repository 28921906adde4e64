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


def warped(pixels, homography):
    """The picture seen through a homography, that maps its columns and rows to those of the view."""
    image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    view = cv2.warpPerspective(image, homography, (image.shape[1], image.shape[0]))
    return torch.from_numpy(view).permute(2, 0, 1)
