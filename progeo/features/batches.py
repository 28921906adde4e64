"""From images to descriptors, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import build_loader


@dataclass(frozen=True)
class FeatureBatch:
    """Descriptions of some images of a catalogue."""

    rows: np.ndarray
    """Which images they are of, int64 (n,)."""
    values: np.ndarray
    """(n, D)."""
    unreadable: dict[int, str]
    """Why other images of the batch could not be read, by row."""


def feature_batches(
    extract: Callable[[Tensor], Tensor],
    images: CatalogueImages,
    batches: Iterable[Sequence[int]],
    *,
    total: int,
    width: int,
    num_workers: int,
    what: str,
    hidden: bool = False,
    filled_to: int | None = 1,
) -> Iterator[FeatureBatch]:
    """Describe images, with a progress bar.

    An image that cannot be read leaves zeros in its batch: how a network rounds depends on how many images there are.
    Where it depends on the images themselves, as with batch norm, nothing is filled.

    Args:
        extract: uint8 images (B, 3, H, W), or what else `images` gives -> descriptions (B, D) on the CPU.
        images: of a catalogue.
        batches: rows of it, those of a batch all of one shape.
        total: images in all of them.
        width: D.
        num_workers: processes that decode images.
        what: what the progress bar says.
        hidden: show no progress bar.
        filled_to: smaller batches get zeros after their images, until they have so many; None leaves zeros nowhere.
    """
    taken, batches = tee(batches)  # the loader is some batches ahead
    loader = build_loader(images, taken, num_workers=num_workers)
    with tqdm(total=total, desc=what, unit="img", leave=False, disable=True if hidden else None) as bar:
        for batch, loaded in zip(batches, loader, strict=True):
            rows = np.asarray(batch, np.int64)
            readable = np.array([place not in loaded.unreadable for place in range(len(rows))], bool)
            values = np.empty((0, width), np.float32)
            if filled_to is None and readable.any():
                values = extract(loaded.items).numpy()
            elif filled_to is not None and readable.any():
                places = np.flatnonzero(readable)
                values = extract(_filled(loaded.items, places, max(len(rows), filled_to))).numpy()[places]
            reasons = {int(rows[place]): reason for place, reason in loaded.unreadable.items()}
            yield FeatureBatch(rows[readable], values, reasons)
            bar.update(len(rows))


def _filled(images: Tensor, places: np.ndarray, count: int) -> Tensor:
    """A batch of `count` images, these at their places and zeros at all others."""
    if len(images) == count:
        return images
    filled = images.new_zeros((count, *images.shape[1:]))
    filled[torch.from_numpy(places)] = images
    return filled


def extract_rows(
    extract: Callable[[Tensor], Tensor],
    images: CatalogueImages,
    rows: range,
    batches: Iterable[Sequence[int]],
    *,
    width: int,
    num_workers: int,
    what: str,
    hidden: bool = False,
    filled_to: int = 1,
) -> tuple[np.ndarray, dict[int, str]]:
    """Describe some images in memory: float32 (len(rows), D), and why some could not be read, by row.

    Args:
        rows: which images, those of `batches` together.
        extract, images, batches, width, num_workers, what, hidden, filled_to: see `feature_batches`.
    """
    values = np.zeros((len(rows), width), np.float32)
    unreadable: dict[int, str] = {}
    for batch in feature_batches(
        extract,
        images,
        batches,
        total=len(rows),
        width=width,
        num_workers=num_workers,
        what=what,
        hidden=hidden,
        filled_to=filled_to,
    ):
        values[batch.rows - rows.start] = batch.values
        unreadable |= batch.unreadable
    return values, unreadable
