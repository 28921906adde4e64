"""Calibrate the batch norms of a CLIP whose weights never saw an image, with one pass over images."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from progeo.atomic import replacing
from progeo.engine.accelerator import of_main_process
from progeo.engine.log import LOGGER
from progeo.features.batches import feature_batches
from progeo.features.claims import Claims
from progeo.features.extractor import FeatureExtractor
from progeo.features.store import ShardedRows
from progeo.models.batch_norm import batch_statistics, running_statistics, set_running_statistics
from progeo.models.state_dicts import check_fits
from progeo.models.weight_files.tensor_files import read_safetensors
from progeo.places.catalogue import Catalogue
from progeo.progress import Progress

MAX_CALIBRATION_IMAGES = 4096
_STATISTICS = "batch_norm.safetensors"
_CLAIM = "batch_norm"
_BATCH_SIZE = 64
"""Fixed, so that features do not depend on the batch size of extraction."""


def calibrate_batch_norms(
    extractor: FeatureExtractor,
    clip: CLIP,
    catalogue: Catalogue,
    rows: ShardedRows,
    claims: Claims,
    *,
    accelerator: Accelerator,
    num_workers: int,
    seed: int,
) -> None:
    """Set the batch-norm statistics that belong to the features: load those cached beside them, else run one pass."""
    file = rows.folder / _STATISTICS
    if accelerator.is_main_process:
        is_mine, runs_elsewhere = claims.take(_CLAIM), False
        while not is_mine:  # another process runs the pass
            claims.wait()
            is_mine, runs_elsewhere = claims.take(_CLAIM), True
        has_features = len(rows.missing_shards()) < len(rows.shards)
        # Before the first features are written, images may have changed since the statistics were.
        if not ((has_features or runs_elsewhere) and file.is_file()):
            _run_calibration(extractor, clip, catalogue, num_workers=num_workers, seed=seed)
            with replacing(file) as temporary:
                save_file(running_statistics(clip.visual), temporary)
        claims.release(_CLAIM)
    statistics = _read_statistics(file, clip.visual) if accelerator.is_main_process else None
    set_running_statistics(clip.visual, of_main_process(statistics))


def random_order(count: int, seed: int) -> np.ndarray:
    """Return a random permutation of 0..count-1, int64 (count,), with a seed that no training epoch uses."""
    return np.random.default_rng([seed, 2**32 - 1]).permutation(count)


def _run_calibration(
    extractor: FeatureExtractor, clip: CLIP, catalogue: Catalogue, *, num_workers: int, seed: int
) -> None:
    """Set the batch norms to the mean statistics of batches of random images; unreadable images are skipped."""
    order = random_order(len(catalogue), seed)[:MAX_CALIBRATION_IMAGES]
    with batch_statistics(clip.visual, keep=True), Progress("calibration", total=len(order)) as bar:
        batches = feature_batches(
            extractor.extract,
            extractor.images(catalogue),
            np.array_split(order, -(-len(order) // _BATCH_SIZE)),
            width=extractor.width,
            num_workers=num_workers,
            bar=bar,
            filled_to=None,
        )
        count = sum(len(batch.rows) for batch in batches)
    LOGGER.info(
        "the batch norms of these weights never saw an image: they take the statistics of %d images, see `batch_norm`",
        count,
    )


def _read_statistics(file: Path, network: nn.Module) -> dict[str, Tensor]:
    try:
        statistics = read_safetensors(file)
        check_fits(statistics, running_statistics(network), file.name)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{reason}: remove {file.parent}, and its features are extracted again.") from None
    return statistics
