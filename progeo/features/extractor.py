"""Feature extractors: a network, with everything that its features depend on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import batches_by_shape
from progeo.data.photos import Photo, PhotoImages
from progeo.engine.accelerator import Processor, autocast
from progeo.features.claims import Claims
from progeo.features.store import ShardedRows
from progeo.files import each_file
from progeo.image_files import Orientation, Resize
from progeo.models.options import QueryPreprocessing
from progeo.models.preprocessing import depends_on_shape, preprocess_image, preprocessed_shape, resized_shape
from progeo.places.catalogue import Catalogue


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that extracts features, with everything that its features depend on."""

    extract: Callable[[Tensor], Tensor]
    """Maps uint8 images (B, 3, H, W), or their crops (B, 5, 3, H, W), on the CPU to features (B, D) on the CPU."""
    what: str
    """Name of the features in logs and errors, such as `image features` or `descriptors`."""
    width: int
    """Feature dimension D."""
    image_size: tuple[int, int]
    """Height and width in pixels that `preprocessing` resizes to, unless it is native."""
    preprocessing: QueryPreprocessing
    """Preprocessing of every image."""
    resize: Resize
    """Interpolation by which `preprocessing` resizes."""
    depends_on: Callable[[], Mapping[str, Any]]
    """Returns the weights' fingerprint and all other metadata that changes features, as plain values. Only called for
    the cache."""
    orientation: Orientation = "exif"
    """Whether images are rotated upright by their EXIF orientation first."""
    fast_decode: bool = False
    """Whether JPEG files of a catalogue are decoded at a reduced size where `preprocessing` makes them smaller."""
    depends_on_batch: bool = False
    """Whether features depend on the other images of their batch (batch norm). Batches then hold only consecutive
    images of the catalogue, without padding."""
    prepare: Callable[[ShardedRows, Claims], None] | None = None
    """Hook that all processes call once before extraction, with the feature files and their claims; not called if all
    files exist."""

    def images(self, catalogue: Catalogue) -> CatalogueImages:
        """Return the preprocessed images of a catalogue as a dataset."""
        min_shape = partial(resized_shape, self.preprocessing, self.image_size) if self.fast_decode else None
        return CatalogueImages(catalogue, self._preprocess, self.orientation, min_shape)

    def photos(self, photos: Sequence[Photo]) -> PhotoImages:
        """Return preprocessed photos as a dataset."""
        return PhotoImages(photos, self._preprocess, self.orientation)

    @property
    def _preprocess(self) -> Callable[[Tensor], Tensor]:
        return partial(preprocess_image, kind=self.preprocessing, size=self.image_size, resize=self.resize)

    def batches(self, images: CatalogueImages | PhotoImages, rows: range, batch_size: int) -> list[np.ndarray]:
        """Split rows into batches of one shape each, with at most the pixels of `batch_size` images of `image_size`."""
        if depends_on_shape(self.preprocessing):
            found = each_file(images.shape, rows, total=len(rows))
            own = [shape or self.image_size for shape in found]
            shapes = np.array([preprocessed_shape(self.preprocessing, self.image_size, each) for each in own])
        else:
            shape = preprocessed_shape(self.preprocessing, self.image_size, self.image_size)
            shapes = np.broadcast_to(shape, (len(rows), len(shape)))
        max_pixels = batch_size * math.prod(self.image_size)
        return batches_by_shape(np.array(rows), shapes, batch_size=batch_size, max_pixels=max_pixels)

    def full_batch(self, catalogue: Catalogue, batch_size: int) -> int | None:
        """Return the size that every batch is padded to, so that features do not depend on the rest of their batch.

        It is the batch size, or the number of images if there are fewer; 1 where shapes differ, because most batches
        are small then. None where features depend on the images of their batch, since zeros would change them.
        """
        if self.depends_on_batch:
            return None
        if depends_on_shape(self.preprocessing):
            return 1
        return len(self.batches(self.images(catalogue), range(min(len(catalogue), batch_size)), batch_size)[0])


def run_on(accelerator: Accelerator | Processor, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Run a network on the device of an accelerator, at its precision and without gradients.

    Args:
        accelerator: gives the device and the precision.
        network: maps uint8 images (B, 3, H, W) to features (B, D), both on the device; the result takes and returns
            them on the CPU, features as float32.
    """

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        with autocast(accelerator):
            return network(images.to(accelerator.device)).float().cpu()

    return extract
