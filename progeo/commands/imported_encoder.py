"""Write the converted encoder of another program."""

import dataclasses
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from progeo.atomic import replacing, written_together
from progeo.convert.converted_encoder import ConvertedEncoder
from progeo.convert.published_classes import CLASSIFIERS
from progeo.engine.log import LOGGER
from progeo.export.weights import has_hub_tokenizer, save_encoder
from progeo.models.backbones.clip_configurations import (
    CONFIGURATION,
    FOLDER,
    INTERPOLATION,
    UNNAMED,
    ClipConfiguration,
    named_configuration,
)
from progeo.models.backbones.clips import ARCHITECTURE
from progeo.models.classifier import Classifier
from progeo.models.clip_files import tokenizer_files, tokenizer_files_of
from progeo.models.pixel_statistics import color_in_words
from progeo.models.weight_files.checkpoints import in_words

_CLIP = "clip.safetensors"


def write_encoder(
    converted: ConvertedEncoder, source: Path, target: Path, *, classifier: Classifier | None = None
) -> None:
    """Write a converted encoder to a new folder, with its classifier and the complete CLIP if it comes with them."""
    encoder = converted.encoder
    provenance = {"imported_from": str(source), "kind": converted.program}
    with written_together(target.resolve()) as folder:
        if converted.clip is not None:
            with replacing(folder / _CLIP) as temporary:
                save_file(dict(converted.clip), temporary, metadata=_metadata(converted))
            encoder.spec = dataclasses.replace(encoder.spec, text_weights=str(folder / _CLIP))
            theirs = tokenizer_files(source) if source.is_dir() else tokenizer_files_of(source)
            for file in theirs if has_hub_tokenizer(encoder.spec) else ():
                shutil.copyfile(file, folder / file.name)
        save_encoder(folder, encoder, provenance=provenance, recalls={}, classifier=classifier)
    spec = encoder.spec
    LOGGER.info(
        "%s: %s, %d x %d pixels of mean %s and std %s, %s resizing, descriptors of %d dimensions%s",
        converted.program,
        spec.architecture,
        *spec.image_size,
        color_in_words(spec.mean),
        color_in_words(spec.std),
        spec.resize,
        spec.descriptor_dim,
        "" if spec.normalized else ", not normalized",
    )
    for remark in converted.remarks:
        LOGGER.info(remark)
    if skipped := [name for name in converted.skipped if name != CLASSIFIERS]:
        LOGGER.info("skipped, the encoder does not need them: %s", in_words(skipped))
    if classifier is not None:
        LOGGER.info(
            "classifier of %s classes in %d groups, %s",
            f"{len(classifier):,}",
            len(classifier.classes_per_group),
            classifier.kind,
        )
    elif CLASSIFIERS in converted.skipped:
        LOGGER.info(
            "skipped: %s, whose cells are only in the cache file of the program that trained them: name it with "
            "--class_order",
            CLASSIFIERS,
        )
    if converted.clip is not None:
        assert spec.configuration is not None
        own = ClipConfiguration(spec.configuration).feature_settings()
        named = spec.architecture != UNNAMED and named_configuration(spec.architecture).feature_settings() == own
        address = f"{'' if named else FOLDER}{target / _CLIP}"
        LOGGER.info(
            "the complete CLIP, with its texts, written to %s: --model.architecture %s --model.weights %s trains it",
            target / _CLIP,
            spec.architecture if named else address,
            address,
        )
    LOGGER.info("encoder written to %s: progeo.load_encoder(%r) loads it", target, str(target))


def _metadata(converted: ConvertedEncoder) -> dict[str, str]:
    """Return the metadata of a weight file: architecture, configuration, interpolation and, if known, mean and std."""
    spec = converted.encoder.spec
    pixels = {"mean": json.dumps(spec.mean), "std": json.dumps(spec.std)} if converted.has_pixel_statistics else {}
    return {
        ARCHITECTURE: spec.architecture,
        CONFIGURATION: json.dumps(spec.configuration),
        INTERPOLATION: spec.resize,
        **pixels,
    }
