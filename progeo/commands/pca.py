"""Reduce the dimension of an encoder's descriptors with a PCA fitted to a sample of images."""

from pathlib import Path

from jsonargparse.typing import PositiveInt

from progeo.engine.options import Precision
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions


def pca(
    encoder: str,
    *,
    folder: Path,
    out: Path,
    dim: PositiveInt,
    images: ImageOptions,
    work: WorkOptions,
    cache: CacheOptions,
    whiten: bool = False,
    sample: PositiveInt = 20_000,
    mixed_precision: Precision = "no",
) -> Path:
    """Fit a PCA to descriptors of images and write the encoder with the PCA appended; returns its folder.

    Args:
        encoder: Folder of a run, or of an encoder.
        folder: Folder of images whose descriptors the PCA is fitted to, such as the training images.
        out: Output folder for the encoder with the PCA appended.
        dim: Number of descriptor dimensions to keep.
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        whiten: Whiten the descriptors: scale every dimension to the same variance.
        sample: Number of images to fit the PCA to, evenly sampled from folder. All images are used if there are fewer.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: the encoder has no weights, has a PCA already, or `dim` is too large.
    """
    import numpy as np
    import torch

    from progeo.atomic import refuse_held, written_together
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.log import LOGGER
    from progeo.evaluation.pca import fit_pca
    from progeo.export.classifier import holds_classifier
    from progeo.export.encoder_folders import METADATA, WEIGHTS
    from progeo.export.weights import load_encoder, provenance_of, save_encoder
    from progeo.features.descriptors import descriptor_extractor, extract_descriptors
    from progeo.models.encoder import check_not_projected, projected
    from progeo.places.catalogue import read_catalogue

    refuse_held(out, (METADATA, WEIGHTS))
    accelerator = start_accelerator(mixed_precision)
    full = load_encoder(encoder)
    if not full.has_weights:
        raise ValueError(f"PCA needs an encoder that can be saved, {encoder} cannot.")
    check_not_projected(full.spec)
    catalogue = read_catalogue(folder, positions="ignored")
    rows = np.unique(np.linspace(0, len(catalogue) - 1, min(len(catalogue), sample)).astype(np.int64))
    if dim > full.descriptor_dim:
        raise ValueError(f"`dim` must be at most {full.descriptor_dim}, the dimensions of the encoder, got {dim}.")
    extractor = descriptor_extractor(full, images, accelerator)
    descriptors = extract_descriptors(extractor, catalogue.take(rows), accelerator, work=work, cache=cache)
    if accelerator.is_main_process:
        values = np.concatenate([part.astype(np.float32) for part in descriptors.parts()])
        fitted = fit_pca(values, dim, whiten=whiten)
        smaller = projected(full.cpu(), torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
        reduced = {"dim": dim, "whiten": whiten, "folder": str(folder), "images": len(values)}
        provenance = {**provenance_of(encoder), "encoder": encoder, "reduced": reduced}
        with written_together(out.resolve()) as made:
            save_encoder(made, smaller, provenance=provenance, recalls={})  # known recalls are for all dimensions
        kept = f"{dim} of {full.descriptor_dim} dimensions hold {100 * fitted.kept:.1f} % of the variance"
        LOGGER.info("%s of %d images; encoder in %s", kept, len(values), out)
        if holds_classifier(Path(encoder)):
            LOGGER.info("its classifier is for all dimensions: `progeo classes` makes one of %d", dim)
    return out
