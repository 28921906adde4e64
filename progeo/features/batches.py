"""Extract features batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import build_loader
from progeo.data.photos import PhotoImages
from progeo.progress import Progress


@dataclass(frozen=True)
class FeatureBatch:
    """Features of one batch of images."""

    rows: np.ndarray
    """Catalogue rows of the readable images, int64 (n,)."""
    values: np.ndarray
    """Features (n, D)."""
    unreadable: dict[int, str]
    """Why the other images of the batch could not be read, by catalogue row."""


def feature_batches(
    extract: Callable[[Tensor], Tensor],
    images: CatalogueImages | PhotoImages,
    batches: Iterable[np.ndarray],
    *,
    width: int,
    num_workers: int,
    bar: Progress,
    filled_to: int | None = 1,
) -> Iterator[FeatureBatch]:
    """Extract features of images batch by batch.

    An unreadable image is replaced by zeros, because the rounding of a network depends on the batch size. Where
    features depend on the other images themselves, as with batch norm, nothing is padded.

    Args:
        extract: maps uint8 images (B, 3, H, W), or what `images` gives instead, to features (B, D) on the CPU.
        batches: catalogue rows of each batch, all of one shape, asked for when workers are to decode the next.
        width: D.
        num_workers: processes that decode images.
        bar: shows the progress.
        filled_to: pad smaller batches with zeros to this size; None never pads.
    """
    batches, taken = tee(batches)  # the loader runs some batches ahead
    loader = build_loader(images, batches, num_workers=num_workers)
    for loaded, batch in zip(loader, taken, strict=True):
        rows = np.asarray(batch, np.int64)
        readable = np.array([index not in loaded.unreadable for index in range(len(rows))], bool)
        values = np.empty((0, width), np.float32)
        if filled_to is None and readable.any():
            values = extract(loaded.items).numpy()
        elif filled_to is not None and readable.any():
            indices = np.flatnonzero(readable)
            values = extract(_filled(loaded.items, indices, max(len(rows), filled_to))).numpy()[indices]
        reasons = {int(rows[index]): reason for index, reason in loaded.unreadable.items()}
        yield FeatureBatch(rows[readable], values, reasons)
        bar.update(len(rows))


def _filled(images: Tensor, indices: np.ndarray, count: int) -> Tensor:
    """Return a batch of `count` images: these at these indices, zeros at all others."""
    if len(images) == count:
        return images
    filled = images.new_zeros((count, *images.shape[1:]))
    filled[torch.from_numpy(indices)] = images
    return filled


def extract_rows(
    extract: Callable[[Tensor], Tensor],
    images: CatalogueImages | PhotoImages,
    rows: range,
    batches: Iterable[np.ndarray],
    *,
    width: int,
    what: str,
    hidden: bool = False,
    **options: Any,
) -> tuple[np.ndarray, dict[int, str]]:
    """Extract features into memory: float32 (len(rows), D), and why some images could not be read, by row.

    Args:
        rows: the catalogue rows of all `batches` together.
        what: what is extracted, for the progress; `hidden` shows none.
        extract, images, batches, width, options: see `feature_batches`.
    """
    values = np.zeros((len(rows), width), np.float32)
    unreadable: dict[int, str] = {}
    with Progress(what, total=len(rows), hidden=hidden) as bar:
        for batch in feature_batches(extract, images, batches, width=width, bar=bar, **options):
            values[batch.rows - rows.start] = batch.values
            unreadable |= batch.unreadable
    return values, unreadable
