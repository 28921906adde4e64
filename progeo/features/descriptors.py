"""Extract the descriptors of a catalogue with an encoder, cached on disk."""

import dataclasses
import json
import time
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from progeo.data.loaders import build_loader
from progeo.features.cache import Cache
from progeo.features.extract import extract_features
from progeo.features.extractor import FeatureExtractor, run_on
from progeo.features.options import CacheSettings
from progeo.features.store import ShardedRows
from progeo.models.backbones.open_clip import weights_digest
from progeo.models.backbones.position_embedding import ImageSize, as_height_width
from progeo.models.encoder import Encoder, restore_encoder, spec_to_json
from progeo.models.fingerprint import module_fingerprint
from progeo.models.preprocessing import QueryPreprocessing
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue

_CROPS_APART = ("nearest_crop", "maj_voting")
_ROUNDING = 1e-5
"""Tolerance as a fraction of the largest value of a descriptor."""


def descriptor_extractor(
    encoder: Encoder,
    preprocessing: QueryPreprocessing,
    image_size: ImageSize | None,
    accelerator: Accelerator,
    *,
    orientation: Orientation = "exif",
) -> FeatureExtractor:
    """Build a feature extractor for descriptors (B, D), or (B, 5 D) where the five crops are searched separately.

    Args:
        encoder: the encoder, as `progeo.load_encoder` returns it; it is moved to the accelerator's device.
        preprocessing: preprocessing of the images.
        image_size: pixels, one side or height and width; None takes the encoder's image size.
        accelerator: gives the device and the precision.
        orientation: whether images are rotated upright by their EXIF orientation first.
    """
    encoder.to(accelerator.device)
    encode = run_on(accelerator, lambda images: encoder(encoder.normalize(images)))

    def extract(images: Tensor) -> Tensor:
        descriptors = encode(images.flatten(0, -4))
        if images.ndim == 4:
            return descriptors
        of_each = descriptors.unflatten(0, images.shape[:2])
        return of_each.flatten(1) if preprocessing in _CROPS_APART else of_each.mean(dim=1)

    return FeatureExtractor(
        extract,
        what="descriptors",
        width=encoder.descriptor_dim * (5 if preprocessing in _CROPS_APART else 1),
        image_size=encoder.image_size if image_size is None else as_height_width(image_size),
        preprocessing=preprocessing,
        depends_on=partial(identity, encoder),
        orientation=orientation,
    )


def identity(encoder: Encoder) -> dict[str, Any]:
    """Collect all metadata that descriptors depend on, as JSON restores it.

    Raises:
        ValueError: a module of another program has no fingerprint, see `module_fingerprint`.
    """
    if not _is_as_specified(encoder):
        return {"encoder": module_fingerprint(encoder)}
    spec = spec_to_json(dataclasses.replace(encoder.spec, text_weights=None))  # descriptors do not depend on it
    return json.loads(json.dumps({"encoder": spec, "weights": weights_digest(encoder.state_dict())}))


@torch.inference_mode()
def _is_as_specified(encoder: Encoder) -> bool:
    """Whether a module is one of our encoders and its spec and weights rebuild an encoder with the same descriptors."""
    if type(encoder) is not Encoder or any(part.training for part in encoder.modules()):
        return False
    try:
        again = restore_encoder(encoder.spec, encoder.state_dict()).to(encoder.mean.device)
        pixels = torch.arange(2 * 3 * 96 * 64, device=encoder.mean.device).mul(31).view(2, 3, 96, 64).to(torch.uint8)
        images = again.normalize(pixels)
        found, wanted = encoder(images), again(images)
        # Not bit for bit: a GPU may add in another order.
        is_close = bool((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max())
        return encoder.normalize(pixels).equal(images) and is_close
    except (ValueError, RuntimeError):  # a part was replaced by one that takes other images, or none
        return False


def described(
    extractor: FeatureExtractor, catalogue: Catalogue, settings: CacheSettings, accelerator: Accelerator
) -> ShardedRows:
    """Extract descriptors for every image of a catalogue, computing only those missing from the cache.

    Unreadable images are excluded from the rows.

    Raises:
        ValueError: too many images cannot be read, or one changed since it was cached.
    """
    found = extract_features(
        extractor,
        catalogue,
        accelerator,
        cache=Cache(settings.descriptor_cache, settings.keep_as, "descriptor_cache"),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        max_unreadable_fraction=settings.max_unreadable_fraction,
    )
    return found.rows.without(found.unreadable)


def images_per_second(extractor: FeatureExtractor, catalogue: Catalogue, batch_size: int) -> float | None:
    """Measure the extraction speed in images per second on one decoded batch, timing the second run.

    Returns None if none of the first images can be read.
    """
    batches = extractor.batches(catalogue, range(min(len(catalogue), batch_size)), batch_size)
    loader = build_loader(extractor.images(catalogue), batches, num_workers=0)
    images = next((batch.items for batch in loader if batch.items is not None), None)
    if images is None:
        return None
    extractor.extract(images)
    start = time.perf_counter()
    extractor.extract(images)
    return len(images) / (time.perf_counter() - start)
