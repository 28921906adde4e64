"""Image features of the frozen CLIP model, which stage 1 compares its prompts with."""

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor

from progeo.engine.accelerator import of_main_process
from progeo.engine.log import LOGGER
from progeo.features.batches import feature_batches
from progeo.features.cache import Cache
from progeo.features.extract import ExtractedFeatures, extract_features
from progeo.features.extractor import FeatureExtractor, run_on
from progeo.features.store import ShardedRows
from progeo.files import replacing
from progeo.models.backbones.open_clip import weights_digest
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.batch_norm import (
    BatchNormMode,
    batch_norm_mode,
    batch_statistics,
    running_statistics,
    set_running_statistics,
)
from progeo.models.pixel_statistics import PixelStatistics
from progeo.models.preprocessing import normalize_images
from progeo.models.weight_files.tensor_files import read_safetensors
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue

_STATISTICS = "batch_norm.safetensors"
_MAX_CALIBRATION_IMAGES = 4096
_CALIBRATION_BATCH_SIZE = 64
"""Fixed, so that features do not depend on the batch size of extraction."""


def extraction_order(rows: np.ndarray, clip: CLIP, *, batch_norm: BatchNormMode, seed: int) -> np.ndarray:
    """Order rows (N,) for `cached_features`: randomly if batch norms use batch statistics, unchanged otherwise."""
    if batch_norm_mode(clip.visual, batch_norm) != "batch":
        return rows
    return rows[_random_order(len(rows), seed)]


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
    batch_norm: BatchNormMode = "eval",
    seed: int = 0,
) -> ExtractedFeatures:
    """Extract CLIP features float16 (N, E) for every image, computing only those missing from the cache.

    Args:
        clip: the model, on the accelerator's device and in eval mode; calibrated running statistics stay in it.
        catalogue: N images, in their `extraction_order`.
        cache: folder of all cached features.
        accelerator: gives the device, the precision and the processes.
        architecture: name of the architecture of `clip` including its activation, which the weights do not tell.
        pixels: mean and std that images are normalized with.
        batch_size: images per batch.
        num_workers: decoding processes, for each process.
        max_unreadable_fraction: maximum fraction of unreadable images, 0 to 1.
        orientation: whether images are rotated upright by their EXIF orientation first.
        batch_norm: which statistics batch norms normalize with.
        seed: random seed of the calibration images, or of the `extraction_order`.

    Raises:
        ValueError: the cached features were made from something else, or too many images cannot be read.
    """
    mode = batch_norm_mode(clip.visual, batch_norm)
    if mode == "batch":
        batch_size = _even_batch_size(len(catalogue), batch_size)
    extractor = _clip_extractor(
        clip,
        accelerator,
        architecture=architecture,
        pixels=pixels,
        orientation=orientation,
        batch_norm=_batch_norm_key(mode, len(catalogue), batch_size=batch_size, seed=seed),
        depends_on_batch=mode == "batch",
    )
    if mode == "calibrated":
        calibrate = partial(
            _calibrate, extractor, clip, catalogue, accelerator=accelerator, num_workers=num_workers, seed=seed
        )
        extractor = dataclasses.replace(extractor, prepare=calibrate)
    with batch_statistics(clip.visual, keep=False) if mode == "batch" else nullcontext():
        return extract_features(
            extractor,
            catalogue,
            accelerator,
            cache=Cache(cache, "float16", "feature_cache"),
            batch_size=batch_size,
            num_workers=num_workers,
            max_unreadable_fraction=max_unreadable_fraction,
        )


def _clip_extractor(
    clip: CLIP,
    accelerator: Accelerator,
    *,
    architecture: str,
    pixels: PixelStatistics,
    orientation: Orientation,
    batch_norm: Mapping[str, Any],
    depends_on_batch: bool,
) -> FeatureExtractor:
    """Build the feature extractor of a CLIP; `batch_norm` is the cache metadata of its batch norms."""
    mean, std = (torch.tensor(values, device=accelerator.device) for values in (pixels.mean, pixels.std))
    return FeatureExtractor(
        run_on(accelerator, lambda images: clip.encode_image(normalize_images(images, mean, std))),
        what="image features",
        width=clip.text_projection.shape[1],
        image_size=as_height_width(clip.visual.image_size),
        preprocessing="hard_resize",
        depends_on=lambda: {
            "architecture": architecture,
            "visual_weights": weights_digest(clip.visual.state_dict()),
            "normalization": {"mean": list(pixels.mean), "std": list(pixels.std)},
            **batch_norm,
        },
        orientation=orientation,
        depends_on_batch=depends_on_batch,
    )


def _batch_norm_key(mode: BatchNormMode, num_images: int, *, batch_size: int, seed: int) -> dict[str, Any]:
    """Return the cache metadata of the batch norms; empty if they use the statistics of the weights."""
    if mode == "calibrated":
        return {"batch_norm": {"mode": mode, "seed": seed, "images": min(num_images, _MAX_CALIBRATION_IMAGES)}}
    return {"batch_norm": {"mode": mode, "seed": seed, "batch_size": batch_size}} if mode == "batch" else {}


def _calibrate(
    extractor: FeatureExtractor,
    clip: CLIP,
    catalogue: Catalogue,
    rows: ShardedRows,
    *,
    accelerator: Accelerator,
    num_workers: int,
    seed: int,
) -> None:
    """Set the batch-norm statistics that belong to the features: load those cached beside them, else run one pass."""
    file = rows.folder / _STATISTICS
    if accelerator.is_main_process:
        has_features = len(rows.missing_shards()) < len(rows.shards)
        if not (has_features and file.is_file()):  # before the first features are written, images may have changed
            _run_calibration(extractor, clip, catalogue, num_workers=num_workers, seed=seed)
            with replacing(file) as temporary:
                save_file(running_statistics(clip.visual), temporary)
    statistics = _read_statistics(file) if accelerator.is_main_process else None
    set_running_statistics(clip.visual, of_main_process(statistics))


def _read_statistics(file: Path) -> dict[str, Tensor]:
    try:
        return read_safetensors(file)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{reason}: remove {file.parent}, and its features are extracted again.") from None


def _run_calibration(
    extractor: FeatureExtractor, clip: CLIP, catalogue: Catalogue, *, num_workers: int, seed: int
) -> None:
    """Set the batch norms to the mean statistics of batches of random images; unreadable images are skipped."""
    order = _random_order(len(catalogue), seed)[:_MAX_CALIBRATION_IMAGES]
    with batch_statistics(clip.visual, keep=True):
        batches = feature_batches(
            extractor.extract,
            extractor.images(catalogue),
            np.array_split(order, -(-len(order) // _CALIBRATION_BATCH_SIZE)),
            total=len(order),
            width=extractor.width,
            num_workers=num_workers,
            what="calibration",
            filled_to=None,
        )
        count = sum(len(batch.rows) for batch in batches)
    LOGGER.info(
        "the batch norms of these weights never saw an image: they take the statistics of %d images, see `batch_norm`",
        count,
    )


def _random_order(count: int, seed: int) -> np.ndarray:
    """Return a random permutation of 0..count-1, int64 (count,), with a seed that no training epoch uses."""
    return np.random.default_rng([seed, 2**32 - 1]).permutation(count)


def _even_batch_size(num_images: int, max_size: int) -> int:
    """Return the largest batch size for which the last batch is at least half full."""
    sizes = range(min(num_images, max_size), 0, -1)
    return next(size for size in sizes if num_images % size == 0 or 2 * (num_images % size) >= size)
