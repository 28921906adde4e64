"""From images to descriptors, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from tqdm import tqdm

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import build_loader


@dataclass(frozen=True)
class DescribedBatch:
    """Descriptions of some images of a catalogue."""

    rows: np.ndarray
    """Which images they are of, int64 (n,)."""
    values: np.ndarray
    """(n, D)."""
    unreadable: dict[int, str]
    """Why other images of the batch could not be read, by row."""


def described_batches(
    describe: Callable[[Tensor], Tensor],
    images: CatalogueImages,
    batches: Sequence[Sequence[int]],
    *,
    width: int,
    num_workers: int,
    what: str,
    hidden: bool = False,
) -> Iterator[DescribedBatch]:
    """Describe images, with a progress bar.

    Args:
        describe: uint8 images (B, 3, H, W), or what else `images` gives -> descriptions (B, D) on the CPU.
        images: of a catalogue.
        batches: rows of it, those of a batch all of one shape.
        width: D.
        num_workers: processes that decode images.
        what: what the progress bar says.
        hidden: show no progress bar.
    """
    loader = build_loader(images, batches, num_workers=num_workers)
    total = sum(map(len, batches))
    with tqdm(total=total, desc=what, unit="img", leave=False, disable=True if hidden else None) as bar:
        for batch, loaded in zip(batches, loader, strict=True):
            rows = np.asarray(batch, np.int64)
            readable = np.array([place not in loaded.unreadable for place in range(len(rows))], bool)
            values = describe(loaded.items).numpy() if readable.any() else np.empty((0, width), np.float32)
            reasons = {int(rows[place]): reason for place, reason in loaded.unreadable.items()}
            yield DescribedBatch(rows[readable], values, reasons)
            bar.update(len(rows))
