"""Evaluate encoders on a folder: predict images or classes for queries, measure recall and write the results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from accelerate import Accelerator

from progeo.datasets.query_sets import positives_by_criterion
from progeo.engine.log import LOGGER
from progeo.evaluation.benchmark import Benchmark, load_benchmark
from progeo.evaluation.cell_index import Cells, cells_of_database
from progeo.evaluation.classification import lie_in_classes
from progeo.evaluation.copies import find_copies
from progeo.evaluation.descriptors import read_descriptors
from progeo.evaluation.image_matching import Matching
from progeo.evaluation.missed import Missed, missed_classes, missed_images
from progeo.evaluation.options import BenchmarkOptions, RankingOptions
from progeo.evaluation.predict import (
    Predictions,
    SearchedIndex,
    open_cell_index,
    open_faiss_index,
    predict_classes,
    predict_images,
)
from progeo.evaluation.priors import Regions, build_regions
from progeo.evaluation.protocols import Published, load_protocol
from progeo.evaluation.report import shown_queries
from progeo.evaluation.results import write_results, write_unlabeled_results
from progeo.evaluation.retrieved import Retrieved
from progeo.evaluation.search import distances_of
from progeo.evaluation.uploads import write_upload
from progeo.features.descriptors import descriptor_extractor, extract_descriptors
from progeo.features.extract import FeatureExtractor
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.features.store import ShardedRows
from progeo.models.classifier import MEANS, Classifier
from progeo.models.encoder import Encoder
from progeo.models.options import Preprocessing
from progeo.places.catalogue import Catalogue, read_catalogue
from progeo.places.nearby import parse_prior
from progeo.verification.matchers import build_matcher


@dataclass(frozen=True)
class Evaluation:
    """Results of one encoder."""

    recalls: Mapping[int, float]
    """Recall in percent, by N; empty without labels."""
    descriptor_dim: int
    search_ms: float
    """Duration of an exact search, and of re-ranking if it is wanted, in milliseconds per query."""
    retrieved: Retrieved
    """The predictions for the queries that can be read."""
    query_rows: np.ndarray
    """Rows of these queries in the query folder, int64 (Q,)."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates encoders on one folder; only the main process gets a result."""

    folder: Path
    """Folder that holds the database and the queries."""
    accelerator: Accelerator
    options: BenchmarkOptions
    images: ImageOptions
    work: WorkOptions
    cache: CacheOptions
    no_labels: bool = False
    """Positions of the queries are unknown: write predictions and a report, but no recalls."""

    @cached_property
    def benchmark(self) -> Benchmark:
        """The benchmark of the folder's database and queries.

        Raises:
            ValueError, FileNotFoundError: see `load_benchmark`.
        """
        return load_benchmark(self.folder, self.options, no_labels=self.no_labels)

    def by_images(
        self,
        encoder: Encoder | Path,
        *,
        name: str,
        out: Path,
        through: str | Cells | None = None,
        probes: int = 16,
        refine: int | None = None,
        ranking: RankingOptions = RankingOptions(),
    ) -> Evaluation | None:
        """Retrieve database images for the queries, and write recalls, predictions and a report.

        Args:
            encoder: the encoder, or a folder with another program's `database_descriptors.npy` and
                `queries_descriptors.npy`.
            name: name of the encoder in the results.
            through: the index to evaluate: the factory string of a compressed one, see `open_or_build_index`, or the
                classifier of an index of cells; None searches exactly.
            probes: number of inverted lists of an IVF index, or of cells, that a search visits.
            refine: number of best rows of a compressed index that are compared exactly, see `open_faiss_index`.
            ranking: whether to re-rank or to search near a rough position only, without an index.

        Raises:
            ValueError: the options contradict each other or the protocol, or images or descriptors cannot be used.
            FileNotFoundError: a folder or file does not exist.
        """
        benchmark = self.benchmark
        query_set = benchmark.query_set
        if self.no_labels and (ranking.near, ranking.heading) != (None, None):
            raise ValueError("`near` and `heading` need known positions: omit `no_labels` or them.")
        matching = None
        if ranking.rerank == "k_reciprocal":
            _check_rerank(benchmark, ranking.rerank_k1)
        elif ranking.rerank == "matching":
            matcher = build_matcher(ranking.rerank_matcher, device=self.accelerator.device)
            per_panorama = benchmark.panoramas is not None
            matching = Matching(matcher, ranking.rerank_top, self.images.orientation, per_panorama)
        sides = query_set.database, query_set.queries
        regions = build_regions(*sides, parse_prior(ranking.near), ranking.heading)
        labels = self._cells_of(benchmark, through) if isinstance(through, Cells) else None
        extraction: Mapping[str, str] = {}
        if isinstance(encoder, Path):
            database, queries = read_descriptors(encoder, query_set)
        else:
            of_database = descriptor_extractor(encoder, self.images, self.accelerator)
            database = self._extract(of_database, query_set.database)
            queries, of_queries = self._extract_queries(encoder, benchmark)
            extraction = _preprocessing({"database": of_database, "queries": of_queries})
        ranked_by = None
        if isinstance(through, Cells) and through.encoder is not None:
            images = replace(self.images, image_size=None)  # that of the other network
            ranked_by, _ = replace(self, images=images)._extract_queries(through.encoder, benchmark)
        if not self.accelerator.is_main_process:
            return None
        index_folder = out if isinstance(encoder, Path) else None  # write nothing into the folder of another program
        index: SearchedIndex | None = None
        if isinstance(through, Cells):
            assert labels is not None
            labels = np.delete(labels, database.missing)
            rows = None if ranked_by is None else _rows(ranked_by.without(queries.missing))
            index = open_cell_index(database, labels, through, rows, probes=probes, folder=index_folder)
        elif through is not None:
            index = open_faiss_index(database, through, probes=probes, refine=refine, folder=index_folder)
        benchmark, vectors = benchmark.without_queries(queries.missing), _rows(queries)
        regions = None if regions is None else regions.without_queries(queries.missing)
        found = predict_images(
            database, vectors, benchmark, index=index, ranking=ranking, matching=matching, regions=regions
        )
        return self._write(
            found,
            benchmark,
            out,
            facts={
                "encoder": name,
                "descriptor": f"{database.width} dimensions",
                "database": f"{len(query_set.database):,} images in {benchmark.options.database}",
                **_unreadable({"database images, never retrieved": database, "queries, skipped": queries}),
                **extraction,
            },
            dim=database.width,
            missing=queries.missing,
            find_missed=lambda results, shown: missed_images(
                results, shown, database, vectors, by_descriptors=found.by_descriptors
            ),
            distances=distances_of(found.rows, vectors, database.complete),
            regions=regions,
        )

    def by_classes(
        self, encoder: Encoder, classifier: Classifier, *, name: str, out: Path, ranking: RankingOptions
    ) -> Evaluation | None:
        """Rank the classes of a classifier for the queries, and write localization recalls, predictions and a report.

        Args:
            classifier: classifier of this encoder.
            name: name of the encoder in the results.
            ranking: how classes are ranked.

        Raises:
            ValueError, FileNotFoundError: see `by_images`.
        """
        benchmark = load_benchmark(self.folder, self.options, no_labels=self.no_labels, classes=classifier.catalogue)
        queries, of_queries = self._extract_queries(encoder, benchmark)
        if not self.accelerator.is_main_process:
            return None
        benchmark = benchmark.without_queries(queries.missing)
        vectors = _rows(queries)
        found = predict_classes(classifier, vectors, benchmark, ranking)
        assert found.classes is not None
        classes = found.classes
        kind = "class means" if classifier.kind == MEANS else f"vectors of the {classifier.kind} head"
        dim = classifier.weight.shape[1]
        return self._write(
            found,
            benchmark,
            out,
            facts={
                "encoder": name,
                "descriptor": f"{dim} dimensions",
                "database": f"{len(classifier):,} classes, {kind}, cells of {classifier.cell_side_m} m",
                **_unreadable({"queries, skipped": queries}),
                **({} if self.no_labels else _in_classes(benchmark.query_set.queries, classifier)),
                **_preprocessing({"queries": of_queries}),
            },
            dim=dim,
            missing=queries.missing,
            find_missed=lambda results, shown: missed_classes(
                results, shown, classes, vectors, by_descriptors=found.by_descriptors
            ),
        )

    def _cells_of(self, benchmark: Benchmark, cells: Cells) -> np.ndarray:
        """Assign each database image to a class, see `cells_of_database`; refuse a classifier of other places."""
        database = benchmark.query_set.database
        if self.no_labels:  # which ignores the positions
            database = read_catalogue(self.folder / benchmark.options.database, positions="optional")
        if not lie_in_classes(database, cells.classifier).any():
            raise ValueError(
                f"No image in {database.folder} lies in a cell of the `classifier`: take a classifier of the same "
                f"places."
            )
        return cells_of_database(database, cells)

    def _extract(self, extractor: FeatureExtractor, catalogue: Catalogue) -> ShardedRows:
        return extract_descriptors(extractor, catalogue, self.accelerator, work=self.work, cache=self.cache)

    def _extract_queries(self, encoder: Encoder, benchmark: Benchmark) -> tuple[ShardedRows, FeatureExtractor]:
        preprocessing = benchmark.options.query_preprocessing
        extractor = descriptor_extractor(encoder, self.images, self.accelerator, preprocessing=preprocessing)
        return self._extract(extractor, benchmark.query_set.queries), extractor

    def _write(
        self,
        found: Predictions,
        benchmark: Benchmark,
        out: Path,
        *,
        facts: Mapping[str, str],
        dim: int,
        missing: np.ndarray,
        find_missed: Callable[[Retrieved, np.ndarray], Missed],
        distances: np.ndarray | None = None,
        regions: Regions | None = None,
    ) -> Evaluation:
        """Judge the predictions for the queries that can be read, all but those at `missing`, and write the results.

        Args:
            find_missed: finds the best correct candidates of queries at some rows.
            distances: descriptor distances of the predictions; None for classes.
            regions: the images that each query was searched among; None for all.
        """
        options, query_set = benchmark.options, benchmark.query_set
        positives = positives_by_criterion(
            query_set, options.positive_radius_m, options.radii_m or (), angle_deg=options.positive_angle_deg
        )
        results = Retrieved(
            query_set.database,
            query_set.queries,
            found.rows,
            positives,
            benchmark.conditions,
            distances,
            query_set.great_circle,
            found.classes,
            benchmark.panoramas,
            found.pairs,
            regions=regions,
            orientation=self.images.orientation,
        )
        facts = {
            **{name: facts[name] for name in ("encoder", "descriptor")},
            "folder": str(self.folder),
            "protocol": options.protocol or "none",
            "database": facts["database"],
            "queries": f"{len(query_set.queries):,} images in {options.queries}",
            **({"distances": "along great circles"} if query_set.great_circle else {}),
            **facts,
            **({} if found.classes is not None else _copies(results)),
            **({} if regions is None else regions.facts()),
            **found.facts,
        }
        recalls: Mapping[int, float] = {}
        if self.no_labels:
            write_unlabeled_results(
                results, facts, out, spreadsheet_safe=options.spreadsheet_safe, show_paths=options.show_paths
            )
        else:
            is_missed = options.without_positive == "missed"
            recalls = write_results(
                results,
                facts,
                out,
                ns=options.recall_ns,
                without_positive_missed=is_missed,
                missed=find_missed(results, shown_queries(results)),
                published=_published(options, results),
                spreadsheet_safe=options.spreadsheet_safe,
                show_paths=options.show_paths,
            )
        protocol = None if options.protocol is None else load_protocol(options.protocol)
        if protocol is not None and protocol.upload:
            write_upload(results, out, protocol.name, num_queries=protocol.num_queries)
        query_rows = np.delete(np.arange(len(query_set.queries) + len(missing)), missing)
        return Evaluation(recalls, dim, found.exact_ms, results, query_rows)


def _check_rerank(benchmark: Benchmark, k1: int) -> None:
    """Check that the images of a benchmark can be re-ranked.

    Raises:
        ValueError: queries have several descriptors, or all images would be neighbors.
    """
    preprocessing = benchmark.options.query_preprocessing
    if preprocessing not in get_args(Preprocessing):
        raise ValueError(
            f"`rerank` needs one descriptor of each query, and `query_preprocessing` {preprocessing} searches for five "
            f"crops: omit one of them."
        )
    num_images = len(benchmark.query_set.queries) + len(benchmark.query_set.database)
    if k1 >= num_images:
        raise ValueError(
            f"`rerank_k1` must be below {num_images}, the number of queries and database images; got {k1}."
        )


def _published(options: BenchmarkOptions, results: Retrieved) -> tuple[Published, ...]:
    """Return the published recalls that results are comparable with: of all images of a protocol."""
    if options.protocol is None or results.classes is not None or results.regions is not None:
        return ()
    return load_protocol(options.protocol).published


def _rows(descriptors: ShardedRows) -> np.ndarray:
    return np.concatenate(list(descriptors.parts()))


def _preprocessing(extractors: Mapping[str, FeatureExtractor]) -> dict[str, str]:
    """Return facts for the report about how the descriptors of `database` and `queries` were extracted."""
    last = list(extractors.values())[-1]
    facts = {"image size": "{} x {} pixels".format(*last.image_size)}
    facts |= {f"{side} preprocessing": extractor.preprocessing for side, extractor in extractors.items()}
    if last.orientation == "ignore":
        facts["orientation"] = "as stored, EXIF orientation ignored"
    if last.fast_decode:
        facts["decoding"] = "JPEG files at a reduced size"
    return facts


def _unreadable(sides: Mapping[str, ShardedRows]) -> dict[str, str]:
    """Return a fact for the report if images cannot be read."""
    texts = [f"{len(rows.missing):,} of {rows.num_rows:,} {what}" for what, rows in sides.items() if len(rows.missing)]
    return {"unreadable": "; ".join(texts)} if texts else {}


def _in_classes(queries: Catalogue, classifier: Classifier) -> dict[str, str]:
    """Return a fact about the queries that classification can place, and log a warning if there is none."""
    count = int(lie_in_classes(queries, classifier).sum())
    if not count:
        LOGGER.warning(
            "no query lies in the cell of a class, so classification can at best name a cell near by: evaluate photos "
            "of trained places, such as `progeo dataset split` holds out, or retrieve images"
        )
    return {"queries in the cell of a class": f"{count:,} of {len(queries):,}"}


def _copies(results: Retrieved) -> dict[str, str]:
    """Return a fact and log a warning if queries are database images, whose recall says little about new photos."""
    count = int(find_copies(results.queries, results.database, results.predictions[:, :1]).sum())
    if not count:
        return {}
    text = f"{count:,} of {len(results.queries):,} queries are images of the database and retrieve themselves"
    LOGGER.warning("%s: these recalls say little about new photos", text)
    return {"queries in the database": text}
