"""Fill the cache of descriptors, on one machine or on many."""

from pathlib import Path
from typing import Literal

from progeo.engine.options import Precision
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions


def extract(
    encoder: str,
    *,
    folder: Path,
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    share: str | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    mixed_precision: Precision = "no",
) -> Path:
    """Extract the descriptors of a folder of images into the cache, where other commands find them; returns its folder.

    Args:
        encoder: Folder of a run, or of an encoder.
        folder: Folder of images, such as the database of an evaluation or the images of a place index.
        images: Options of the images. Commands find descriptors that were extracted with the same options.
        work: Options of extraction.
        cache: Options of the descriptor cache. Machines that share it share the work, also if their folders of images
            have different paths.
        share: Extract a share of the descriptors only, such as 3/64, the third of 64, in a task of a job array. null
            extracts what no other process has begun, and waits until all descriptors are there.
        engine: Where descriptors are extracted. local takes this machine, and those on which the same command runs; ray
            takes the machines of a Ray cluster, which read the images and send the descriptors to this one.
        ray_address: Address of the Ray cluster. null takes that of the environment variable RAY_ADDRESS, or a cluster
            that runs on this machine, or starts one.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: options contradict each other, or too many images cannot be read.
    """
    from contextlib import ExitStack

    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.cluster import connected
    from progeo.export.weights import load_encoder
    from progeo.features.descriptors import descriptor_extractor, extract_descriptors
    from progeo.features.options import parse_share
    from progeo.features.ray_features import shards_on_ray
    from progeo.features.shards import shards_here
    from progeo.places.catalogue import read_catalogue

    chosen = None if share is None else parse_share(share)
    if ray_address is not None and engine != "ray":
        raise ValueError(f"`ray_address` is for `engine` ray, got {engine}.")
    accelerator = start_accelerator(mixed_precision)
    if engine == "ray" and accelerator.num_processes > 1:
        raise ValueError("`engine` ray starts its own workers: run the command without accelerate launch.")
    loaded = load_encoder(encoder)
    extractor = descriptor_extractor(loaded, images, accelerator)
    catalogue = read_catalogue(folder, positions="ignored")
    with ExitStack() as stack:
        compute = shards_here
        if engine == "ray":
            stack.enter_context(connected(ray_address))
            compute = shards_on_ray(loaded, images, mixed_precision)
        rows = extract_descriptors(
            extractor, catalogue, accelerator, work=work, cache=cache, share=chosen, compute=compute
        )
    return rows.folder
