"""Features extracted by the workers of a Ray cluster, file by file; the process that asks for them writes them."""

import dataclasses
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from progeo.engine.accelerator import choose_processor
from progeo.engine.cluster import cores_per_worker, run_on_cluster
from progeo.engine.options import Precision
from progeo.features.descriptors import descriptor_extractor, descriptor_metadata
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.features.shards import Compute, ShardFeatures, shards_here
from progeo.features.store import ShardedRows
from progeo.models.encoder import Encoder, EncoderSpec, restore_encoder
from progeo.places.catalogue import Catalogue
from progeo.plugins import import_sources, plugin_sources
from progeo.progress import Progress
from progeo.remote_files import RemotePath


def shards_on_ray(encoder: Encoder, images: ImageOptions, mixed_precision: Precision) -> Compute:
    """Return a function that extracts descriptors on the Ray cluster that this process is connected to.

    Workers get the encoder and the names of images, read the images, and send descriptors back: they need neither the
    folder of the encoder nor that of the features.

    Args:
        encoder: an encoder in eval mode.
        images: how images are read.
        mixed_precision: precision of the encoder.
    """

    def shards_of_cluster(
        extractor: FeatureExtractor,
        catalogue: Catalogue,
        rows: ShardedRows,
        shards: Iterable[int],
        *,
        num_workers: int,
        bar: Progress,
        **how: Any,
    ) -> Iterator[ShardFeatures]:
        there = dataclasses.replace(catalogue, folder=catalogue.folder.resolve())
        found = run_on_cluster(
            _shard_extractor,
            plugin_sources(),
            _sendable(encoder),
            images,
            mixed_precision,
            {"num_workers": num_workers, **how},
            rows.dtype.name,
            calls=((shard, _names_of(there, rows.shard_rows(shard))) for shard in shards),
            num_calls=len(rows.missing_shards()),
            num_cores=cores_per_worker(max(1, num_workers)),
        )
        for (shard, _), features in found:
            first = rows.shard_rows(shard).start
            bar.update(len(features.values))
            unreadable = {
                first + row: reason.replace(str(there.path(first + row)), str(catalogue.path(first + row)))
                for row, reason in features.unreadable.items()
            }
            yield ShardFeatures(shard, features.values, unreadable)

    return shards_of_cluster


def _sendable(encoder: Encoder) -> Encoder | tuple[EncoderSpec, dict[str, Tensor]]:
    """Return the spec and the weights of an encoder that these rebuild; another as it is, such as one of a hub."""
    if "weights" not in descriptor_metadata(encoder):
        return encoder.cpu()
    return encoder.spec, {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}


def _names_of(catalogue: Catalogue, rows: range) -> Catalogue:
    """Return the images of a shard without their positions, in memory."""
    names = catalogue.table.select(["path"]).slice(rows.start, len(rows))
    return Catalogue(catalogue.folder, names).take(np.arange(len(rows)))


def _shard_extractor(
    plugins: Mapping[str, str],
    sent: Any,
    images: ImageOptions,
    mixed_precision: Precision,
    how: Mapping[str, Any],
    dtype: str,
) -> Callable[[int, Catalogue], ShardFeatures]:
    """Make, on a machine of the cluster, the function that extracts the descriptors of a shard.

    Args:
        plugins: code of plugins by their names.
        sent: an encoder, or its spec and its weights.
        how: see `shards_here`.
    """
    import_sources(plugins)
    encoder = sent if isinstance(sent, Encoder) else restore_encoder(*sent)
    extractor = descriptor_extractor(encoder, images, choose_processor(None, mixed_precision))

    def extract(shard: int, catalogue: Catalogue) -> ShardFeatures:
        _check_folder(catalogue.folder)
        count = len(catalogue)
        rows = ShardedRows(Path(), num_rows=count, width=extractor.width, shard_size=count, dtype=dtype)
        (features,) = shards_here(extractor, catalogue, rows, [0], bar=Progress(hidden=True), **how)
        return features

    return extract


def _check_folder(folder: Path | RemotePath) -> None:
    """Refuse a folder that is not on this machine, whose images would count as unreadable.

    Raises:
        FileNotFoundError: there is no such folder, or nothing is in it, as where a disk is not mounted.
    """
    if isinstance(folder, Path) and not (folder.is_dir() and any(os.scandir(folder))):
        raise FileNotFoundError(
            f"There are no images in {folder} on {socket.gethostname()}, a machine of the Ray cluster: mount them "
            f"there under the same path, or scan them by a URL, see progeo dataset scan."
        )
