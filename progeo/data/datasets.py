"""Datasets of images: a row of a catalogue in, uint8 pixels out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from progeo.data.decode import read_image
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, as a value: a worker process can hand it over whole, unlike an exception."""

    reason: str


class CatalogueImages(Dataset):
    """The images of a catalogue, resized.

    Args:
        catalogue: N images.
        resize: uint8 (3, H, W) -> uint8 (3, height, width), the same size for all.
    """

    def __init__(self, catalogue: Catalogue, resize: Callable[[Tensor], Tensor]) -> None:
        self.catalogue = catalogue
        self.resize = resize

    def __len__(self) -> int:
        return len(self.catalogue)

    def __getitem__(self, row: int) -> Tensor | Unreadable:
        """The pixels of image `row`, uint8 (3, height, width)."""
        try:
            return self.resize(read_image(self.catalogue.path(row)))
        except (ValueError, OSError) as error:
            return Unreadable(str(error))


class LabelledImages(Dataset):
    """Images of one group with their labels.

    Args:
        images: the dataset of all training images.
        rows: which of them belong to the group, int64 (n,).
        labels: their classes, int64 (n,).
    """

    def __init__(self, images: Dataset, rows: np.ndarray, labels: np.ndarray) -> None:
        self.images = images
        self.rows = rows
        self.labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        """The pixels and the label of image `index` of the group."""
        image = self.images[int(self.rows[index])]
        return image if isinstance(image, Unreadable) else (image, int(self.labels[index]))


class CachedImages(Dataset):
    """Images that were decoded once and are kept in memory."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Tensor:
        """The pixels of image `row`, uint8 (3, height, width)."""
        return self.pixels[row]
