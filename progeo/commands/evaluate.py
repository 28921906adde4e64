"""Evaluate an encoder: retrieve database images for queries and measure recall."""

from pathlib import Path

from torch import nn

from progeo.config.evaluation import EvaluateSettings
from progeo.config.options import options_of
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import start_log
from progeo.evaluation.evaluate import evaluate_encoder
from progeo.evaluation.options import BenchmarkOptions
from progeo.export.weights import load_encoder
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions


def evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate an encoder and write recalls, predictions and a report; returns their folder."""
    start_log(None)
    accelerator = start_accelerator(settings.mixed_precision)
    evaluate_encoder(
        load_encoder_or_descriptors(settings.encoder),
        settings.folder,
        name=settings.encoder,
        out=settings.out,
        accelerator=accelerator,
        options=options_of(BenchmarkOptions, settings),
        images=options_of(ImageOptions, settings),
        work=options_of(WorkOptions, settings),
        cache=options_of(CacheOptions, settings),
        faiss=settings.index,
        probes=settings.probes,
        no_labels=settings.no_labels,
    )
    return settings.out


def load_encoder_or_descriptors(name: str) -> nn.Module | Path:
    """Load the encoder of this name, or return the folder of this name if it holds another program's descriptors."""
    folder = Path(name)
    return folder if (folder / "database_descriptors.npy").is_file() else load_encoder(name)
