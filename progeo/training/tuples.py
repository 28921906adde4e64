"""Batches of mined tuples: queries with their nearest positive, hard negatives and difficult positives."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from progeo.data.augmentation import Changes, draw_changes
from progeo.data.crops import RandomCrop
from progeo.data.datasets import Unreadable
from progeo.data.loaders import build_loader
from progeo.data.options import DataOptions
from progeo.engine.accelerator import copy_from_main_process
from progeo.engine.log import LOGGER
from progeo.engine.randomness import seeded_generator
from progeo.evaluation.rerank import build_reranker
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.cells import check_positions
from progeo.places.geographic import check_zones, positions_m
from progeo.places.options import CellOptions
from progeo.training.batches import Batches, MicroBatch, check_without_classes
from progeo.training.mining import Candidates, draw_pool, find_candidates, mine
from progeo.training.options import MiningOptions, TrainingOptions
from progeo.training.places import TrainingImages


@dataclass(frozen=True)
class TrainingTuples(TrainingImages):
    """Training images that tuples are mined from; `catalogue` is the database."""

    queries: Catalogue | None
    """None if the images of the database are the queries."""
    candidates: Candidates
    """Queries that have a positive, with the database rows of their positives and of the images near them."""

    @property
    def catalogues(self) -> tuple[Catalogue, ...]:
        """The database and, if they are others, the queries."""
        return (self.catalogue,) if self.queries is None else (self.catalogue, self.queries)

    @property
    def query_rows(self) -> np.ndarray:
        """Row of each usable query among all training images, int64 (q,)."""
        return self.candidates.queries + (0 if self.queries is None else len(self.catalogue))


class TupleBatches(Batches):
    """Tuples of a query, its nearest positive and hard negatives, mined anew for every so many queries; see `Batches`.

    All queries are drawn once per epoch, in random order. Each mining extracts the descriptors of all training images
    with the current weights.
    """

    source: TrainingTuples
    options: MiningOptions

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mining = self.work / "mining"
        """Folder of the descriptors of a mining, which is removed after it."""
        count = len(self.source.candidates.queries)
        self.kept = np.full((count, self.options.negatives), -1, np.int64)
        """Negatives of the last mining of each query, which the next one considers too."""
        self.mined: dict[str, Any] = {}
        """Epoch and number of the current part of it, and the images of its tuples: database rows and others."""

    @staticmethod
    def read(data: DataOptions, cells: CellOptions, options: MiningOptions) -> TrainingImages:
        """Read database and queries, and find the positives of each query.

        Raises:
            ValueError: no query has a positive, or one has too few images far from it.
        """
        database = read_catalogue(data.train_folder / options.database)
        queries = None if options.queries_folder is None else read_catalogue(data.train_folder / options.queries_folder)
        found = _candidates(database, queries, options)
        query_images = database if queries is None else queries
        if skipped := len(query_images) - len(found.queries):
            LOGGER.warning(
                "%d of %d queries have no positive within %g m and are skipped",
                skipped,
                len(query_images),
                options.positive_radius_m,
            )
        far = len(database) - np.array([len(rows) for rows in found.excluded], np.int64)
        if len(far) == 0:
            raise ValueError(
                f"No query of {query_images.folder} has an image of another panorama within `mining.positive_radius_m` "
                f"{options.positive_radius_m:g} in {database.folder}."
            )
        if far.min() < options.negatives:
            name = query_images.name(int(found.queries[far.argmin()]))
            raise ValueError(
                f"`mining.negatives` {options.negatives} are more than the {far.min()} database images that are beyond "
                f"{options.exclusion_radius_m:g} m from the query {name}: lower it."
            )
        return TrainingTuples(database, queries, found)

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
            loader = build_loader(images, keys, num_workers=self.data.num_workers)
            for step, rows, loaded in zip(steps, batches, loader, strict=True):
                self.note_unreadable(loaded)
                yield self._micro_batches(loaded.items, rows, changes(step))
            step = end

    def state_dict(self) -> dict[str, Any]:
        """Return the state required to resume: also the tuples of the current mining."""
        kept = torch.from_numpy(self.kept.copy())
        rows = torch.from_numpy(self.mined["rows"].copy()) if self.mined else None
        return {**super().state_dict(), "kept": kept, "mined": {**self.mined, "rows": rows} if self.mined else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.kept = state["kept"].numpy().copy()
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
            micro_batches.append(MicroBatch(items[0][start:end], drawn, targets))
            start = end
        return micro_batches

    def _tuples(self, epoch: int, part: int) -> np.ndarray:
        """Return the images of the tuples of a part of an epoch, int64 (n, 2 + M + P), mining them if they are new."""
        if (self.mined.get("epoch"), self.mined.get("part")) != (epoch, part):
            count = self.steps_per_mining * self.training.batch_size
            queries = self._order(epoch)[part * count : (part + 1) * count]
            self.mined = {"epoch": epoch, "part": part, "rows": self._mine(queries, epoch)}
        return self.mined["rows"]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of the queries of an epoch; the first ones fill the last batch."""
        count = self.steps_per_epoch * self.training.batch_size
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.source.candidates.queries))
        return np.resize(order, count)

    def _mine(self, queries: np.ndarray, epoch: int) -> np.ndarray:
        """Mine tuples with the current weights: rows among all training images, int64 (n, 2 + M + P), -1 for none.

        Args:
            queries: indices of usable queries (n,); tuples of a query whose image cannot be read are those of the next.
        """
        source, options, generation = self.source, self.options, self.training.generation_of(epoch).index
        descriptors = self._descriptors()
        database, unreadable = descriptors.rows[0], descriptors.unreadable
        candidates = _without(source.candidates, unreadable[unreadable < len(database)])
        is_usable = np.array([len(rows) > 0 for rows in candidates.positives])[queries]
        is_usable &= ~np.isin(source.query_rows[queries], unreadable)
        usable = np.flatnonzero(is_usable)
        if not len(usable):
            raise ValueError("No query can be used: the images of all of them, or of their positives, are unreadable.")
        distinct = np.unique(queries[usable])
        candidates = candidates.take(distinct)
        pool = partial(
            draw_pool, num_database=len(database), pool=options.pool, seed=self.seed, generation=generation, epoch=epoch
        )
        mined = mine(
            descriptors.take(source.query_rows[distinct]),
            database,
            candidates,
            [pool(rows, query=query) for rows, query in zip(candidates.excluded, distinct.tolist(), strict=True)],
            previous=self.kept[distinct],
            num_negatives=options.negatives,
            reranked=self._reranked(descriptors, distinct) if self._has_difficult_positives(generation) else None,
            positive_pool=options.positive_pool,
            num_positives=options.difficult_positives,
        )
        self._remove_files()
        if (mined.negatives < 0).any():
            raise ValueError(
                f"A query has fewer than {options.negatives} database images that can be read beyond "
                f"{options.exclusion_radius_m:g} m: lower `mining.negatives`."
            )
        self.kept[distinct] = mined.negatives
        width = options.difficult_positives if self._has_difficult_positives(generation) else 0
        difficult = np.full((len(distinct), width), -1, np.int64)
        for rows, of_query in zip(mined.difficult, difficult, strict=True):
            of_query[: len(rows)] = rows
        tuples = np.column_stack([source.query_rows[distinct], mined.positive, mined.negatives, difficult])
        # A query that cannot be used gives its turn to the next one that can.
        turns = usable[np.searchsorted(usable, np.arange(len(queries))) % len(usable)]
        return tuples[np.searchsorted(distinct, queries[turns])]

    def _has_difficult_positives(self, generation: int) -> bool:
        return generation > 0 and "difficult_positives" in self.needs

    def _reranked(self, descriptors: "_Descriptors", distinct: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Re-rank by the neighbors among the database and all queries, which may be database images themselves."""
        source, options, database = self.source, self.options, descriptors.rows[0]
        readable = np.setdiff1d(np.arange(len(database)), descriptors.unreadable)
        queries, rows = np.empty((0, database.width), np.float32), readable
        if source.queries is not None:
            rows = np.setdiff1d(source.query_rows, descriptors.unreadable)
            queries = descriptors.take(rows)
        reranker = build_reranker(
            queries,
            database.without(np.setdiff1d(np.arange(len(database)), readable)),
            k1=options.rerank_k1,
            k2=options.rerank_k2,
            weight=options.rerank_weight,
        )
        positions = np.searchsorted(rows, source.query_rows[distinct])

        def reranked(block: np.ndarray) -> np.ndarray:
            distances = np.full((len(block), len(database)), np.inf, np.float32)
            distances[:, readable] = reranker.distances_of(positions[block])
            return distances

        return reranked

    def _descriptors(self) -> "_Descriptors":
        """Extract the descriptors of all training images with the current weights, shared among processes."""
        encoder, accelerator, data = self.encoder, self.accelerator, self.data
        was_training = encoder.training
        copy_from_main_process(encoder, accelerator)  # batch-norm statistics may differ until the next step
        encoder.eval()
        extractor = descriptor_extractor(encoder, ImageOptions(orientation=data.orientation), accelerator)
        found = [
            extract_descriptors(
                extractor,
                catalogue,
                accelerator,
                work=WorkOptions(batch_size=data.eval_batch_size, num_workers=data.num_workers),
                cache=CacheOptions(descriptor_cache=self.mining, max_unreadable_fraction=data.max_unreadable_fraction),
            )
            for catalogue in self.source.catalogues
        ]
        encoder.train(was_training)
        return _Descriptors(found)

    def _remove_files(self) -> None:
        """Remove the descriptors: the next mining has other weights."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(self.mining, ignore_errors=True)
        self.accelerator.wait_for_everyone()


class _Descriptors:
    """The descriptors of all training images, those of one catalogue after the other."""

    def __init__(self, rows: Sequence[ShardedRows]) -> None:
        starts = np.cumsum([0, *(each.num_rows for each in rows)])
        self.unreadable = np.concatenate([each.missing + start for each, start in zip(rows, starts, strict=False)])
        """Rows of images that cannot be read, which have no descriptor."""
        self.rows = [each.complete for each in rows]
        self.starts = starts

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the descriptors of `rows` of a single catalogue, int64 (n,): (n, D)."""
        index = int(np.searchsorted(self.starts, rows[0], side="right")) - 1
        return self.rows[index].take(rows - self.starts[index])


@dataclass(frozen=True, eq=False)
class _CroppedImages(Dataset):
    """Crops of images, with their rows."""

    images: Dataset
    crop: RandomCrop

    def __getitem__(self, key: tuple[int, np.ndarray]) -> tuple[Tensor, int] | Unreadable:
        row, draws = key
        image = self.images[row]
        return image if isinstance(image, Unreadable) else (self.crop(image, draws), row)


def _candidates(database: Catalogue, queries: Catalogue | None, options: MiningOptions) -> Candidates:
    if queries is not None:
        check_zones(database, queries)
    catalogues = (database,) if queries is None else (database, queries)
    positions = positions_m(*catalogues)
    for catalogue, of_catalogue in zip(catalogues, positions, strict=True):
        check_positions(catalogue, of_catalogue)
    panoramas = [_panoramas(each) for each in (catalogues[-1], database)]
    return find_candidates(
        positions[-1],
        positions[0],
        positive_radius_m=options.positive_radius_m,
        exclusion_radius_m=options.exclusion_radius_m,
        query_panoramas=panoramas[0] if all(each is not None for each in panoramas) else None,
        database_panoramas=panoramas[1],
        query_rows=np.arange(len(database)) if queries is None else _rows_in(database, queries),
    )


def _rows_in(database: Catalogue, queries: Catalogue) -> np.ndarray:
    """Return the database row of each query, int64 (Q,), -1 for a file that is no database image."""
    text = pa.large_string()
    files, of_queries = (
        pc.binary_join_element_wise(
            pa.scalar(str(each.folder.resolve()), text), each.table["path"].cast(text), pa.scalar("/", text)
        )
        for each in (database, queries)
    )
    return pc.fill_null(pc.index_in(of_queries, files), -1).to_numpy().astype(np.int64)


def _panoramas(catalogue: Catalogue) -> np.ndarray | None:
    """Return the panorama of each image; None if the names do not say it."""
    try:
        return catalogue.panoramas
    except ValueError:
        return None


def _without(candidates: Candidates, unreadable: np.ndarray) -> Candidates:
    """Return the candidates without these database images, which are excluded from all negatives too."""
    if not len(unreadable):
        return candidates
    positives = [np.setdiff1d(rows, unreadable) for rows in candidates.positives]
    excluded = [np.union1d(rows, unreadable) for rows in candidates.excluded]
    return Candidates(candidates.queries, positives, excluded)


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
