"""Validation: what an encoder that is being trained finds, all in memory."""

from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from progeo.data.datasets import CatalogueImages
from progeo.data.loaders import ordered_batches
from progeo.engine.accelerator import gathered, share_of
from progeo.evaluation.descriptors import describe_rows
from progeo.evaluation.search import nearest_neighbours
from progeo.models.preprocessing import resize_image
from progeo.pixels import Orientation
from progeo.places.catalogue import Catalogue
from progeo.stages.query_sets import QuerySet


def retrieve(
    encoder: nn.Module,
    query_set: QuerySet,
    accelerator: Accelerator,
    *,
    count: int,
    image_size: tuple[int, int],
    batch_size: int,
    num_workers: int,
    orientation: Orientation = "exif",
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
        descriptors, unreadable = describe_rows(
            describe,
            CatalogueImages(catalogue, partial(resize_image, size=image_size), orientation),
            mine,
            ordered_batches(mine, batch_size),
            width=encoder.descriptor_dim,
            num_workers=num_workers,
            what=what,
            hidden=not accelerator.is_main_process,
        )
        for reason in unreadable.values():
            raise ValueError(reason)
        return gathered(descriptors, len(catalogue), accelerator)

    was_training = encoder.training
    encoder.eval()
    database, queries = described(query_set.database, "database"), described(query_set.queries, "queries")
    encoder.train(was_training)
    return nearest_neighbours([database], queries, count).rows
