"""Import weights of other programs as an encoder, or as prompts of stage 1."""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import save_file

from progeo.commands.import_prompts import write_published_prompts
from progeo.config.encoders import ImportSettings
from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.prompt_learners import holds_prompt_learners, prompts_in
from progeo.convert.recognition import open_source, read_encoder
from progeo.engine.log import LOGGER, start_log
from progeo.export.weights import holds_encoder, save_encoder
from progeo.files import replacing, written_together
from progeo.models.backbones.open_clip import ARCHITECTURE
from progeo.models.weight_files.checkpoints import in_words

_CLIP = "clip.safetensors"


def import_weights(settings: ImportSettings) -> Path:
    """Convert the weights of another program, write them to a new folder and return the folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the folder is in use, or the file has an unknown format, is refused, corrupt or truncated.
    """
    start_log(None)
    target = settings.to or settings.file.parent / f"{settings.file.stem}_encoder"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is in use: name another folder with --to.")
    if holds_encoder(settings.file):
        raise ValueError(f"{settings.file} holds an encoder of progeo, which needs no import: use it as it is.")
    choices = Choices(settings.image_size, settings.normalized, settings.quickgelu, settings.weights_in)
    source = open_source(settings.file, choices)
    if not settings.file.is_dir() and holds_prompt_learners(source.content):
        if choices != Choices():
            raise ValueError(
                f"{settings.file} holds prompts; --weights_in, --image_size, --normalized and --quickgelu are for "
                f"encoders: omit them."
            )
        return write_published_prompts(settings, prompts_in(source.content, settings.file), target)
    converted = read_encoder(source, choices)
    if settings.class_order is not None or settings.clip is not None:
        raise ValueError(f"{settings.file} holds an encoder; --class_order and --clip are for prompts: omit them.")
    return _write_encoder(converted, settings.file, target)


def _write_encoder(converted: ConvertedEncoder, source: Path, target: Path) -> Path:
    encoder = converted.encoder
    with written_together(target.resolve()) as folder:
        if converted.clip is not None:
            with replacing(folder / _CLIP) as temporary:
                save_file(dict(converted.clip), temporary, metadata=_metadata(converted))
            encoder.spec = dataclasses.replace(encoder.spec, text_weights=str(folder / _CLIP))
        save_encoder(folder, encoder, provenance={"imported_from": str(source), "kind": converted.program}, recalls={})
    spec = encoder.spec
    LOGGER.info(
        "%s: %s, %d x %d pixels, descriptors of %d dimensions%s",
        converted.program,
        spec.architecture,
        *spec.image_size,
        spec.descriptor_dim,
        "" if spec.normalized else ", not normalized",
    )
    for remark in converted.remarks:
        LOGGER.info(remark)
    if converted.skipped:
        LOGGER.info("skipped, the encoder does not need them: %s", in_words(converted.skipped))
    if converted.clip is not None:
        LOGGER.info(
            "the complete CLIP, with its texts, written to %s: --model.architecture %s --model.weights %s trains it",
            target / _CLIP,
            spec.architecture,
            target / _CLIP,
        )
    LOGGER.info("encoder written to %s: progeo.load_encoder(%r) loads it", target, str(target))
    return target


def _metadata(converted: ConvertedEncoder) -> dict[str, str]:
    """Return the metadata of a weight file: its architecture and, if known, the pixel mean and std."""
    spec = converted.encoder.spec
    pixels = {"mean": json.dumps(spec.mean), "std": json.dumps(spec.std)} if converted.has_pixel_statistics else {}
    return {ARCHITECTURE: spec.architecture, **pixels}
