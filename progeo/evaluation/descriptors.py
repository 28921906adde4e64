"""From images to descriptors."""

from collections.abc import Iterable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm


@torch.inference_mode()
def extract_descriptors(
    encoder: nn.Module,
    batches: Iterable[Tensor],
    accelerator: Accelerator,
    *,
    num_images: int,
    description: str,
) -> np.ndarray:
    """Describe all images, in their order.

    Args:
        encoder: has `normalise` (uint8 -> float) and maps (B, 3, H, W) to (B, D); left in the mode it was in.
        batches: uint8 images (B, 3, H, W).
        accelerator: gives device and precision.
        num_images: N, the length of the progress bar.
        description: what the progress bar says.

    Returns:
        float32 (N, D).
    """
    was_training = encoder.training
    encoder.eval()
    parts = []
    with tqdm(total=num_images, desc=description, unit="img", leave=False, disable=None) as bar, accelerator.autocast():
        for images in batches:
            parts.append(encoder(encoder.normalise(images.to(accelerator.device))).float().cpu().numpy())
            bar.update(len(images))
    encoder.train(was_training)
    return np.concatenate(parts)
