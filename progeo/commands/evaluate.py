"""Evaluate an encoder: retrieve database images for queries and measure recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from progeo.engine.options import Precision
from progeo.evaluation.options import CELLS, RERANK_OPTIONS, BenchmarkOptions, RankingOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions

if TYPE_CHECKING:
    from progeo.evaluation.evaluate import Evaluation, Evaluator


@dataclass(frozen=True)
class Results:
    """Results of an evaluation."""

    recalls: dict[str, float]
    """Recall in percent by measure, such as R@1; empty without labels."""
    out: Path
    """Folder of the result files."""

    def __str__(self) -> str:
        return "".join(f"{name} {recall:.1f}  " for name, recall in self.recalls.items()) + str(self.out)


def evaluate(
    encoder: str,
    *,
    folder: Path,
    out: Path,
    benchmark: BenchmarkOptions = BenchmarkOptions(),
    ranking: RankingOptions = RankingOptions(),
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    faiss: str | None = None,
    probes: PositiveInt = 16,
    refine: NonNegativeInt | None = None,
    classifier: str | None = None,
    no_labels: bool = False,
    trust: bool = False,
    mixed_precision: Precision = "no",
) -> "Results | None":
    """Evaluate an encoder and write recalls, predictions and a report.

    Args:
        encoder: Encoder to evaluate: the folder of a run or of an encoder; FAMILY:ARCHITECTURE:WEIGHTS for
            a backbone of open_clip, torchvision or timm; thumbnail; onnx:FILE for a file of progeo export;
            hub:OWNER/REPO[:BRANCH]:ENTRY?name=value&... or hub:FOLDER:ENTRY?name=value&... for a network of torch.hub,
            with trust; or a folder with database_descriptors.npy and queries_descriptors.npy of another program, rows
            in the order of the sorted paths. A hub network gets images of 320 x 320 pixels, or of its option
            image_size=322 or image_size=240x320 (height, width), normalized with the mean and std of ImageNet.
        folder: Folder that holds the database and the queries.
        out: Output folder for the results.
        benchmark: The benchmark.
        ranking: What queries are compared with.
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        faiss: faiss factory string of a compressed index to evaluate, such as IVF1024,RaBitQ, IVF1024,Flat,
            OPQ32,IVF1024,PQ32, HNSW32, SQ8 or PCA128,Flat. The report then also gives the recall lost and the memory
            saved. cells searches only the images of the places that the classifier ranks first. null searches exactly.
        probes: Number of inverted lists that a search visits (faiss nprobe), or of cells. Only an IVF index and cells
            use it.
        refine: Number of best rows of a search that are compared exactly with their descriptors; at least as many as
            predictions are. 0 takes the distances of the index. null takes 200 for a kind that stores codes, 0 for one
            that stores descriptors as they are. Only used by faiss strings.
        classifier: Encoder whose classifier chooses the cells, such as a folder that progeo classes wrote; it may be
            another network. null takes the classifier of the encoder.
        no_labels: Evaluate queries without known positions. Writes a report and the predictions, but no recalls; any
            file names are accepted. With the protocol msls_challenge also the file for its evaluator.
        trust: Run the code of the repository that hub: names. It can do on this machine whatever you can.
        mixed_precision: Precision of the encoder.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.environment import write_origin
    from progeo.evaluation.evaluate import Evaluator
    from progeo.export.classifier import load_encoder_and_classifier
    from progeo.localization.cells import load_cells

    check_fit(ranking, faiss, classifier)
    if refine is not None and faiss in (None, CELLS):
        raise ValueError(
            f"`refine` is for a compressed index, got `faiss` {faiss}: set it to IVF1024,RaBitQ, or omit `refine`."
        )
    accelerator = start_accelerator(mixed_precision)
    evaluator = Evaluator(folder, accelerator, benchmark, images, work, cache, no_labels)
    evaluation: Evaluation | None
    if ranking.by == "classes":
        with accelerator.local_main_process_first():  # which downloads
            loaded, own = load_encoder_and_classifier(encoder)
        evaluation = evaluator.by_classes(loaded, own, name=encoder, out=out, ranking=ranking)
    else:
        with accelerator.local_main_process_first():
            loaded = load_encoder_or_descriptors(encoder, trust=trust)
            searched = None if isinstance(loaded, Path) else loaded
            if faiss == CELLS and searched is None and classifier is None:
                raise ValueError(f"{encoder} holds descriptors without a classifier: name one with `classifier`.")
            through = load_cells(classifier or encoder, searched) if faiss == CELLS else faiss
        evaluation = evaluator.by_images(
            loaded, name=encoder, out=out, through=through, probes=probes, refine=refine, ranking=ranking
        )
    if evaluation is None:
        return None
    write_origin(out, "evaluate", fingerprints_of([encoder], [evaluator], ranking))
    return Results({f"{evaluation.retrieved.measure}@{n}": recall for n, recall in evaluation.recalls.items()}, out)


def fingerprints_of(
    encoders: Sequence[str], evaluators: "Sequence[Evaluator]", ranking: RankingOptions
) -> dict[str, dict[str, Any]]:
    """Return the fingerprints of the weights of encoders in folders, and of the images that they were evaluated on."""
    from progeo.data.fingerprints import data_fingerprints, file_fingerprint
    from progeo.evaluation.benchmark import with_protocol
    from progeo.export.encoder_folders import WEIGHTS, encoder_folder, holds_encoder
    from progeo.places.catalogue import read_catalogue

    found: dict[str, dict[str, Any]] = {}
    for folder in (Path(name) for name in encoders if holds_encoder(Path(name))):
        weights = encoder_folder(folder) / WEIGHTS
        found[str(weights)] = file_fingerprint(weights)
    for each in evaluators:
        options = with_protocol(each.options)
        database, queries = each.folder / options.database, each.folder / options.queries
        if ranking.by == "classes":
            found[str(queries)] = data_fingerprints(read_catalogue(queries, positions="optional"))
        else:
            query_set = each.benchmark.query_set
            found[str(database)] = data_fingerprints(query_set.database)
            found[str(queries)] = data_fingerprints(query_set.queries)
    return found


def check_fit(ranking: RankingOptions, faiss: str | None = None, classifier: str | None = None) -> None:
    """Refuse options that would have no effect together."""
    if ranking.raw_scores and ranking.by != "classes":
        raise ValueError("`raw_scores` are those of classes: set `by` to classes.")
    if ranking.temperature is not None and ranking.by != "classes":
        raise ValueError("`temperature` is that of the probabilities of classes: set `by` to classes.")
    if faiss is not None and ranking.by == "classes":
        raise ValueError(f"`faiss` {faiss} searches database images, which `by` classes has none of: omit one of them.")
    if ranking.rerank is not None and ranking.by == "classes":
        raise ValueError("`rerank` re-ranks database images, which `by` classes has none of: omit one of them.")
    if ranking.rerank is not None and faiss is not None:
        raise ValueError(f"`rerank` searches exactly, and `faiss` {faiss} does not: omit one of them.")
    for kind, names in RERANK_OPTIONS.items():
        for name in names:
            if ranking.rerank != kind and getattr(ranking, name) != getattr(RankingOptions, name):
                raise ValueError(f"`{name}` is for re-ranking: set `rerank` to {kind}, or omit it.")
    _check_prior(ranking, faiss)
    if classifier is not None and faiss != CELLS:
        raise ValueError(f"`classifier` chooses the cells of an index: set `faiss` to {CELLS}, or omit it.")


def _check_prior(ranking: RankingOptions, faiss: str | None) -> None:
    """Refuse a rough position or heading that cannot be read, or that would not be searched by."""
    from progeo.places.nearby import parse_prior

    parse_prior(ranking.near)
    if ranking.heading is not None and ranking.heading > 180:
        raise ValueError(
            f"`heading` must be degrees above 0 and at most 180, got {ranking.heading:g}. Use for example 45."
        )
    name = "near" if ranking.near is not None else "heading" if ranking.heading is not None else ""
    if name and ranking.by == "classes":
        raise ValueError(f"`{name}` restricts database images, which `by` classes has none of: omit one of them.")
    if name and faiss is not None:
        raise ValueError(f"`{name}` searches exactly, and `faiss` {faiss} does not: omit one of them.")
    if name and ranking.rerank == "k_reciprocal":
        raise ValueError(f"`{name}` searches parts of the database, and `rerank` k_reciprocal all: omit one of them.")


def load_encoder_or_descriptors(name: str, *, trust: bool = False) -> Any:
    """Load the encoder of this name, or return the folder of this name if it holds another program's descriptors."""
    from progeo.export.weights import load_encoder

    folder = Path(name)
    return folder if (folder / "database_descriptors.npy").is_file() else load_encoder(name, trust=trust)
