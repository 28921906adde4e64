"""Datasets of images: from a row of a catalogue to uint8 pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from progeo.data.decode import MinShape, read_image, read_shape
from progeo.image_files import Orientation
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, as a value, because a worker process can return a value but not an exception."""

    reason: str


def max_unreadable(fraction: float, count: int) -> int:
    """Compute how many of `count` images may be unreadable: this fraction, but at least one if it is above 0."""
    return max(1, math.floor(fraction * count + 1e-9)) if fraction else 0


@dataclass(frozen=True, eq=False)
class CatalogueImages(Dataset):
    """The preprocessed images of a catalogue."""

    catalogue: Catalogue
    preprocess: Callable[[Tensor], Tensor] | None = None
    """Maps uint8 (3, H, W) to uint8 (3, height, width), or several crops; None leaves the image unchanged."""
    orientation: Orientation = "exif"
    """Whether images are rotated upright, see `pixels_of`."""
    min_shape: MinShape | None = None
    """Minimum height and width of JPEG files that may be decoded at a reduced size; None decodes all pixels."""
    bytes_in_memory = 0
    """Number of bytes of decoded images that are kept: none."""

    def __len__(self) -> int:
        return len(self.catalogue)

    def __getitem__(self, row: int) -> Tensor | Unreadable:
        """Return the pixels of image `row`, uint8 (3, height, width), or of its crops (5, 3, s, s)."""
        try:
            image = read_image(self.catalogue.path(row), self.orientation, self.min_shape)
        except (ValueError, OSError) as error:
            return Unreadable(str(error))
        try:
            return image if self.preprocess is None else self.preprocess(image)
        except ValueError as error:
            return Unreadable(f"The image {self.catalogue.path(row)} cannot be preprocessed: {error}.")

    def shape(self, row: int) -> tuple[int, int] | None:
        """Read the height and width of an image before `preprocess`, see `read_shape`."""
        return read_shape(self.catalogue.path(row), self.orientation, self.min_shape)


@dataclass(frozen=True)
class Replaced:
    """An item that is used in place of one that could not be read."""

    item: tuple[Tensor, int, int]
    reason: str


@dataclass(frozen=True, eq=False)
class LabeledImages(Dataset):
    """Crops of the images of one group, with their labels and rows."""

    images: Dataset
    """The dataset of all training images."""
    rows: np.ndarray
    """Rows of the group's images in `images`, sorted by class, int64 (n,)."""
    offsets: np.ndarray
    """Images of label c are rows[offsets[c]:offsets[c + 1]], int64 (C + 1,)."""
    crop: Callable[[Tensor, np.ndarray], Tensor]
    """Maps an image and its random numbers to uint8 (3, height, width)."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[Tensor, int, int] | Replaced | Unreadable:
        """Return the crop, label and row of an image; if it cannot be read, of the next readable one of its class.

        Args:
            item: index within the group, and the random numbers of the crop.
        """
        index, draws = item
        label = int(np.searchsorted(self.offsets, index, side="right")) - 1
        start, end = self.offsets[label : label + 2].tolist()
        first = self.images[row := int(self.rows[index])]
        if not isinstance(first, Unreadable):
            return self.crop(first, draws), label, row
        for other in (*range(index + 1, end), *range(start, index)):
            image = self.images[row := int(self.rows[other])]
            if not isinstance(image, Unreadable):
                return Replaced((self.crop(image, draws), label, row), first.reason)
        return first


class CachedImages(Dataset):
    """Images of any shapes that were decoded once and are kept in memory.

    The pixels of all images are in one tensor, which worker processes share.

    Args:
        shapes: height and width of each image, int64 (N, 2).
    """

    def __init__(self, shapes: np.ndarray) -> None:
        self.shapes = shapes
        self.ends = 3 * shapes.prod(axis=1).cumsum()
        self.pixels = torch.empty(int(self.ends[-1]), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def bytes_in_memory(self) -> int:
        """Number of bytes of the decoded images."""
        return self.pixels.nbytes

    def __getitem__(self, row: int) -> Tensor:
        """Return the pixels of image `row`, uint8 (3, H, W), channels last in memory because that resizes fastest."""
        height, width = self.shapes[row].tolist()
        end = int(self.ends[row])
        return self.pixels[end - 3 * height * width : end].view(height, width, 3).permute(2, 0, 1)
