"""Compare several encoders on the same query set and the same machine, in one table."""

import re
from pathlib import Path

from torch import nn

from progeo.commands.evaluate import load_encoder_or_descriptors
from progeo.config.evaluation import CompareSettings
from progeo.config.options import options_of
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.comparison import Compared, write_comparison
from progeo.evaluation.evaluate import evaluate_encoder
from progeo.evaluation.options import BenchmarkOptions
from progeo.features.descriptors import descriptor_extractor, images_per_second
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions
from progeo.places.catalogue import read_catalogue

_NOT_IN_A_NAME = re.compile(r"[^\w.-]+")


def compare(settings: CompareSettings) -> Path:
    """Evaluate several encoders and write compare.md, compare.csv and compare.json; returns their folder.

    Raises:
        ValueError: no encoder is given, or one is given twice.
    """
    if not settings.encoders or len(set(settings.encoders)) < len(settings.encoders):
        raise ValueError(f"Name the encoders to compare, each once; got {', '.join(settings.encoders) or 'none'}.")
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    encoders = {name: load_encoder_or_descriptors(name) for name in settings.encoders}  # report wrong names at once
    images, work = options_of(ImageOptions, settings), options_of(WorkOptions, settings)
    table = []
    for number, (name, encoder) in enumerate(encoders.items(), start=1):
        out = settings.out / f"{number}_{_NOT_IN_A_NAME.sub('_', name)}"
        LOGGER.info("%s, in %s", name, out)
        evaluation = evaluate_encoder(
            encoder,
            settings.folder,
            name=name,
            out=out,
            accelerator=accelerator,
            options=options_of(BenchmarkOptions, settings),
            images=images,
            work=work,
            cache=options_of(CacheOptions, settings),
        )
        if evaluation is not None:
            speed = None
            if isinstance(encoder, nn.Module):
                database = read_catalogue(settings.folder / settings.database)
                extractor = descriptor_extractor(encoder, images, accelerator)
                speed = images_per_second(extractor, database, work.batch_size)
            recalls = dict(evaluation.recalls)
            table.append(Compared(name, evaluation.descriptor_dim, speed, evaluation.search_ms, recalls))
        if isinstance(encoder, nn.Module):
            encoder.cpu()  # so that the device holds one encoder at a time
    if accelerator.is_main_process:
        write_comparison(settings.out, table)
    return settings.out
