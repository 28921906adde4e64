"""Training batches of stage 2: images of a group, their labels and their augmentation."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from progeo.config.training import Settings, TrainingSettings
from progeo.data.augmentation import Changes
from progeo.data.datasets import CatalogueImages, LabeledImages, max_unreadable
from progeo.data.loaders import Loaded, build_loader, cache_images
from progeo.data.samplers import ClassBatches
from progeo.engine.log import LOGGER
from progeo.engine.randomness import seeded_generator
from progeo.places.catalogue import Catalogue
from progeo.places.cells import Group


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
        settings: the training settings.
        catalogue: all training images.
        image_size: height and width that crops are resized to.
        accelerator: gives the index of this process and the number of processes.
    """

    def __init__(
        self, settings: Settings, catalogue: Catalogue, *, image_size: tuple[int, int], accelerator: Accelerator
    ) -> None:
        check_batches(settings.training, accelerator.num_processes)
        self.settings = settings
        self.crop = settings.augmentation.crop(image_size)
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.unreadable: set[str] = set()
        """Reasons why images could not be read; each names its image."""
        data = settings.data
        images = CatalogueImages(catalogue, orientation=data.orientation)
        self.images = cache_images(images, num_workers=data.num_workers) if data.cache_images else images

    def of_epoch(self, epoch: int, group: Group, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches.

        Raises:
            ValueError: too many images of the data set or all images of a class cannot be read.
        """
        training, seed = self.settings.training, self.settings.seed
        batches = ClassBatches(
            group.offsets,
            batch_size=training.batch_size,
            images_per_class=training.images_per_class,
            num_batches=training.iterations_per_epoch,
            seed=seed,
            epoch=epoch,
            first_batch=first_step,
            process=self.process,
            num_processes=self.num_processes,
        )
        images = LabeledImages(self.images, group.rows, group.offsets, self.crop)
        loader = build_loader(images, self._with_crops(batches, epoch), num_workers=self.settings.data.num_workers)
        for step, loaded in enumerate(loader, first_step):
            self._note_unreadable(loaded)
            yield self._pieces(*loaded.items, self._changes(epoch, step).of(batches.part))

    def _with_crops(self, batches: ClassBatches, epoch: int) -> Iterator[list[tuple[int, np.ndarray]]]:
        for step, indices in enumerate(batches, batches.first_batch):
            crops = self._changes(epoch, step).crops[batches.part].numpy()
            yield list(zip(indices, crops, strict=True))

    def _changes(self, epoch: int, step: int) -> Changes:
        """Draw the augmentation of a whole batch, so that it does not depend on the number of processes."""
        generator = seeded_generator(self.settings.seed, epoch, step)
        return self.settings.augmentation.draw(self.settings.training.batch_size, generator)

    def _pieces(self, images: Tensor, labels: Tensor, changes: Changes) -> list[MicroBatch]:
        size = len(images) // self.settings.training.micro_batches
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return [MicroBatch(images[part], labels[part], changes.of(part)) for part in parts]

    def _note_unreadable(self, loaded: Loaded) -> None:
        for reason in loaded.unreadable.values():
            raise ValueError(f"No image of a class can be read: {reason}")
        for reason in sorted(set(loaded.replaced.values()) - self.unreadable):
            self.unreadable.add(reason)
            LOGGER.warning("replaced by another image of its class: %s", reason)
            if len(self.unreadable) > max_unreadable(self.settings.data.max_unreadable_fraction, len(self.images)):
                raise ValueError(
                    f"{len(self.unreadable)} of {len(self.images)} images cannot be read, more than "
                    f"data.max_unreadable_fraction allows: raise it to continue without them. One of them: {reason}"
                )


def check_batches(training: TrainingSettings, num_processes: int) -> None:
    """Check that a batch divides evenly among processes, micro-batches and classes.

    Raises:
        ValueError: it does not.
    """
    if training.batch_size % (num_processes * training.micro_batches):
        raise ValueError(
            f"training.batch_size {training.batch_size} must divide among {num_processes} processes, and each part "
            f"into training.micro_batches {training.micro_batches}."
        )
    if training.batch_size % training.images_per_class:
        raise ValueError(
            f"training.batch_size {training.batch_size} must be a multiple of training.images_per_class "
            f"{training.images_per_class}."
        )
