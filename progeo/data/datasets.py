"""Datasets of images: a row of a catalogue in, uint8 pixels out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from progeo.data.decode import read_image
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, as a value: a worker process can hand it over whole, unlike an exception."""

    reason: str


def max_unreadable(fraction: float, count: int) -> int:
    """How many of `count` images may be unreadable: this fraction of them, but at least one where it is above 0."""
    return max(1, math.floor(fraction * count + 1e-9)) if fraction else 0


class CatalogueImages(Dataset):
    """The images of a catalogue, preprocessed.

    Args:
        catalogue: N images.
        preprocess: uint8 (3, H, W) -> uint8 (3, height, width), or crops of it.
        orientation: whether images are turned upright, see `pixels_of`.
    """

    def __init__(
        self, catalogue: Catalogue, preprocess: Callable[[Tensor], Tensor], orientation: Orientation = "exif"
    ) -> None:
        self.catalogue = catalogue
        self.preprocess = preprocess
        self.orientation = orientation

    def __len__(self) -> int:
        return len(self.catalogue)

    def __getitem__(self, row: int) -> Tensor | Unreadable:
        """The pixels of image `row`, uint8 (3, height, width), or of crops of it (5, 3, s, s)."""
        try:
            image = read_image(self.catalogue.path(row), self.orientation)
        except (ValueError, OSError) as error:
            return Unreadable(str(error))
        try:
            return self.preprocess(image)
        except ValueError as error:
            return Unreadable(f"The image {self.catalogue.path(row)} cannot be described: {error}.")


@dataclass(frozen=True)
class Replaced:
    """What stands for an item that could not be read."""

    item: tuple[Tensor, int]
    reason: str


class LabelledImages(Dataset):
    """Images of one group with their labels.

    Args:
        images: the dataset of all training images.
        rows: which of them belong to the group, class by class, int64 (n,).
        offsets: images of label c are rows[offsets[c]:offsets[c + 1]], int64 (C + 1,).
    """

    def __init__(self, images: Dataset, rows: np.ndarray, offsets: np.ndarray) -> None:
        self.images = images
        self.rows = rows
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Replaced | Unreadable:
        """The pixels and the label of image `index` of the group; the next one of its class that can be read."""
        label = int(np.searchsorted(self.offsets, index, side="right")) - 1
        start, end = self.offsets[label : label + 2].tolist()
        first = self.images[int(self.rows[index])]
        if not isinstance(first, Unreadable):
            return first, label
        for other in (*range(index + 1, end), *range(start, index)):
            image = self.images[int(self.rows[other])]
            if not isinstance(image, Unreadable):
                return Replaced((image, label), first.reason)
        return first


class CachedImages(Dataset):
    """Images that were decoded once and are kept in memory."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Tensor:
        """The pixels of image `row`, uint8 (3, height, width)."""
        return self.pixels[row]
