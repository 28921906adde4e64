"""Mine tuples with an encoder in training: extract descriptors with its current weights, and choose images by them."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from progeo.data.options import DataOptions
from progeo.engine.accelerator import copy_from_main_process, of_main_process
from progeo.engine.log import LOGGER
from progeo.evaluation.rerank import build_reranker
from progeo.models.encoder import Encoder
from progeo.training.image_descriptors import ImageDescriptors, extract_image_descriptors
from progeo.training.mining import Candidates, draw_pool, mine
from progeo.training.options import MiningOptions
from progeo.training.tuple_sets import TrainingTuples


class TupleMiner:
    """Mines tuples; a function of the weights, of the negatives kept from before, and of (seed, generation, epoch).

    Args:
        source: the images.
        options: numbers of images.
        encoder: the encoder in training.
        data: how images are read.
        seed: seed of the random candidates for negatives.
        folder: folder of the descriptors of a mining, which is removed after it.
        accelerator: gives the processes, which share the extraction.
    """

    def __init__(
        self,
        source: TrainingTuples,
        options: MiningOptions,
        *,
        encoder: Encoder,
        data: DataOptions,
        seed: int,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.source, self.options, self.encoder, self.data = source, options, encoder, data
        self.seed, self.folder, self.accelerator = seed, folder, accelerator
        self.kept = np.full((len(source.candidates.queries), options.negatives), -1, np.int64)
        """Negatives of the last mining of each query, which the next one considers too."""

    def mine(self, queries: np.ndarray, *, generation: int, epoch: int, difficult: bool) -> np.ndarray:
        """Mine the tuples of queries: rows among all training images, int64 (n, 2 + M + P), -1 for none.

        Args:
            queries: indices of usable queries, int64 (n,). One whose image cannot be read, or none of its positives,
                gets the tuple of the next one.
            difficult: also mine difficult positives; P is 0 otherwise.

        Raises:
            ValueError: too many images cannot be read.
        """
        descriptors = self._descriptors()
        chosen = None
        if self.accelerator.is_main_process:
            tuples = self._choose(descriptors, queries, generation=generation, epoch=epoch, difficult=difficult)
            chosen = tuples, self.kept
        tuples, self.kept = of_main_process(chosen)
        if self.accelerator.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)  # the next mining has other weights
        self.accelerator.wait_for_everyone()
        LOGGER.info("mined the tuples of %d queries with the current weights", len(queries))
        return tuples

    def _choose(
        self, descriptors: ImageDescriptors, queries: np.ndarray, *, generation: int, epoch: int, difficult: bool
    ) -> np.ndarray:
        """Choose the images of the tuples, and keep their negatives."""
        source, options = self.source, self.options
        database, unreadable = descriptors.parts[0], descriptors.unreadable
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
            previous=np.where(np.isin(self.kept[distinct], unreadable), -1, self.kept[distinct]),
            num_negatives=options.negatives,
            reranked=self._reranked(descriptors, distinct) if difficult else None,
            positive_pool=options.positive_pool,
            num_positives=options.difficult_positives,
        )
        if (mined.negatives < 0).any():
            raise ValueError(
                f"A query has fewer than {options.negatives} database images that can be read beyond "
                f"{options.exclusion_radius_m:g} m: lower `mining.negatives`."
            )
        self.kept[distinct] = mined.negatives
        others = np.full((len(distinct), options.difficult_positives if difficult else 0), -1, np.int64)
        for rows, of_query in zip(mined.difficult, others, strict=True):
            of_query[: len(rows)] = rows
        tuples = np.column_stack([source.query_rows[distinct], mined.positive, mined.negatives, others])
        # A query that cannot be used gives its turn to the next one that can.
        turns = usable[np.searchsorted(usable, np.arange(len(queries))) % len(usable)]
        return tuples[np.searchsorted(distinct, queries[turns])]

    def _reranked(self, descriptors: ImageDescriptors, distinct: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Re-rank by the neighbors among the database and all queries, which may be database images themselves."""
        source, options, database = self.source, self.options, descriptors.parts[0]
        unreadable = descriptors.unreadable[descriptors.unreadable < len(database)]
        readable = np.setdiff1d(np.arange(len(database)), unreadable)
        queries, rows = np.empty((0, database.width), np.float32), readable
        if source.queries is not None:
            rows = np.setdiff1d(source.query_rows, descriptors.unreadable)
            queries = descriptors.take(rows)
        reranker = build_reranker(
            queries,
            database.without(unreadable),
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

    def _descriptors(self) -> ImageDescriptors:
        """Extract the descriptors of all training images with the current weights, shared among processes."""
        encoder, accelerator = self.encoder, self.accelerator
        was_training = encoder.training
        copy_from_main_process(encoder, accelerator)  # batch-norm statistics may differ until the next step
        encoder.eval()
        found = extract_image_descriptors(
            encoder, self.source.catalogues, accelerator, data=self.data, cache=self.folder, is_kept=False
        )
        encoder.train(was_training)
        return found


def _without(candidates: Candidates, unreadable: np.ndarray) -> Candidates:
    """Return the candidates without these database images, which are excluded from all negatives too."""
    if not len(unreadable):
        return candidates
    positives = [np.setdiff1d(rows, unreadable) for rows in candidates.positives]
    excluded = [np.union1d(rows, unreadable) for rows in candidates.excluded]
    return Candidates(candidates.queries, positives, excluded)
