"""Compare several encoders on the same query set and the same machine, in one table."""

import csv
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from accelerate import Accelerator

from progeo.commands.evaluate import evaluate_source
from progeo.commands.query_set_features import load_descriptor_source
from progeo.config.evaluation import BenchmarkSettings, CompareSettings, EvaluateSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.features.descriptors import descriptor_extractor, images_per_second
from progeo.files import replacing, write_json
from progeo.models.encoder import Encoder
from progeo.places.catalogue import read_catalogue

_NOT_IN_A_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Compared:
    """Results of one encoder, a row of the table."""

    encoder: str
    descriptor_dim: int
    images_per_second: float | None
    """Extraction speed of the network on decoded images; None for descriptors of another program."""
    search_ms: float
    """Duration of an exact search in milliseconds per query."""
    recalls: dict[int, float]
    """Recall in percent, by N."""


def compare(settings: CompareSettings) -> Path:
    """Evaluate several encoders and write compare.md, compare.csv and compare.json; returns their folder.

    Raises:
        ValueError: no encoder is given, or one is given twice.
    """
    if not settings.encoders or len(set(settings.encoders)) < len(settings.encoders):
        raise ValueError(f"Name the encoders to compare, each once; got {', '.join(settings.encoders) or 'none'}.")
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    sources = {name: load_descriptor_source(name) for name in settings.encoders}  # report a wrong name before any work
    common = {field.name: getattr(settings, field.name) for field in fields(BenchmarkSettings)}
    table = []
    for place, (name, source) in enumerate(sources.items(), start=1):
        out = settings.out / f"{place}_{_NOT_IN_A_NAME.sub('_', name)}"
        LOGGER.info("%s, in %s", name, out)
        evaluation = evaluate_source(source, EvaluateSettings(**{**common, "out": out}, encoder=name), accelerator)
        if evaluation is not None:
            speed = None if isinstance(source, Path) else _images_per_second(source, settings, accelerator)
            dim, recalls = evaluation.descriptor_dim, dict(evaluation.recalls)
            table.append(Compared(name, dim, speed, evaluation.search_ms, recalls))
        if not isinstance(source, Path):
            source.cpu()  # so that the device holds one encoder at a time
    if accelerator.is_main_process:
        _write(settings.out, table)
    return settings.out


def _images_per_second(encoder: Encoder, settings: CompareSettings, accelerator: Accelerator) -> float | None:
    extractor = descriptor_extractor(
        encoder,
        settings.database_preprocessing,
        settings.image_size,
        accelerator,
        orientation=settings.orientation,
    )
    return images_per_second(extractor, read_catalogue(settings.folder / settings.database), settings.batch_size)


def _write(out: Path, table: list[Compared]) -> None:
    """Write the table as JSON, CSV and Markdown, and log it."""
    recalls = [f"R@{n}" for n in table[0].recalls]
    rows = [["encoder", "dimensions", "images/s", "search, ms a query", *recalls]]
    for line in table:
        speed = "" if line.images_per_second is None else f"{line.images_per_second:.1f}"
        percents = [f"{recall:.1f}" for recall in line.recalls.values()]
        rows.append([line.encoder, str(line.descriptor_dim), speed, f"{line.search_ms:.2f}", *percents])
    write_json(out / "compare.json", [asdict(line) for line in table])
    with replacing(out / "compare.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    rules = ["---"] + ["---:"] * (len(rows[0]) - 1)
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in (rows[0], rules, *rows[1:]))
    with replacing(out / "compare.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    for shown in text.splitlines():
        LOGGER.info(shown)
    LOGGER.info("table: %s", out / "compare.md")
