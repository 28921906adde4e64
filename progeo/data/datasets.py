"""Datasets of images: a row of a catalogue in, uint8 pixels out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
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
        preprocess: uint8 (3, H, W) -> uint8 (3, height, width), or crops of it; None leaves the image as it is.
        orientation: whether images are turned upright, see `pixels_of`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        orientation: Orientation = "exif",
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
            return image if self.preprocess is None else self.preprocess(image)
        except ValueError as error:
            return Unreadable(f"The image {self.catalogue.path(row)} cannot be described: {error}.")


@dataclass(frozen=True)
class Replaced:
    """What stands for an item that could not be read."""

    item: tuple[Tensor, int]
    reason: str


class LabeledImages(Dataset):
    """Crops of the images of one group, with their labels.

    Args:
        images: the dataset of all training images.
        rows: which of them belong to the group, class by class, int64 (n,).
        offsets: images of label c are rows[offsets[c]:offsets[c + 1]], int64 (C + 1,).
        crop: an image and what was drawn for it -> uint8 (3, height, width).
    """

    def __init__(
        self, images: Dataset, rows: np.ndarray, offsets: np.ndarray, crop: Callable[[Tensor, np.ndarray], Tensor]
    ) -> None:
        self.images = images
        self.rows = rows
        self.offsets = offsets
        self.crop = crop

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[Tensor, int] | Replaced | Unreadable:
        """Crop an image of the group with what was drawn for it; the next one of its class that can be read.

        Args:
            item: the index within the group, and the draws.
        """
        index, draws = item
        label = int(np.searchsorted(self.offsets, index, side="right")) - 1
        start, end = self.offsets[label : label + 2].tolist()
        first = self.images[int(self.rows[index])]
        if not isinstance(first, Unreadable):
            return self.crop(first, draws), label
        for other in (*range(index + 1, end), *range(start, index)):
            image = self.images[int(self.rows[other])]
            if not isinstance(image, Unreadable):
                return Replaced((self.crop(image, draws), label), first.reason)
        return first


class CachedImages(Dataset):
    """Images of any shapes that were decoded once and are kept in memory.

    Their pixels lie in one tensor, which worker processes share.

    Args:
        shapes: height and width of each, int64 (N, 2).
    """

    def __init__(self, shapes: np.ndarray) -> None:
        self.shapes = shapes
        self.ends = 3 * shapes.prod(axis=1).cumsum()
        self.pixels = torch.empty(int(self.ends[-1]), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, row: int) -> Tensor:
        """The pixels of image `row`, uint8 (3, H, W), channels last in memory as resizing is fastest then."""
        height, width = self.shapes[row].tolist()
        end = int(self.ends[row])
        return self.pixels[end - 3 * height * width : end].view(height, width, 3).permute(2, 0, 1)
