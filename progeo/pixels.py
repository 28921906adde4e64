"""A picture that Pillow opened, as pixels: a file and a picture in memory become the same tensor."""

import numpy as np
import torch
from PIL import ExifTags, ImageOps
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor


def pixels_of(image: Image) -> Tensor:
    """Write a picture as uint8 RGB (3, H, W), turned upright by its EXIF orientation and scaled to 8 bits.

    The picture stays as it is.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # no copy of the many that are upright already
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, which conversion would cut off at 255
        grey = (np.asarray(image) // 256).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
    return pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
