"""Import weights of other programs as an encoder, or as prompts of stage 1."""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import save_file

from progeo.commands.import_prompts import write_published_prompts
from progeo.config.encoders import ImportSettings
from progeo.convert.prompt_learners import holds_prompt_learners, prompts_in
from progeo.convert.recognition import read_foreign, read_foreign_folder
from progeo.convert.translation import Choices, Foreign
from progeo.engine.log import LOGGER, start_log
from progeo.export.weights import holds_encoder, save_encoder
from progeo.files import replacing, written_together
from progeo.models.backbones.open_clip import ARCHITECTURE
from progeo.models.weight_files.checkpoints import in_words, read_content

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
    foreign = read_foreign_folder(settings.file, choices)
    if foreign is None:
        content = read_content(settings.file)
        if holds_prompt_learners(content):
            if choices != Choices():
                raise ValueError(
                    f"{settings.file} holds prompts; --weights_in, --image_size, --normalized and --quickgelu are for "
                    f"encoders: leave them out."
                )
            return write_published_prompts(settings, prompts_in(content, settings.file), target)
        foreign = read_foreign(content, settings.file, choices)
    if settings.class_order is not None or settings.clip is not None:
        raise ValueError(f"{settings.file} holds an encoder; --class_order and --clip are for prompts: leave them out.")
    return _write_encoder(foreign, settings.file, target)


def _write_encoder(foreign: Foreign, source: Path, target: Path) -> Path:
    encoder = foreign.encoder
    with written_together(target.resolve()) as folder:
        if foreign.clip is not None:
            with replacing(folder / _CLIP) as temporary:
                save_file(dict(foreign.clip), temporary, metadata=_metadata(foreign))
            encoder.spec = dataclasses.replace(encoder.spec, text_weights=str(folder / _CLIP))
        save_encoder(folder, encoder, provenance={"imported_from": str(source), "kind": foreign.kind}, recalls={})
    spec = encoder.spec
    LOGGER.info(
        "%s: %s, %d x %d pixels, descriptors of %d dimensions%s",
        foreign.kind,
        spec.architecture,
        *spec.image_size,
        spec.descriptor_dim,
        "" if spec.normalized else ", not normalized",
    )
    for remark in foreign.remarks:
        LOGGER.info(remark)
    if foreign.left_out:
        LOGGER.info("skipped, an encoder does not need them: %s", in_words(foreign.left_out))
    if foreign.clip is not None:
        LOGGER.info(
            "the whole CLIP, for its texts, written to %s: --model.architecture %s --model.weights %s trains it",
            target / _CLIP,
            spec.architecture,
            target / _CLIP,
        )
    LOGGER.info("encoder written to %s: progeo.load_encoder(%r) gives it back", target, str(target))
    return target


def _metadata(foreign: Foreign) -> dict[str, str]:
    """Return the metadata of a weight file: its architecture and, if known, the pixel mean and std."""
    spec = foreign.encoder.spec
    pixels = {"mean": json.dumps(spec.mean), "std": json.dumps(spec.std)} if foreign.says_pixels else {}
    return {ARCHITECTURE: spec.architecture, **pixels}
