"""Descriptors of all training images, which tuples are mined by and students learn from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.data.options import DataOptions
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue


class ImageDescriptors:
    """The descriptors (N, D) of all training images, those of one catalogue after the other.

    Args:
        parts: the descriptors of each catalogue, without images that cannot be read.
    """

    def __init__(self, parts: Sequence[ShardedRows]) -> None:
        self.starts = np.cumsum([0, *(each.num_rows for each in parts)])
        self.unreadable = np.concatenate(
            [each.missing + start for each, start in zip(parts, self.starts, strict=False)]
        )
        """Rows of images that cannot be read, whose descriptors are 0."""
        self.parts = [each.complete for each in parts]
        """The descriptors of each catalogue."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the descriptors of `rows`, int64 (n,), in the given order: (n, D)."""
        found = np.empty((len(rows), self.parts[0].width), self.parts[0].dtype)
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        for index in np.unique(part_of).tolist():
            here = part_of == index
            found[here] = self.parts[index].take(rows[here] - self.starts[index])
        return found


def extract_image_descriptors(
    encoder: Encoder,
    catalogues: Sequence[Catalogue],
    accelerator: Accelerator,
    *,
    data: DataOptions,
    cache: Path,
    is_kept: bool = True,
) -> ImageDescriptors:
    """Extract the descriptors of whole images that are missing from a cache, shared among processes.

    Args:
        encoder: in eval mode.
        data: how images are read.
        cache: folder of cached descriptors.
        is_kept: whether the cache stays, so that logs name it.

    Raises:
        ValueError: too many images cannot be read.
    """
    extractor = training_image_extractor(encoder, data, accelerator)
    work = WorkOptions(batch_size=data.eval_batch_size, num_workers=data.num_workers)
    options = CacheOptions(descriptor_cache=cache, max_unreadable_fraction=data.max_unreadable_fraction)
    return ImageDescriptors(
        [
            extract_descriptors(extractor, each, accelerator, work=work, cache=options, is_kept=is_kept)
            for each in catalogues
        ]
    )


def training_image_extractor(encoder: Encoder, data: DataOptions, accelerator: Accelerator) -> FeatureExtractor:
    """Build the extractor of descriptors of whole training images, which are read as `data` says."""
    images = ImageOptions(orientation=data.orientation, fast_decode=data.fast_decode)
    return descriptor_extractor(encoder, images, accelerator)
