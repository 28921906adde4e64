"""Training batches of stage 2: images of a group, their labels and their augmentation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from progeo.data.augmentation import Changes, build_crop, draw_changes
from progeo.data.datasets import CatalogueImages, LabeledImages, max_unreadable
from progeo.data.loaders import Loaded, build_loader, cache_images
from progeo.data.options import Augmentation, DataOptions
from progeo.data.samplers import ClassBatches
from progeo.engine.log import LOGGER
from progeo.engine.randomness import seeded_generator
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Group
from progeo.training.options import TrainingOptions


@dataclass(frozen=True)
class MicroBatch:
    """Images that go through the encoder together."""

    images: Tensor
    """Cropped images, uint8 (b, 3, H, W)."""
    labels: Tensor
    """Class labels within the group, int64 (b,)."""
    changes: Changes
    """Augmentation still to be applied: the color jitter."""


class ImageBatches:
    """The batches of every epoch, determined by seed, epoch and step, split among processes and into micro-batches.

    Args:
        catalogue: all training images.
        data: how images are read.
        augmentation: strength of the augmentation.
        training: number and size of batches.
        image_size: height and width that crops are resized to.
        seed: seed of the sampling and the augmentation.
        accelerator: gives the index of this process and the number of processes.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        data: DataOptions,
        augmentation: Augmentation,
        training: TrainingOptions,
        image_size: tuple[int, int],
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.data, self.augmentation, self.training, self.seed = data, augmentation, training, seed
        self.crop = build_crop(augmentation, image_size)
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.unreadable: set[str] = set()
        """Reasons why images could not be read; each names its image."""
        images = CatalogueImages(catalogue, orientation=data.orientation)
        self.images = cache_images(images, num_workers=data.num_workers) if training.cache_images else images

    def of_epoch(self, epoch: int, group: Group, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches.

        Raises:
            ValueError: too many images of the data set or all images of a class cannot be read.
        """
        training = self.training
        batches = ClassBatches(
            group.offsets,
            batch_size=training.batch_size,
            images_per_class=training.images_per_class,
            num_batches=training.iterations_per_epoch,
            seed=self.seed,
            epoch=epoch,
            first_batch=first_step,
            process=self.process,
            num_processes=self.num_processes,
        )
        dataset = LabeledImages(self.images, group.rows, group.offsets, self.crop)
        loader = build_loader(dataset, self._with_crops(batches, epoch), num_workers=self.data.num_workers)
        for step, loaded in enumerate(loader, first_step):
            self._note_unreadable(loaded)
            images, labels = loaded.items
            yield self._micro_batches(images, labels, self._changes(epoch, step).of(batches.part))

    def _with_crops(self, batches: ClassBatches, epoch: int) -> Iterator[list[tuple[int, np.ndarray]]]:
        for step, indices in enumerate(batches, batches.first_batch):
            crops = self._changes(epoch, step).crops[batches.part].numpy()
            yield list(zip(indices, crops, strict=True))

    def _changes(self, epoch: int, step: int) -> Changes:
        """Draw the augmentation of a whole batch, so that it does not depend on the number of processes."""
        generator = seeded_generator(self.seed, epoch, step)
        return draw_changes(self.augmentation, self.training.batch_size, generator)

    def _micro_batches(self, images: Tensor, labels: Tensor, changes: Changes) -> list[MicroBatch]:
        size = len(images) // self.training.micro_batches
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return [MicroBatch(images[part], labels[part], changes.of(part)) for part in parts]

    def _note_unreadable(self, loaded: Loaded) -> None:
        for reason in loaded.unreadable.values():
            raise ValueError(f"No image of a class can be read: {reason}")
        for reason in sorted(set(loaded.replaced.values()) - self.unreadable):
            self.unreadable.add(reason)
            LOGGER.warning("replaced by another image of its class: %s", reason)
            if len(self.unreadable) > max_unreadable(self.data.max_unreadable_fraction, len(self.images)):
                raise ValueError(
                    f"{len(self.unreadable)} of {len(self.images)} images cannot be read, more than "
                    f"`max_unreadable_fraction` allows: raise it to continue without them. One of them: {reason}"
                )


def check_batches(training: TrainingOptions, num_processes: int) -> None:
    """Check that a batch divides evenly among processes, micro-batches and classes.

    Raises:
        ValueError: it does not.
    """
    if training.batch_size % (num_processes * training.micro_batches):
        raise ValueError(
            f"`training.batch_size` {training.batch_size} must divide among {num_processes} processes, and each part "
            f"into `micro_batches` {training.micro_batches}."
        )
    if training.batch_size % training.images_per_class:
        raise ValueError(
            f"`training.batch_size` {training.batch_size} must be a multiple of `images_per_class` "
            f"{training.images_per_class}."
        )
