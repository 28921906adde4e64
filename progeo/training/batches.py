"""Training batches of stage 2: images with their augmentation and their targets, such as labels."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from progeo.data.augmentation import Changes, ColorPlan, build_crop, color_plan, draw_changes
from progeo.data.datasets import CatalogueImages, LabeledImages, max_unreadable
from progeo.data.loaders import Loaded, build_loader, cache_images
from progeo.data.options import Augmentation, DataOptions
from progeo.data.samplers import ClassSampler
from progeo.engine.log import LOGGER
from progeo.engine.randomness import seeded_generator
from progeo.engine.transfer import is_asynchronous
from progeo.models.backbones.position_embedding import as_height_width, check_sides
from progeo.models.encoder import Encoder
from progeo.places.catalogue import read_catalogue
from progeo.places.options import CellOptions
from progeo.training.options import TrainingOptions
from progeo.training.places import (
    TrainingImages,
    TrainingNamedPlaces,
    TrainingPlaces,
    read_named_places,
    read_training_places,
)


@dataclass(frozen=True)
class MicroBatch:
    """Images that go through the encoder together."""

    images: Tensor
    """Cropped images, uint8 (b, 3, H, W)."""
    plan: ColorPlan
    """Augmentation still to be applied: the color jitter."""
    targets: Mapping[str, Tensor]
    """What loss terms need of the images besides what the encoder computes, by name: `labels` int64 (b,) ...; and
    their `rows` among all training images, int64 (b,), which a teacher needs."""


class Batches(ABC):
    """The batches of every epoch, determined by seed, epoch and step, split among processes and into micro-batches.

    A row of `BATCHES` loads it.

    Args:
        source: the training images, of `read`.
        data: how images are read.
        augmentation: strength of the augmentation.
        training: number and size of batches.
        encoder: the encoder in training: it tells the size of crops unless the options do, and may choose the images.
        seed: seed of the sampling and the augmentation.
        accelerator: gives the index of this process and the number of processes.
        work: folder below which files may be that are only needed for a while.
        needs: what loss terms need; targets that take memory, such as positions, are only given if they are among it.
        options: settings of the section of its row.
    """

    unit = "images"
    """What `batch_size` counts."""
    labels_are_classes = True
    """Whether labels, if there are any, stand for cells, so that a classifier can be kept and validated."""

    def __init__(
        self,
        source: TrainingImages,
        *,
        data: DataOptions,
        augmentation: Augmentation,
        training: TrainingOptions,
        encoder: Encoder,
        seed: int,
        accelerator: Accelerator,
        work: Path,
        needs: Collection[str] = (),
        options: Any = None,
    ) -> None:
        self.source, self.needs, self.options, self.work = source, needs, options, work
        self.data, self.augmentation, self.training, self.seed = data, augmentation, training, seed
        self.encoder, self.accelerator = encoder, accelerator
        self.crop = build_crop(augmentation, crop_size(training, encoder), encoder.resize)
        self.process, self.num_processes = accelerator.process_index, accelerator.num_processes
        self.pins = is_asynchronous(accelerator.device)
        """Whether images are put into pinned memory."""
        self.unreadable: set[str] = set()
        """Reasons why images could not be read; each names its image."""
        min_shape = self.crop.min_shape if data.fast_decode else None
        sets = [CatalogueImages(each, None, data.orientation, min_shape) for each in source.catalogues]
        self.sets = [
            cache_images(each, num_workers=data.num_workers) if training.cache_images else each for each in sets
        ]
        """The training images, for each catalogue of the source."""

    @staticmethod
    @abstractmethod
    def read(data: DataOptions, cells: CellOptions, options: Any) -> TrainingImages:
        """Read the training images, and whatever batches are drawn by.

        Args:
            data: gives their folder.
            cells: the classes, for batches that have some.
            options: settings of the section of its row.

        Raises:
            FileNotFoundError: a folder does not exist.
            ValueError: batches cannot be drawn from the images.
        """

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

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return self.training.iterations_per_epoch

    @property
    def images_per_step(self) -> int:
        """Number of images of a batch, about."""
        return self.training.batch_size

    @property
    def minings_per_epoch(self) -> int:
        """Number of times in an epoch that the descriptors of all images are extracted to choose those of batches."""
        return 0

    def draw_without_mining(self) -> None:
        """Have batches hold random images instead of mined ones, for a dry run; nothing to do without a mining."""

    @property
    def bytes_in_memory(self) -> int:
        """Number of bytes of the decoded images that are kept in memory."""
        return sum(each.bytes_in_memory for each in self.sets)

    @abstractmethod
    def summary(self) -> list[str]:
        """Say what is drawn, in lines of a name and a text."""

    def group_of(self, epoch: int) -> int:
        """Return the index of the group of classes that an epoch trains."""
        return 0

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
            raise ValueError(f"An image cannot be read, and no other can replace it: {reason}")
        num_images = sum(map(len, self.source.catalogues))
        for reason in sorted(set(loaded.replaced.values()) - self.unreadable):
            self.unreadable.add(reason)
            LOGGER.warning("replaced by another image of its class: %s", reason)
            if len(self.unreadable) > max_unreadable(self.data.max_unreadable_fraction, num_images):
                raise ValueError(
                    f"{len(self.unreadable)} of {num_images} images cannot be read, more than "
                    f"`max_unreadable_fraction` allows: raise it to continue without them. One of them: {reason}"
                )


class ClassBatches(Batches):
    """P x K sampling: several images of each of several classes of the group of the epoch; see `Batches`."""

    source: TrainingPlaces

    @staticmethod
    def read(data: DataOptions, cells: CellOptions, options: Any) -> TrainingImages:
        """Read the training images and partition them into groups of classes."""
        return read_training_places(data.train_folder, cells)

    @staticmethod
    def check(training: TrainingOptions, num_processes: int) -> None:
        """Check that a batch divides evenly among processes, micro-batches and classes."""
        check_parts(training, num_processes)
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

    def summary(self) -> list[str]:
        """Say how many images and classes the groups have."""
        groups = self.source.partition.groups
        in_groups = sum(len(group.rows) for group in groups)
        classes = ", ".join(str(group.num_classes) for group in groups)
        return [
            f"images      {in_groups:,} of {len(self.source.catalogue):,} are in groups",
            f"groups      {len(groups)}, of {classes} classes; each epoch trains one of them",
        ]

    def group_of(self, epoch: int) -> int:
        """Return the group of an epoch: all groups take turns."""
        return epoch % len(self.source.partition.groups)

    def of_epoch(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches.

        Raises:
            ValueError: too many images of the data set or all images of a class cannot be read.
        """
        group = self.source.partition.groups[self.group_of(epoch)]
        images = LabeledImages(self.sets[0], group.rows, group.offsets, self.crop)
        batches = self.sampler(group.offsets, epoch, first_step)
        for step, (crops, labels, rows) in self.loaded(images, batches, epoch):
            targets = {"labels": labels, "rows": rows}
            if "positions" in self.needs:
                positions = self.source.from_centers_m(rows.numpy(), group.class_ids[labels.numpy()])
                targets["positions"] = torch.from_numpy(positions).float()
            yield self.micro_batches(crops, targets, self._changes(epoch, step).of(batches.part))

    def sampler(
        self, offsets: np.ndarray, epoch: int, first_step: int, *, regions: np.ndarray | None = None
    ) -> ClassSampler:
        """Build the sampler of this process's part of each batch of an epoch, see `ClassSampler`."""
        training = self.training
        return ClassSampler(
            offsets,
            regions=regions,
            batch_size=training.batch_size,
            images_per_class=training.images_per_class,
            num_batches=self.steps_per_epoch,
            seed=self.seed,
            epoch=epoch,
            first_batch=first_step,
            process=self.process,
            num_processes=self.num_processes,
        )

    def loaded(self, images: Dataset, batches: ClassSampler, epoch: int) -> Iterator[tuple[int, Any]]:
        """Yield each step and its crops, uint8 (b, 3, H, W), labels and rows."""
        loader = build_loader(
            images, self._with_crops(batches, epoch), num_workers=self.data.num_workers, pin=self.pins
        )
        for step, loaded in enumerate(loader, batches.first_batch):
            self.note_unreadable(loaded)
            yield step, loaded.items

    def _with_crops(self, batches: ClassSampler, epoch: int) -> Iterator[list[tuple[int, np.ndarray]]]:
        for step, indices in enumerate(batches, batches.first_batch):
            crops = self._changes(epoch, step).crops[batches.part].numpy()
            yield list(zip(indices, crops, strict=True))

    def _changes(self, epoch: int, step: int) -> Changes:
        """Draw the augmentation of a whole batch, so that it does not depend on the number of processes."""
        generator = seeded_generator(self.seed, epoch, step)
        return draw_changes(self.augmentation, self.training.batch_size, generator)

    def micro_batches(self, images: Tensor, targets: Mapping[str, Tensor], changes: Changes) -> list[MicroBatch]:
        """Split this process's part of a batch into micro-batches."""
        size = len(images) // self.training.micro_batches
        parts = [slice(start, start + size) for start in range(0, len(images), size)]
        return [
            MicroBatch(
                images[part], color_plan(changes.of(part)), {name: target[part] for name, target in targets.items()}
            )
            for part in parts
        ]


class PlaceBatches(ClassBatches):
    """P x K sampling of places by name: in an epoch, each is drawn at most once, region after region; see `Batches`."""

    source: TrainingNamedPlaces  # type: ignore[assignment] # not of cells
    labels_are_classes = False

    @staticmethod
    def read(data: DataOptions, cells: CellOptions, options: Any) -> TrainingImages:
        """Read the training images and their places."""
        return read_named_places(data.train_folder, cells)

    @staticmethod
    def given(training: TrainingOptions) -> dict[str, str]:
        """Return what the batches give loss terms: labels, and pairs if the options allow."""
        given = ClassBatches.given(training)
        of_cells = "they are of cells, and `training.batches` places takes places by name: set it to classes"
        return {"labels": given["labels"], "pairs": given["pairs"], "text": of_cells, "positions": of_cells}

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in which no place is twice, or `iterations_per_epoch` if that is lower.

        Raises:
            ValueError: there are fewer places than a batch has.
        """
        places = self.training.batch_size // self.training.images_per_class
        if places > len(self.source.places):
            raise ValueError(
                f"`training.batch_size` {self.training.batch_size} takes {places:,} places, and only "
                f"{len(self.source.places):,} have enough images: lower it, or `cells.min_images_per_class`."
            )
        return min(self.training.iterations_per_epoch, len(self.source.places) // places)

    def summary(self) -> list[str]:
        """Say how many images, places and regions there are."""
        places = self.source.places
        return [
            f"images      {len(places.rows):,} of {len(self.source.catalogue):,} are of places with enough images",
            f"places      {len(places):,} in {len(np.unique(places.regions)):,} regions, one region after the other",
        ]

    def group_of(self, epoch: int) -> int:
        """Return the only group."""
        return 0

    def of_epoch(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches.

        Raises:
            ValueError: too many images of the data set or all images of a place cannot be read.
        """
        places = self.source.places
        images = LabeledImages(self.sets[0], places.rows, places.offsets, self.crop)
        batches = self.sampler(places.offsets, epoch, first_step, regions=places.regions)
        for step, (crops, labels, rows) in self.loaded(images, batches, epoch):
            targets = {"labels": labels, "rows": rows}
            yield self.micro_batches(crops, targets, self._changes(epoch, step).of(batches.part))


class ImageBatches(ClassBatches):
    """Any images, without labels: in an epoch, all are drawn once before any is drawn again; see `Batches`."""

    @staticmethod
    def read(data: DataOptions, cells: CellOptions, options: Any) -> TrainingImages:
        """Read the training images, whose places need not be known."""
        return TrainingImages(read_catalogue(data.train_folder, positions="ignored"))

    @staticmethod
    def check(training: TrainingOptions, num_processes: int) -> None:
        """Check that a batch divides evenly among processes and micro-batches, and that no classes are asked for."""
        check_without_classes(training, num_processes)

    @staticmethod
    def given(training: TrainingOptions) -> dict[str, str]:
        """Return what the batches give loss terms: nothing but images."""
        return {}

    def summary(self) -> list[str]:
        """Say how many images there are."""
        return [f"images      {len(self.source.catalogue):,}, without labels"]

    def group_of(self, epoch: int) -> int:
        """Return the only group."""
        return 0

    def of_epoch(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches.

        Raises:
            ValueError: too many images cannot be read.
        """
        rows = np.arange(len(self.source.catalogue))
        images = LabeledImages(self.sets[0], rows, np.array([0, len(rows)]), self.crop)  # as if all were of one class
        batches = self.sampler(np.arange(len(rows) + 1), epoch, first_step)  # as if each were a class
        for step, (crops, _, rows_read) in self.loaded(images, batches, epoch):
            yield self.micro_batches(crops, {"rows": rows_read}, self._changes(epoch, step).of(batches.part))


def crop_size(training: TrainingOptions, encoder: Encoder) -> tuple[int, int]:
    """Return the height and width of crops.

    Raises:
        ValueError: the encoder takes no images of the size that the options give.
    """
    if training.image_size is None:
        return encoder.image_size
    name = "training.image_size"
    size = as_height_width(training.image_size, name=name)
    check_sides(f"`{name}`", *size, encoder.traits)
    return size


def check_parts(training: TrainingOptions, num_processes: int) -> None:
    """Check that a batch divides evenly among processes and micro-batches.

    Raises:
        ValueError: it does not.
    """
    if training.batch_size % (num_processes * training.micro_batches):
        raise ValueError(
            f"`training.batch_size` {training.batch_size} must divide among {num_processes} processes, and each part "
            f"into `micro_batches` {training.micro_batches}."
        )


def check_without_classes(training: TrainingOptions, num_processes: int) -> None:
    """Check as `check_parts`, and that no option of classes is set.

    Raises:
        ValueError: a batch does not divide, or several images per class are asked for.
    """
    check_parts(training, num_processes)
    if training.images_per_class != 1:
        raise ValueError(
            f"`training.images_per_class` {training.images_per_class} is for `training.batches` classes, and "
            f"{training.batches} has none: leave it out."
        )
