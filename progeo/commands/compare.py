"""Compare several encoders on the same query set and the same machine, in one table."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.engine.options import Precision
from progeo.evaluation.options import BenchmarkOptions, RankingOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions

if TYPE_CHECKING:
    from progeo.evaluation.comparison import Compared, Comparison
    from progeo.evaluation.evaluate import Evaluator
    from progeo.models.classifier import Classifier


def compare(
    encoders: tuple[str, ...],
    *,
    folder: Path,
    out: Path,
    benchmark: BenchmarkOptions = BenchmarkOptions(),
    ranking: RankingOptions = RankingOptions(),
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    trust: bool = False,
    mixed_precision: Precision = "no",
) -> "Comparison | None":
    """Evaluate several encoders and write compare.md, compare.csv and compare.json.

    Args:
        encoders: Encoders to compare, each in the form that `progeo evaluate` takes. The results of each go to a
            subfolder of out.
        folder: Folder that holds the database and the queries.
        out: Output folder for the results.
        benchmark: The benchmark.
        ranking: What queries are compared with.
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        trust: Run the code of the repositories that hub: names. It can do on this machine whatever you can.
        mixed_precision: Precision of the encoders.

    Raises:
        ValueError: no encoder is given, or one is given twice.
    """
    from progeo.commands.evaluate import check_fit, load_encoder_or_descriptors
    from progeo.engine.accelerator import start_accelerator
    from progeo.evaluation.comparison import write_comparison
    from progeo.evaluation.evaluate import Evaluator
    from progeo.export.classifier import load_encoder_and_classifier

    if not encoders or len(set(encoders)) < len(encoders):
        raise ValueError(f"Name the encoders to compare, each once; got {', '.join(encoders) or 'none'}.")
    check_fit(ranking)
    accelerator = start_accelerator(mixed_precision)
    evaluator = Evaluator(folder, accelerator, benchmark, images, work, cache)
    loaded: dict[str, tuple[Any, Classifier | None]]
    with accelerator.local_main_process_first():  # which downloads; all encoders at once, to report wrong names
        if ranking.by == "classes":
            loaded = {name: load_encoder_and_classifier(name) for name in encoders}
        else:
            loaded = {name: (load_encoder_or_descriptors(name, trust=trust), None) for name in encoders}
    table = []
    for number, (name, (encoder, classifier)) in enumerate(loaded.items(), start=1):
        part = out / "_".join((str(number), re.sub(r"[^\w.-]+", "_", name)))
        table.append(_compared(evaluator, encoder, classifier, name=name, out=part, ranking=ranking))
    if not accelerator.is_main_process:
        return None
    rows = [row for row in table if row is not None]
    return write_comparison(out, rows, spreadsheet_safe=benchmark.spreadsheet_safe)


def _compared(
    evaluator: "Evaluator",
    encoder: Any,
    classifier: "Classifier | None",
    *,
    name: str,
    out: Path,
    ranking: RankingOptions,
) -> "Compared | None":
    """Evaluate an encoder by the images of the database or, with a classifier, by classes, and measure its speed."""
    from progeo.engine.log import LOGGER
    from progeo.evaluation.benchmark import with_protocol
    from progeo.evaluation.comparison import Compared
    from progeo.features.descriptors import descriptor_extractor, images_per_second
    from progeo.places.catalogue import read_catalogue

    LOGGER.info("%s, in %s", name, out)
    if classifier is None:
        evaluation = evaluator.by_images(encoder, name=name, out=out, ranking=ranking)
    else:
        evaluation = evaluator.by_classes(encoder, classifier, name=name, out=out, ranking=ranking)
    speed = None
    if not isinstance(encoder, Path):
        options = with_protocol(evaluator.options)
        timed = read_catalogue(evaluator.folder / (options.database if classifier is None else options.queries))
        extractor = descriptor_extractor(encoder, evaluator.images, evaluator.accelerator)
        speed = images_per_second(extractor, timed, evaluator.work.batch_size)
        encoder.cpu()  # so that the device holds one encoder at a time
    if evaluation is None:
        return None
    dim, recalls = evaluation.descriptor_dim, dict(evaluation.recalls)
    shown = name if ranking.rerank is None else f"{name}, re-ranked"
    return Compared(shown, dim, speed, evaluation.search_ms, recalls, evaluation.measure)
