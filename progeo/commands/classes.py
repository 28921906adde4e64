"""Make the mean descriptors of places the classifier of an encoder."""

from pathlib import Path
from typing import Any

from progeo.engine.options import Precision
from progeo.features.options import CacheOptions, ClassOptions, ImageOptions, WorkOptions


def classes(
    encoder: str,
    *,
    folder: Path,
    out: Path,
    classes: ClassOptions = ClassOptions(),
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    mixed_precision: Precision = "no",
) -> Path:
    """Write an encoder with a classifier whose vectors are mean descriptors of classes; returns its folder.

    Any encoder that can be saved gets one, trained with a classification loss or not.

    Args:
        encoder: Folder of a run, or of an encoder.
        folder: Folder of images with known positions, such as the training images.
        out: Output folder for the encoder and its classifier.
        classes: Cells of the classes.
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        mixed_precision: Precision of the encoder.

    Raises:
        ValueError: the encoder has no weights, `out` holds an encoder, or no class has enough images.
    """
    from functools import partial

    from progeo.atomic import refuse_held, written_together
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.log import LOGGER
    from progeo.export.encoder_folders import CLASSIFIER, METADATA, WEIGHTS, encoder_folder, holds_encoder
    from progeo.export.weights import load_encoder, read_encoder_metadata, save_encoder
    from progeo.features.descriptors import descriptor_extractor, extract_descriptors
    from progeo.localization.class_means import extract_class_means
    from progeo.places.catalogue import read_catalogue

    refuse_held(out, (METADATA, WEIGHTS, CLASSIFIER))
    accelerator = start_accelerator(mixed_precision)
    loaded = load_encoder(encoder)
    if not loaded.has_weights:
        raise ValueError(f"Class means need an encoder that can be saved, {encoder} cannot.")
    extractor = descriptor_extractor(loaded, images, accelerator)
    extract = partial(extract_descriptors, extractor, accelerator=accelerator, work=work, cache=cache)
    classifier = extract_class_means(read_catalogue(folder), encoder, classes, extract)
    if accelerator.is_main_process:
        source: dict[str, Any] = {"provenance": {"encoder": encoder}, "recalls": {}}
        if holds_encoder(Path(encoder)):
            source = read_encoder_metadata(encoder_folder(Path(encoder)))
        provenance = {**source["provenance"], "class means": str(folder)}
        # Localization recalls are those of the vectors of a head, which the means replace.
        recalls = {name: recall for name, recall in source["recalls"].items() if "LR@" not in name}
        with written_together(out.resolve()) as made:
            save_encoder(made, loaded, provenance=provenance, recalls=recalls, classifier=classifier)
        counts = f"{len(classifier):,} classes of {int(classifier.num_images.sum()):,} images"
        LOGGER.info("mean descriptors of %s; encoder and classifier in %s", counts, out)
    return out
