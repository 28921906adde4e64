"""Image features of the frozen CLIP model, which stage 1 compares its prompts with."""

from pathlib import Path

import torch
from accelerate import Accelerator
from open_clip import CLIP
from torch import Tensor

from progeo.models.clip import as_height_width, weights_digest
from progeo.models.pixel_statistics import PixelStatistics
from progeo.models.preprocessing import normalise_images
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue
from progeo.stages.described import Cache, Described, Describer, described_once


def cached_features(
    clip: CLIP,
    catalogue: Catalogue,
    cache: Path,
    accelerator: Accelerator,
    *,
    architecture: str,
    pixels: PixelStatistics,
    batch_size: int,
    num_workers: int,
    max_unreadable_fraction: float,
    orientation: Orientation = "exif",
) -> Described:
    """Features of every image of a catalogue, float16 (N, E), from the cache as far as they are there.

    Args:
        clip: on the accelerator's device, in eval mode.
        catalogue: N images.
        cache: folder of all cached features.
        accelerator: gives device, precision and processes.
        architecture: of `clip`, with its activation: its weights do not tell.
        pixels: the mean and std that images are normalized with.
        batch_size: images a batch.
        num_workers: processes that decode images, for each process.
        max_unreadable_fraction: of the images, 0 to 1.
        orientation: whether images are turned upright first.

    Raises:
        ValueError: what is cached was made from something else, or too many images cannot be read.
    """
    mean, std = (torch.tensor(values, device=accelerator.device) for values in (pixels.mean, pixels.std))

    @torch.inference_mode()
    def describe(images: Tensor) -> Tensor:
        with accelerator.autocast():
            return clip.encode_image(normalise_images(images.to(accelerator.device), mean, std)).half().cpu()

    describer = Describer(
        describe,
        what="image features",
        width=clip.text_projection.shape[1],
        image_size=as_height_width(clip.visual.image_size),
        preprocessing="hard_resize",
        depends_on=lambda: {
            "architecture": architecture,
            "visual_weights": weights_digest(clip.visual.state_dict()),
            "normalisation": {"mean": list(pixels.mean), "std": list(pixels.std)},
        },
        orientation=orientation,
    )
    return described_once(
        describer,
        catalogue,
        accelerator,
        cache=Cache(cache, "float16", "prompts.feature_cache", "data.max_unreadable_fraction"),
        batch_size=batch_size,
        num_workers=num_workers,
        max_unreadable_fraction=max_unreadable_fraction,
    )
