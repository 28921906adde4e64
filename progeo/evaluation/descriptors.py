"""From images to descriptors."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm


@torch.inference_mode()
def extract_descriptors(
    describe: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    accelerator: Accelerator,
    *,
    num_images: int,
    dim: int,
    description: str,
) -> np.ndarray:
    """Describe all images, in their order.

    Args:
        describe: uint8 images (B, 3, H, W) -> descriptors (B, D).
        batches: uint8 images (B, 3, H, W).
        accelerator: gives device and precision.
        num_images: N, the length of the progress bar.
        dim: D, of a descriptor.
        description: what the progress bar says.

    Returns:
        float32 (N, D).
    """
    parts = [np.empty((0, dim), np.float32)]
    hidden = None if accelerator.is_main_process else True
    with (
        tqdm(total=num_images, desc=description, unit="img", leave=False, disable=hidden) as bar,
        accelerator.autocast(),
    ):
        for images in batches:
            parts.append(describe(images.to(accelerator.device)).float().cpu().numpy())
            bar.update(len(images))
    return np.concatenate(parts)
