"""Extract the descriptors of a catalogue with an encoder, cached on disk."""

import dataclasses
import json
import math
import re
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from progeo.data.loaders import build_loader
from progeo.engine.accelerator import Processor
from progeo.engine.out_of_memory import explaining_out_of_memory
from progeo.features.cache import Cache
from progeo.features.extract import extract_features
from progeo.features.extractor import FeatureExtractor, run_on
from progeo.features.options import CacheOptions, ImageOptions, Share, WorkOptions
from progeo.features.shards import Compute, shards_here
from progeo.features.store import ShardedRows
from progeo.models.aggregation import AGGREGATIONS
from progeo.models.backbones.position_embedding import as_height_width, check_sides, sample_size
from progeo.models.encoder import Encoder, restore_encoder, spec_to_json
from progeo.models.fingerprint import module_fingerprint, plugin_digests
from progeo.models.options import QueryPreprocessing
from progeo.models.preprocessing import depends_on_shape
from progeo.models.state_dicts import weights_digest
from progeo.places.catalogue import Catalogue

_CROPS_APART = ("nearest_crop", "maj_voting")
_ROUNDING = 1e-5
"""Tolerance as a fraction of the largest value of a descriptor."""


def descriptor_extractor(
    encoder: Encoder,
    images: ImageOptions,
    accelerator: Accelerator | Processor,
    *,
    preprocessing: QueryPreprocessing | None = None,
) -> FeatureExtractor:
    """Build a feature extractor for descriptors (B, D), or (B, 5 D) where the five crops are searched separately.

    Args:
        encoder: moved to the accelerator's device.
        preprocessing: preprocessing of queries; None takes that of database images.

    Raises:
        ValueError: the encoder does not take images of the size that preprocessing gives.
    """
    encoder.to(accelerator.device)
    preprocessing = preprocessing or images.database_preprocessing
    image_size = encoder.image_size if images.image_size is None else as_height_width(images.image_size)
    if hasattr(encoder, "traits"):  # not a network of another program
        _check_sizes(encoder, preprocessing, image_size)
    num_rows = 5 if preprocessing in _CROPS_APART else 1
    encode = run_on(accelerator, lambda batch: encoder(encoder.normalize(batch)))

    def extract(pixels: Tensor) -> Tensor:
        descriptors = encode(pixels.flatten(0, -4))
        if pixels.ndim == 4:
            return descriptors
        by_image = descriptors.unflatten(0, pixels.shape[:2])
        return by_image.flatten(1) if num_rows > 1 else by_image.mean(dim=1)

    return FeatureExtractor(
        extract,
        what="descriptors",
        width=encoder.descriptor_dim * num_rows,
        image_size=image_size,
        preprocessing=preprocessing,
        resize=getattr(encoder, "resize", "bilinear"),  # a network of another program may not have it
        depends_on=partial(descriptor_metadata, encoder),
        orientation=images.orientation,
        fast_decode=images.fast_decode,
    )


def _check_sizes(encoder: Encoder, preprocessing: QueryPreprocessing, image_size: tuple[int, int]) -> None:
    """Refuse images of sizes that an encoder does not take."""
    if image_size != encoder.image_size:
        check_sides("`image_size`", *image_size, encoder.traits)
    if depends_on_shape(preprocessing) and (encoder.traits.side_multiple > 1 or encoder.traits.only_size):
        raise ValueError(
            f"The preprocessing {preprocessing} gives images of many sizes, and {encoder.spec.architecture} does not "
            f"take them all: use hard_resize, central_crop or five_crops."
        )


def descriptor_metadata(encoder: Encoder) -> dict[str, Any]:
    """Collect all metadata that descriptors depend on, as JSON restores it.

    Raises:
        ValueError: a module of another program has no fingerprint, see `module_fingerprint`.
    """
    if not _is_as_specified(encoder):
        return {"encoder": getattr(encoder, "fingerprint", partial(module_fingerprint, encoder))()}
    return _metadata_as_specified(encoder)


def _metadata_as_specified(encoder: Encoder) -> dict[str, Any]:
    """Collect the metadata of an encoder that its spec and its weights rebuild."""
    # Descriptors do not depend on the weights of texts.
    spec: dict[str, Any] = spec_to_json(dataclasses.replace(encoder.spec, text_weights=None))
    if encoder.resize == "bilinear":  # as before it was a field
        del spec["resize"]
    if spec["aggregation_options"].get("local_linear") is False:  # as before it was an option of gem
        del spec["aggregation_options"]["local_linear"]
    build: Any = AGGREGATIONS[encoder.spec.aggregation].build
    plugins = plugin_digests([type(encoder.family), build, *map(type, encoder.modules())])
    found = {"encoder": spec, "weights": weights_digest(encoder.state_dict())}
    return json.loads(json.dumps(found | ({"plugins": plugins} if plugins else {})))


def is_metadata_of(metadata: Mapping[str, Any], encoder: Encoder) -> bool:
    """Return whether metadata, of this version or of that of encoders of format 2, are those of an encoder.

    Args:
        metadata: as `descriptor_metadata` returned them.
        encoder: as `load_encoder` returns it: one that was rebuilt from a spec is not rebuilt again to see that.
    """
    is_rebuilt = type(encoder) is Encoder and "weights" in metadata
    found, stored = (_metadata_as_specified if is_rebuilt else descriptor_metadata)(encoder), metadata.get("encoder")
    if not isinstance(stored, dict) or "pooling" not in stored or not isinstance(found["encoder"], dict):
        return metadata == found
    spec = {name: value for name, value in found["encoder"].items() if name in (*stored, "resize")}
    aggregation = encoder.spec.aggregation
    spec["pooling"] = "clip" if aggregation == "token" else aggregation
    spec["align_corners"] = encoder.spec.interpolation == "corners"
    state = {re.sub("^aggregation", "pooling", name): tensor for name, tensor in encoder.state_dict().items()}
    return metadata == {"encoder": spec, "weights": weights_digest(state)}


@torch.inference_mode()
def _is_as_specified(encoder: Encoder) -> bool:
    """Return whether spec and weights of an encoder rebuild one with the same descriptors; False for other modules."""
    if type(encoder) is not Encoder or any(part.training for part in encoder.modules()):
        return False
    try:
        with explaining_out_of_memory("An encoder and its copy must fit in memory."):
            again = restore_encoder(encoder.spec, encoder.state_dict()).to(encoder.mean.device)
            shape = (2, 3, *sample_size(encoder.traits))
            pixels = torch.arange(math.prod(shape), device=encoder.mean.device).mul(31).view(shape).to(torch.uint8)
            images = again.normalize(pixels)
            found, wanted = encoder(images), again(images)
            # Not bit for bit: a GPU may add in another order.
            is_close = bool((found - wanted).abs().max() <= _ROUNDING * wanted.abs().max())
            return encoder.normalize(pixels).equal(images) and is_close
    except (ValueError, RuntimeError):  # a part was replaced by one that takes other images, or none
        return False


def extract_descriptors(
    extractor: FeatureExtractor,
    catalogue: Catalogue,
    accelerator: Accelerator,
    *,
    work: WorkOptions,
    cache: CacheOptions,
    is_kept: bool = True,
    share: Share | None = None,
    compute: Compute = shards_here,
) -> ShardedRows:
    """Extract descriptors for every image of a catalogue, see `extract_features`; unreadable images are excluded.

    Args:
        is_kept: whether the cache stays, so that logs name it.
        share, compute: see `extract_features`.
    """
    found = extract_features(
        extractor,
        catalogue,
        accelerator,
        cache=Cache(cache.descriptor_cache, cache.keep_as, "descriptor_cache", is_kept),
        batch_size=work.batch_size,
        num_workers=work.num_workers,
        max_unreadable_fraction=cache.max_unreadable_fraction,
        share=share,
        compute=compute,
    )
    return found.rows.without(found.unreadable)


def images_per_second(extractor: FeatureExtractor, catalogue: Catalogue, batch_size: int) -> float | None:
    """Measure the extraction speed in images per second on one decoded batch, timing the second run.

    Returns None if none of the first images can be read.
    """
    images = extractor.images(catalogue)
    batches = extractor.batches(images, range(min(len(catalogue), batch_size)), batch_size)
    loader = build_loader(images, batches, num_workers=0)
    pixels = next((batch.items for batch in loader if batch.items is not None), None)
    if pixels is None:
        return None
    extractor.extract(pixels)
    start = time.perf_counter()
    extractor.extract(pixels)
    return len(pixels) / (time.perf_counter() - start)
