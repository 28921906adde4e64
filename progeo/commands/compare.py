"""Compare several encoders on the same query set and the same machine, in one table."""

from pathlib import Path
from typing import TYPE_CHECKING

from progeo.engine.options import Precision
from progeo.evaluation.options import BenchmarkOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions

if TYPE_CHECKING:
    from progeo.evaluation.comparison import Comparison


def compare(
    encoders: tuple[str, ...],
    *,
    folder: Path,
    out: Path,
    benchmark: BenchmarkOptions = BenchmarkOptions(),
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
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        trust: Run the code of the repositories that hub: names. It can do on this machine whatever you can.
        mixed_precision: Precision of the encoders.

    Raises:
        ValueError: no encoder is given, or one is given twice.
    """
    import re

    from progeo.commands.evaluate import load_encoder_or_descriptors
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.log import LOGGER
    from progeo.evaluation.comparison import Compared, write_comparison
    from progeo.evaluation.evaluate import evaluate_encoder
    from progeo.features.descriptors import descriptor_extractor, images_per_second
    from progeo.places.catalogue import read_catalogue

    if not encoders or len(set(encoders)) < len(encoders):
        raise ValueError(f"Name the encoders to compare, each once; got {', '.join(encoders) or 'none'}.")
    accelerator = start_accelerator(mixed_precision)
    with accelerator.local_main_process_first():  # which downloads; all encoders at once, to report wrong names
        loaded = {name: load_encoder_or_descriptors(name, trust=trust) for name in encoders}
    table = []
    for number, (name, encoder) in enumerate(loaded.items(), start=1):
        part = out / "_".join((str(number), re.sub(r"[^\w.-]+", "_", name)))
        LOGGER.info("%s, in %s", name, part)
        evaluation = evaluate_encoder(
            encoder,
            folder,
            name=name,
            out=part,
            accelerator=accelerator,
            options=benchmark,
            images=images,
            work=work,
            cache=cache,
        )
        speed = None
        if not isinstance(encoder, Path):
            database = read_catalogue(folder / benchmark.database)
            speed = images_per_second(descriptor_extractor(encoder, images, accelerator), database, work.batch_size)
            encoder.cpu()  # so that the device holds one encoder at a time
        if evaluation is not None:
            recalls = dict(evaluation.recalls)
            table.append(Compared(name, evaluation.descriptor_dim, speed, evaluation.search_ms, recalls))
    return write_comparison(out, table) if accelerator.is_main_process else None
