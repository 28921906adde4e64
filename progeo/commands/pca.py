"""Reduce the dimension of an encoder's descriptors with a PCA fitted to a sample of images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from progeo.config.evaluation import ReduceSettings
from progeo.engine.accelerator import start_accelerator
from progeo.engine.log import LOGGER, start_log
from progeo.evaluation.pca import fit_pca
from progeo.export.weights import encoder_folder, holds_encoder, load_encoder, read_encoder_metadata, save_encoder
from progeo.features.descriptors import described, descriptor_extractor
from progeo.models.encoder import projected
from progeo.places.catalogue import read_catalogue


def fit_encoder_pca(settings: ReduceSettings) -> Path:
    """Fit a PCA to descriptors of images and write the encoder with the PCA appended; returns its folder.

    Raises:
        ValueError: the encoder has no weights, has a PCA already, or `dim` is too large.
    """
    start_log(None)
    if (settings.to / "model.json").exists():
        raise ValueError(f"{settings.to} already holds an encoder: name another folder with --to.")
    accelerator = start_accelerator(settings.mixed_precision)
    encoder = load_encoder(settings.encoder)
    if not encoder.has_weights:
        raise ValueError(f"Only an encoder with weights of its own can be reduced, {settings.encoder} has none.")
    catalogue = read_catalogue(settings.folder, positions="ignored")
    rows = np.unique(np.linspace(0, len(catalogue) - 1, min(len(catalogue), settings.sample)).astype(np.int64))
    extractor = descriptor_extractor(
        encoder,
        settings.database_preprocessing,
        settings.image_size,
        accelerator,
        orientation=settings.orientation,
    )
    descriptors = described(extractor, catalogue.take(rows), settings, accelerator)
    if accelerator.is_main_process:
        sample = np.concatenate([part.astype(np.float32) for part in descriptors.parts()])
        reduction = fit_pca(sample, settings.dim, whiten=settings.whiten)
        smaller = projected(encoder.cpu(), torch.from_numpy(reduction.weight), torch.from_numpy(reduction.bias))
        made = {"dim": settings.dim, "whiten": settings.whiten, "folder": str(settings.folder), "images": len(sample)}
        provenance = {**_provenance(Path(settings.encoder)), "encoder": settings.encoder, "reduced": made}
        save_encoder(settings.to, smaller, provenance=provenance, recalls={})  # known recalls are for all dimensions
        LOGGER.info(
            "%d of %d dimensions hold %.1f %% of the variance of %d images; encoder in %s",
            settings.dim,
            encoder.descriptor_dim,
            100 * reduction.kept,
            len(sample),
            settings.to,
        )
    return settings.to


def _provenance(source: Path) -> dict[str, Any]:
    """Return the provenance of the encoder in a folder; empty for an encoder given by name."""
    return read_encoder_metadata(encoder_folder(source))["provenance"] if holds_encoder(source) else {}
