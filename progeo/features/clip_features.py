"""Image features of the frozen CLIP model, which stage 1 compares its prompts with."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP

from progeo.features.cache import Cache
from progeo.features.calibration import MAX_CALIBRATION_IMAGES, calibrate_batch_norms, random_order
from progeo.features.extract import ExtractedFeatures, extract_features
from progeo.features.extractor import FeatureExtractor, run_on
from progeo.image_files import Orientation
from progeo.models.backbones.clip_configurations import configuration_of, has_named_tower
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.batch_norm import batch_norm_mode, batch_statistics
from progeo.models.options import BatchNormMode
from progeo.models.pixel_statistics import PixelStatistics
from progeo.models.preprocessing import normalize_images
from progeo.models.state_dicts import weights_digest
from progeo.places.catalogue import Catalogue

FEATURE_BYTES = 2
"""Size of a number of cached features, float16."""


def extraction_order(rows: np.ndarray, clip: CLIP, *, batch_norm: BatchNormMode, seed: int) -> np.ndarray:
    """Order rows (N,) for `cached_features`: randomly if batch norms use batch statistics, unchanged otherwise."""
    if batch_norm_mode(clip.visual, batch_norm) != "batch":
        return rows
    return rows[random_order(len(rows), seed)]


def cached_features(
    clip: CLIP,
    catalogue: Catalogue,
    cache: Cache,
    accelerator: Accelerator,
    *,
    architecture: str,
    pixels: PixelStatistics,
    batch_size: int,
    num_workers: int,
    max_unreadable_fraction: float,
    orientation: Orientation = "exif",
    fast_decode: bool = False,
    batch_norm: BatchNormMode = "eval",
    seed: int = 0,
) -> ExtractedFeatures:
    """Extract CLIP features float16 (N, E) for every image, computing only those missing from the cache.

    Args:
        clip: the model, on the accelerator's device and in eval mode; calibrated running statistics stay in it.
        catalogue: N images, in their `extraction_order`.
        cache: folder of all cached features, and their precision.
        pixels: interpolation, mean and std that images are resized and normalized with.
        architecture: name of the architecture of `clip`, see `resolved_architecture`.
        accelerator, batch_size, num_workers, max_unreadable_fraction: see `extract_features`.
        seed: random seed of the calibration images, or of the `extraction_order`.

    Raises:
        ValueError: the cached features were made from something else, or too many images cannot be read.
    """
    with clip_extractor(
        clip,
        catalogue,
        accelerator,
        architecture=architecture,
        pixels=pixels,
        batch_size=batch_size,
        num_workers=num_workers,
        orientation=orientation,
        fast_decode=fast_decode,
        batch_norm=batch_norm,
        seed=seed,
    ) as (extractor, batch_size):
        return extract_features(
            extractor,
            catalogue,
            accelerator,
            cache=cache,
            batch_size=batch_size,
            num_workers=num_workers,
            max_unreadable_fraction=max_unreadable_fraction,
        )


@contextmanager
def clip_extractor(
    clip: CLIP,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    architecture: str,
    pixels: PixelStatistics,
    batch_size: int,
    num_workers: int,
    orientation: Orientation,
    fast_decode: bool,
    batch_norm: BatchNormMode,
    seed: int,
) -> Iterator[tuple[FeatureExtractor, int]]:
    """Yield the extractor of `cached_features`, which takes the same arguments, and the batch size that it needs."""
    mode = batch_norm_mode(clip.visual, batch_norm)
    if mode == "batch":
        batch_size = _even_batch_size(len(catalogue), batch_size)
    mean, std = (torch.tensor(values, device=accelerator.device) for values in (pixels.mean, pixels.std))
    extractor = FeatureExtractor(
        run_on(accelerator, lambda images: clip.encode_image(normalize_images(images, mean, std), normalize=False)),
        what="image features",
        width=configuration_of(clip).values["embed_dim"],
        image_size=as_height_width(clip.visual.image_size),
        preprocessing="hard_resize",
        resize=pixels.resize,
        depends_on=lambda: {
            "architecture": architecture,
            **_own_configuration(clip, architecture),
            "visual_weights": weights_digest(clip.visual.state_dict()),
            "normalization": {"mean": list(pixels.mean), "std": list(pixels.std)},
            **_batch_norm_key(mode, len(catalogue), batch_size=batch_size, seed=seed),
        },
        orientation=orientation,
        fast_decode=fast_decode,
        depends_on_batch=mode == "batch",
    )
    if mode == "calibrated":
        how = {"accelerator": accelerator, "num_workers": num_workers, "seed": seed}
        prepare = partial(calibrate_batch_norms, extractor, clip, catalogue, **how)
        extractor = dataclasses.replace(extractor, prepare=prepare)
    with batch_statistics(clip.visual, keep=False) if mode == "batch" else nullcontext():
        yield extractor, batch_size


def _own_configuration(clip: CLIP, architecture: str) -> dict[str, Any]:
    """Return the cache metadata of a visual tower that is not what its architecture's name says; empty for others."""
    own = configuration_of(clip)
    return {} if has_named_tower(architecture, own) else {"configuration": own.feature_settings(visual_only=True)}


def _batch_norm_key(mode: BatchNormMode, num_images: int, *, batch_size: int, seed: int) -> dict[str, Any]:
    """Return the cache metadata of the batch norms; empty if they use the statistics of the weights."""
    if mode == "calibrated":
        return {"batch_norm": {"mode": mode, "seed": seed, "images": min(num_images, MAX_CALIBRATION_IMAGES)}}
    return {"batch_norm": {"mode": mode, "seed": seed, "batch_size": batch_size}} if mode == "batch" else {}


def _even_batch_size(num_images: int, max_size: int) -> int:
    """Return the largest batch size for which the last batch is at least half full."""
    sizes = range(min(num_images, max_size), 0, -1)
    return next(size for size in sizes if num_images % size == 0 or 2 * (num_images % size) >= size)
