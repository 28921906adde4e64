"""Batches of mined tuples: queries with their nearest positive, hard negatives and difficult positives."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from progeo.data.augmentation import Changes, color_plan, draw_changes
from progeo.data.crops import RandomCrop
from progeo.data.datasets import Unreadable
from progeo.data.loaders import build_loader
from progeo.data.options import DataOptions
from progeo.engine.randomness import seeded_generator
from progeo.places.options import CellOptions
from progeo.training.batches import Batches, MicroBatch, check_without_classes
from progeo.training.options import MiningOptions, TrainingOptions
from progeo.training.places import TrainingImages
from progeo.training.tuple_miner import TupleMiner
from progeo.training.tuple_sets import TrainingTuples, read_training_tuples


class TupleBatches(Batches):
    """Tuples of a query, its nearest positive and hard negatives, mined anew for every so many queries; see `Batches`.

    An epoch draws all queries once in random order, or the first of them if it has fewer batches. Each mining extracts
    the descriptors of all training images with the current weights.
    """

    source: TrainingTuples
    options: MiningOptions
    unit = "tuples"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.miner = TupleMiner(
            self.source,
            self.options,
            encoder=self.encoder,
            data=self.data,
            seed=self.seed,
            folder=self.work / "mining",
            accelerator=self.accelerator,
        )
        self.mines = True
        """Whether tuples are mined, or random."""
        self.mined: dict[str, Any] = {}
        """Epoch and number of the current part of it, and the images of its tuples: database rows and others."""

    @staticmethod
    def read(data: DataOptions, cells: CellOptions, options: MiningOptions) -> TrainingImages:
        """Read database and queries, see `read_training_tuples`."""
        return read_training_tuples(data, options)

    @staticmethod
    def check(training: TrainingOptions, num_processes: int) -> None:
        """Check that a batch divides evenly among processes and micro-batches, and that no classes are asked for."""
        check_without_classes(training, num_processes)

    @staticmethod
    def given(training: TrainingOptions) -> dict[str, str]:
        """Return what the batches give loss terms: tuples and, with several generations, difficult positives."""
        advice = "" if len(training.generations) > 1 else "set `training.generations`, for example to 5 5 5 5"
        return {"tuples": "", "difficult_positives": advice}

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that hold every query once, or `iterations_per_epoch` if that is lower."""
        all_queries = -(-len(self.source.candidates.queries) // self.training.batch_size)
        return min(self.training.iterations_per_epoch, all_queries)

    @property
    def images_per_step(self) -> int:
        """Maximum number of images of a batch."""
        difficult = self.options.difficult_positives if "difficult_positives" in self.needs else 0
        return self.training.batch_size * (2 + self.options.negatives + difficult)

    @property
    def steps_per_mining(self) -> int:
        """Number of batches between two minings."""
        return -(-self.options.queries // self.training.batch_size)

    @property
    def minings_per_epoch(self) -> int:
        """Number of minings of an epoch."""
        return -(-self.steps_per_epoch // self.steps_per_mining)

    def draw_without_mining(self) -> None:
        """Have tuples hold random images."""
        self.mines = False

    def summary(self) -> list[str]:
        """Say how many queries and images there are, and when they are mined."""
        queries, database = len(self.source.candidates.queries), len(self.source.catalogue)
        per_mining = min(self.steps_per_mining, self.steps_per_epoch) * self.training.batch_size
        return [
            f"images      {database:,} in the database; {queries:,} queries with a positive within "
            f"{self.options.positive_radius_m:g} m",
            f"tuples      a positive and {self.options.negatives} negatives each, mined every {per_mining:,} queries",
        ]

    def of_epoch(self, epoch: int, *, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's part of each batch of an epoch, as micro-batches of whole tuples.

        Raises:
            ValueError: an image cannot be read, or too many of them.
        """
        step, training = first_step, self.training
        images = _CroppedImages(ConcatDataset(self.sets), self.crop)
        share = training.batch_size // self.num_processes
        mine_from, mine_to = self.process * share, (self.process + 1) * share
        while step < self.steps_per_epoch:
            part = step // self.steps_per_mining
            tuples = self._tuples(epoch, part)
            first, end = part * self.steps_per_mining, min((part + 1) * self.steps_per_mining, self.steps_per_epoch)
            steps = range(step, end)
            batches = [tuples[(each - first) * training.batch_size :][mine_from:mine_to] for each in steps]
            changes = partial(self._changes, epoch, width=tuples.shape[1], part=slice(mine_from, mine_to))
            keys = (_keys(rows, changes(each)) for each, rows in zip(steps, batches, strict=True))
            loader = build_loader(images, keys, num_workers=self.data.num_workers, pin=self.pins)
            for step, rows, loaded in zip(steps, batches, loader, strict=True):
                self.note_unreadable(loaded)
                yield self._micro_batches(loaded.items, rows, changes(step))
            step = end

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume: also the tuples of the current mining."""
        kept = torch.from_numpy(self.miner.kept.copy())
        rows = torch.from_numpy(self.mined["rows"].copy()) if self.mined else None
        return {**super().state_dict(), "kept": kept, "mined": {**self.mined, "rows": rows} if self.mined else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.miner.kept = state["kept"].numpy().copy()
        mined = state["mined"]
        self.mined = {} if mined is None else {**mined, "rows": mined["rows"].numpy().copy()}

    def _changes(self, epoch: int, step: int, *, width: int, part: slice) -> Changes:
        """Draw the augmentation of a whole batch, as if no tuple held an image twice, and take that of this process."""
        generator = seeded_generator(self.seed, epoch, step)
        every = draw_changes(self.augmentation, self.training.batch_size * width, generator)
        return Changes(*(values.unflatten(0, (-1, width))[part] for values in every))

    def _micro_batches(self, items: tuple[Tensor, Tensor], rows: np.ndarray, changes: Changes) -> list[MicroBatch]:
        """Split the images of tuples into micro-batches.

        Args:
            items: crops (n, 3, H, W) and rows (n,) of the distinct images of each tuple, one tuple after the other.
            rows: images of the tuples, (T, S), -1 for none.
            changes: of each image of each tuple, (T, S, ...).
        """
        size = len(rows) // self.training.micro_batches
        micro_batches, start = [], 0
        for first in range(0, len(rows), size):
            of_micro_batch = rows[first : first + size]
            positions, slots = _distinct(of_micro_batch)
            end = start + len(slots)
            tuples, others = np.split(positions, [2 + self.options.negatives], axis=1)
            targets = {
                "rows": items[1][start:end],
                "tuples": torch.from_numpy(tuples),
                "difficult_positives": torch.from_numpy(others),
            }
            drawn = Changes(*(values[first : first + size].flatten(0, 1)[slots] for values in changes))
            micro_batches.append(MicroBatch(items[0][start:end], color_plan(drawn), targets))
            start = end
        return micro_batches

    def _tuples(self, epoch: int, part: int) -> np.ndarray:
        """Return the images of the tuples of a part of an epoch, int64 (n, 2 + M + P), mining them if they are new."""
        if (self.mined.get("epoch"), self.mined.get("part")) != (epoch, part):
            count = self.steps_per_mining * self.training.batch_size
            queries = self._order(epoch)[part * count : (part + 1) * count]
            generation = self.training.generation_of(epoch).index
            difficult = generation > 0 and "difficult_positives" in self.needs
            if self.mines:
                rows = self.miner.mine(queries, generation=generation, epoch=epoch, difficult=difficult)
            else:
                size = (len(queries), 2 + self.options.negatives)
                rows = np.random.default_rng([self.seed, part]).integers(sum(map(len, self.sets)), size=size)
            self.mined = {"epoch": epoch, "part": part, "rows": rows}
        return self.mined["rows"]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of the queries of an epoch; the first ones fill the last batch."""
        count = self.steps_per_epoch * self.training.batch_size
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source.candidates.queries))
        return np.resize(order, count)


@dataclass(frozen=True, eq=False)
class _CroppedImages(Dataset):
    """Crops of images, with their rows."""

    images: Dataset
    crop: RandomCrop

    def __getitem__(self, key: tuple[int, np.ndarray]) -> tuple[Tensor, int] | Unreadable:
        row, draws = key
        image = self.images[row]
        return image if isinstance(image, Unreadable) else (self.crop(image, draws), row)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct images of each tuple: an image is computed once for a tuple that holds it twice.

    Args:
        rows: images of the tuples, (T, S), -1 for none.

    Returns:
        The number of each image, int64 (T, S), -1 for none; and for each number the first index that has it in the
        flattened rows.
    """
    numbers = np.full(rows.shape, -1, np.int64)
    slots: list[int] = []
    for index, images in enumerate(rows):
        present = np.flatnonzero(images >= 0)
        _, first, inverse = np.unique(images[present], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # in the order of the tuple
        numbers[index, present] = len(slots) + rank[inverse]
        slots += (index * rows.shape[1] + present[np.sort(first)]).tolist()
    return numbers, np.array(slots, np.int64)


def _keys(rows: np.ndarray, changes: Changes) -> list[tuple[int, np.ndarray]]:
    """Return the distinct images of each tuple, with the random numbers of their crops."""
    _, slots = _distinct(rows)
    crops = changes.crops.flatten(0, 1).numpy()
    return [(int(row), draws) for row, draws in zip(rows.ravel()[slots], crops[slots], strict=True)]
