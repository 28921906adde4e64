"""Training batches of stage 2: images with their augmentation and their targets, such as labels."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from progeo.data.augmentation import Changes, build_crop, draw_changes
from progeo.data.datasets import CatalogueImages, LabeledImages, max_unreadable
from progeo.data.loaders import Loaded, build_loader, cache_images
from progeo.data.options import Augmentation, DataOptions
from progeo.data.samplers import ClassSampler
from progeo.engine.log import LOGGER
from progeo.engine.randomness import seeded_generator
from progeo.training.options import TrainingOptions
from progeo.training.places import TrainingPlaces


@dataclass(frozen=True)
class MicroBatch:
    """Images that go through the encoder together."""

    images: Tensor
    """Cropped images, uint8 (b, 3, H, W)."""
    changes: Changes
    """Augmentation still to be applied: the color jitter."""
    targets: Mapping[str, Tensor]
    """What loss terms need of the images besides what the encoder computes, by name: `labels` int64 (b,) ..."""


class Batches(ABC):
    """The batches of every epoch, determined by seed, epoch and step, split among processes and into micro-batches.

    A row of `BATCHES`.

    Args:
        places: training images and their groups.
        data: how images are read.
        augmentation: strength of the augmentation.
        training: number and size of batches.
        image_size: height and width that crops are resized to.
        seed: seed of the sampling and the augmentation.
        accelerator: gives the index of this process and the number of processes.
        needs: what loss terms need; targets that take memory, such as positions, are only given if they are among it.
    """

    def __init__(
        self,
        places: TrainingPlaces,
        *,
        data: DataOptions,
        augmentation: Augmentation,
        training: TrainingOptions,
        image_size: tuple[int, int],
        seed: int,
        accelerator: Accelerator,
        needs: Collection[str] = (),
    ) -> None:
        self.needs = needs
        self.places, self.groups = places, places.partition.groups
        self.data, self.augmentation, self.training, self.seed = data, augmentation, training, seed
        self.crop = build_crop(augmentation, image_size)
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.unreadable: set[str] = set()
        """Reasons why images could not be read; each names its image."""
        images = CatalogueImages(places.catalogue, orientation=data.orientation)
        self.images = cache_images(images, num_workers=data.num_workers) if training.cache_images else images
        """The training images."""

    @staticmethod
    @abstractmethod
    def check(training: TrainingOptions, num_processes: int) -> None:
        """Check the options before any image is read.

        Raises:
            ValueError: batches cannot be drawn with them.
        """

    @staticmethod
    @abstractmethod
    def given(training: TrainingOptions) -> dict[str, str]:
        """Return what the batches give loss terms, see `check_needs`."""

    @abstractmethod
    def group_of(self, epoch: int) -> int:
        """Return the index of the group of classes that an epoch trains."""

    @abstractmethod
    def of_epoch(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch from a step on, as micro-batches."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume: the reasons why images could not be read."""
        return {"unreadable": sorted(self.unreadable)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.unreadable = set(state["unreadable"])

    def note_unreadable(self, loaded: Loaded) -> None:
        """Log the images of a batch that were replaced.

        Raises:
            ValueError: too many images of the data set or all images of a class cannot be read.
        """
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


class ClassBatches(Batches):
    """P x K sampling: several images of each of several classes of the group of the epoch; see `Batches`."""

    @staticmethod
    def check(training: TrainingOptions, num_processes: int) -> None:
        """Check that a batch divides evenly among processes, micro-batches and classes."""
        if training.batch_size % (num_processes * training.micro_batches):
            raise ValueError(
                f"`training.batch_size` {training.batch_size} must divide among {num_processes} processes, and each "
                f"part into `micro_batches` {training.micro_batches}."
            )
        if training.batch_size % training.images_per_class:
            raise ValueError(
                f"`training.batch_size` {training.batch_size} must be a multiple of `images_per_class` "
                f"{training.images_per_class}."
            )

    @staticmethod
    def given(training: TrainingOptions) -> dict[str, str]:
        """Return what the batches give loss terms: labels, positions, and pairs if the options allow."""
        pairs = ""
        if training.images_per_class < 2:
            pairs = "set `images_per_class` to 2 or more"
        elif training.images_per_class == training.batch_size:
            pairs = (
                f"they are all of one class, set `images_per_class` below `training.batch_size` {training.batch_size}"
            )
        elif training.micro_batches > 1:
            pairs = (
                f"`micro_batches` must be 1, got {training.micro_batches}; a ViT needs less memory with "
                f"`gradient_checkpointing` too"
            )
        return {"labels": "", "positions": "", "pairs": pairs}

    def group_of(self, epoch: int) -> int:
        """Return the group of an epoch: all groups take turns."""
        return epoch % len(self.groups)

    def of_epoch(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches.

        Raises:
            ValueError: too many images of the data set or all images of a class cannot be read.
        """
        training, group = self.training, self.groups[self.group_of(epoch)]
        batches = ClassSampler(
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
            self.note_unreadable(loaded)
            images, labels, rows = loaded.items
            targets = {"labels": labels}
            if "positions" in self.needs:
                positions = self.places.from_centers_m(rows.numpy(), group.class_ids[labels.numpy()])
                targets["positions"] = torch.from_numpy(positions).float()
            yield self._micro_batches(images, targets, self._changes(epoch, step).of(batches.part))

    def _with_crops(self, batches: ClassSampler, epoch: int) -> Iterator[list[tuple[int, np.ndarray]]]:
        for step, indices in enumerate(batches, batches.first_batch):
            crops = self._changes(epoch, step).crops[batches.part].numpy()
            yield list(zip(indices, crops, strict=True))

    def _changes(self, epoch: int, step: int) -> Changes:
        """Draw the augmentation of a whole batch, so that it does not depend on the number of processes."""
        generator = seeded_generator(self.seed, epoch, step)
        return draw_changes(self.augmentation, self.training.batch_size, generator)

    def _micro_batches(self, images: Tensor, targets: Mapping[str, Tensor], changes: Changes) -> list[MicroBatch]:
        size = len(images) // self.training.micro_batches
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return [
            MicroBatch(images[part], changes.of(part), {name: target[part] for name, target in targets.items()})
            for part in parts
        ]


BATCHES: dict[str, type[Batches]] = {"classes": ClassBatches}
"""`training.batches` -> how batches are drawn."""


def batches_of(training: TrainingOptions) -> type[Batches]:
    """Return the row of `BATCHES` that the options name.

    Raises:
        ValueError: there is none.
    """
    if training.batches not in BATCHES:
        raise ValueError(f"`training.batches` must be one of {', '.join(BATCHES)}, got {training.batches!r}.")
    return BATCHES[training.batches]
