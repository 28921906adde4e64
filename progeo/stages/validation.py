"""Validation: what an encoder that is being trained finds, all in memory."""

from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import ordered_batches
from progeo.engine.accelerator import gathered, share_of
from progeo.evaluation.descriptors import described_batches
from progeo.evaluation.search import nearest_neighbours
from progeo.models.preprocessing import resize_image
from progeo.places.catalogue import Catalogue
from progeo.stages.test_sets import TestSet


def retrieve(
    encoder: nn.Module,
    test_set: TestSet,
    accelerator: Accelerator,
    *,
    count: int,
    image_size: tuple[int, int],
    batch_size: int,
    num_workers: int,
) -> np.ndarray:
    """Describe both sides, each process its share, and search: database rows, best first, int64 (Q, count).

    Raises:
        ValueError: an image that cannot be read; the sentence names it.
    """

    @torch.inference_mode()
    def describe(images: Tensor) -> Tensor:
        with accelerator.autocast():
            return encoder(encoder.normalise(images.to(accelerator.device))).float().cpu()

    def described(catalogue: Catalogue, what: str) -> np.ndarray:
        mine = share_of(len(catalogue), accelerator)
        descriptors = np.empty((len(mine), encoder.descriptor_dim), np.float32)
        for batch in described_batches(
            describe,
            CatalogueImages(catalogue, partial(resize_image, size=image_size)),
            ordered_batches(mine, batch_size),
            width=encoder.descriptor_dim,
            num_workers=num_workers,
            what=what,
            hidden=not accelerator.is_main_process,
        ):
            for reason in batch.unreadable.values():
                raise ValueError(reason)
            descriptors[batch.rows - mine.start] = batch.values
        return gathered(descriptors, len(catalogue), accelerator)

    was_training = encoder.training
    encoder.eval()
    database, queries = described(test_set.database, "database"), described(test_set.queries, "queries")
    encoder.train(was_training)
    return nearest_neighbours([database], queries, count).rows
