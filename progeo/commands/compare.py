"""Compare several encoders on the same query set and the same machine, in one table."""

from pathlib import Path
from typing import TYPE_CHECKING

from progeo.engine.options import Precision
from progeo.evaluation.options import BenchmarkOptions, RankingOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions

if TYPE_CHECKING:
    from progeo.evaluation.comparison import Comparison


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
    import re

    from progeo.commands.evaluate import check_fit, load_encoder_or_descriptors
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.log import LOGGER
    from progeo.evaluation.comparison import Compared, write_comparison
    from progeo.evaluation.evaluate import Evaluator
    from progeo.export.classifier import load_encoder_and_classifier
    from progeo.features.descriptors import descriptor_extractor, images_per_second
    from progeo.places.catalogue import read_catalogue

    if not encoders or len(set(encoders)) < len(encoders):
        raise ValueError(f"Name the encoders to compare, each once; got {', '.join(encoders) or 'none'}.")
    check_fit(ranking)
    by_classes = ranking.by == "classes"
    accelerator = start_accelerator(mixed_precision)
    evaluator = Evaluator(folder, accelerator, benchmark, images, work, cache)
    with accelerator.local_main_process_first():  # which downloads; all encoders at once, to report wrong names
        loaded = {
            name: load_encoder_and_classifier(name)
            if by_classes
            else (load_encoder_or_descriptors(name, trust=trust), None)
            for name in encoders
        }
    table = []
    for number, (name, (encoder, classifier)) in enumerate(loaded.items(), start=1):
        part = out / "_".join((str(number), re.sub(r"[^\w.-]+", "_", name)))
        LOGGER.info("%s, in %s", name, part)
        if classifier is None:
            evaluation = evaluator.by_images(encoder, name=name, out=part)
        else:
            evaluation = evaluator.by_classes(encoder, classifier, name=name, out=part, raw_scores=ranking.raw_scores)
        speed = None
        if not isinstance(encoder, Path):
            timed = read_catalogue(folder / (benchmark.queries if by_classes else benchmark.database))
            speed = images_per_second(descriptor_extractor(encoder, images, accelerator), timed, work.batch_size)
            encoder.cpu()  # so that the device holds one encoder at a time
        if evaluation is not None:
            recalls = dict(evaluation.recalls)
            table.append(Compared(name, evaluation.descriptor_dim, speed, evaluation.search_ms, recalls))
    return write_comparison(out, table, measure="LR" if by_classes else "R") if accelerator.is_main_process else None
