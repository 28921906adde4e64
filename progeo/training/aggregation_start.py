"""The start of an aggregation such as NetVLAD, or of tokens: from clusters of local features of training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import ConcatDataset

from progeo.data.loaders import build_loader
from progeo.data.options import DataOptions
from progeo.engine.accelerator import autocast, copy_from_main_process, gathered, share_of
from progeo.models.aggregation import AGGREGATIONS
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue
from progeo.progress import followed, phase
from progeo.training.image_descriptors import training_image_extractor

_IMAGES = 500
_PER_IMAGE = 100


@dataclass(frozen=True)
class AggregationStart:
    """How an aggregation, or a part of a backbone, that needs it is initialized."""

    kept: Path
    """File to save the start to."""
    seed: int

    def initialize(
        self, encoder: Encoder, catalogues: Sequence[Catalogue], data: DataOptions, accelerator: Accelerator
    ) -> None:
        """Initialize an encoder, alike in all processes, if its family or the row of its aggregation says how."""
        row, aggregation = AGGREGATIONS[encoder.spec.aggregation], encoder.aggregation
        features = partial(local_features, encoder, catalogues, accelerator, data=data, seed=self.seed)
        encoder.family.initialize(encoder.backbone, features, self.seed)
        if row.initialize is not None:
            found = features()
            with phase(f"initializing {encoder.spec.aggregation}", hidden=not accelerator.is_main_process):
                row.initialize(aggregation, found, self.seed)
            if row.save_start is not None and accelerator.is_main_process:
                row.save_start(aggregation, found, self.kept)
        copy_from_main_process(encoder, accelerator)


@torch.no_grad()
def local_features(
    encoder: Encoder, catalogues: Sequence[Catalogue], accelerator: Accelerator, *, data: DataOptions, seed: int
) -> Tensor:
    """Compute 100 random local features of each of 500 random training images, (n, C), the same in every process.

    Images are whole and not augmented. Vectors of a feature map of fewer than 100 are drawn with replacement.

    Args:
        encoder: on the device; it is put into eval mode.
        catalogues: all training images, whose rows are counted on from one catalogue to the next.
        accelerator: gives precision, device and processes.
        data: how images are read.

    Raises:
        ValueError: none of the images can be read.
    """
    encoder.eval()
    extractor = training_image_extractor(encoder, data, accelerator)
    images: ConcatDataset = ConcatDataset([extractor.images(each) for each in catalogues])
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:_IMAGES])
    mine = rows[list(share_of(len(rows), accelerator))]
    channels = encoder.traits.channels
    assert channels is not None  # check_method has seen that there is a map
    found = np.full((len(mine), _PER_IMAGE * channels), np.nan, np.float32)
    batches = np.split(np.arange(len(mine)), range(data.eval_batch_size, len(mine), data.eval_batch_size))
    loader = build_loader(images, [mine[batch].tolist() for batch in batches], num_workers=data.num_workers)
    hidden = not accelerator.is_main_process
    shown = followed(batches, "local features", total=len(mine), size=len, hidden=hidden)
    for batch, loaded in zip(shown, loader, strict=True):
        if loaded.items is None:
            continue
        with autocast(accelerator):
            feature_map = encoder.features(encoder.normalize(loaded.items.to(accelerator.device))).map
        assert feature_map is not None
        local = feature_map.float().flatten(2).transpose(1, 2).cpu().numpy()  # (b, h w, C)
        readable = [index for index in range(len(batch)) if index not in loaded.unreadable]
        for index, vectors in zip(batch[readable].tolist(), local, strict=True):
            rng = np.random.default_rng((seed, int(mine[index])))
            chosen = rng.choice(len(vectors), _PER_IMAGE, replace=len(vectors) < _PER_IMAGE)
            found[index] = vectors[chosen].ravel()
    everything = gathered(found, len(rows), accelerator)
    everything = everything[~np.isnan(everything[:, 0])]
    if not len(everything):
        raise ValueError(f"None of {len(rows)} training images of {catalogues[0].folder} can be read.")
    return torch.from_numpy(everything.reshape(-1, channels)).to(accelerator.device)
