"""Detect which program wrote a file of weights, and convert it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from progeo.convert.boq import BOQ_MARKS, is_boq, read_boq
from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.cosplace import is_cosplace, read_cosplace
from progeo.convert.dinov2 import is_dinov2, read_dinov2
from progeo.convert.divide_and_classify import is_divide_and_classify, read_divide_and_classify
from progeo.convert.edtformer import EDTFORMER_MARKS, is_edtformer, read_edtformer
from progeo.convert.hugging_face import TRANSFORMERS_CONFIG, VISION_MARK, is_hugging_face, read_hugging_face
from progeo.convert.image import IMAGE_MARKS, is_image, read_image
from progeo.convert.megaloc import MEGALOC_MARKS, is_megaloc, read_megaloc
from progeo.convert.mixvpr import MIXVPR_MARKS, is_mixvpr, read_mixvpr
from progeo.convert.numbered_convnets import FIRST_LAYERS
from progeo.convert.open_clip import is_open_clip, read_open_clip
from progeo.convert.openai import is_openai, read_openai
from progeo.convert.openibl import OPENIBL_MARKS, is_openibl, read_openibl
from progeo.convert.openvprlab import OPENVPRLAB_MARKS, is_openvprlab, read_openvprlab
from progeo.convert.published_progeo import PROGEO_MARKS, is_published_progeo, read_published_progeo
from progeo.convert.pytorch_netvlad import PYTORCH_NETVLAD_MARKS, is_pytorch_netvlad, read_pytorch_netvlad
from progeo.convert.salad import SALAD_MARKS, is_salad, read_salad
from progeo.convert.selavpr import SELAVPR_MARKS, is_selavpr, read_selavpr
from progeo.convert.source import Source
from progeo.convert.vg_benchmark import is_vg_benchmark, read_vg_benchmark
from progeo.models.clip_files import CLIP_MARK, OPEN_CLIP_CONFIG
from progeo.models.encoder import restore_encoder
from progeo.models.pixel_statistics import chosen_statistics


@dataclass(frozen=True)
class Release:
    """What is known of the weights that the authors of a program publish; "" for what is not."""

    training_data: str = ""
    code_license: str = ""
    weights_license: str = ""


@dataclass(frozen=True)
class Format:
    """A program whose encoders can be imported."""

    name: str
    marks: tuple[str, ...]
    """Names of the first weights, which identify a state dict in a checkpoint."""
    recognizes: Callable[[Source], bool]
    """Returns whether the program wrote the file or folder."""
    reads: Callable[[Source, Choices], ConvertedEncoder]
    """Converts the file or folder to an encoder; raises ValueError for missing or unexpected keys."""
    release: Release = Release()
    """Weights in this format that its authors publish."""


FORMATS = (
    Format("open_clip", (CLIP_MARK,), is_open_clip, read_open_clip, Release(code_license="MIT")),
    Format("Hugging Face", (VISION_MARK,), is_hugging_face, read_hugging_face, Release(code_license="Apache-2.0")),
    Format("OpenAI", (CLIP_MARK,), is_openai, read_openai, Release("images and texts of the web", "MIT", "MIT")),
    Format("published ProGEO", PROGEO_MARKS, is_published_progeo, read_published_progeo, Release("SF-XL")),
    Format("ImAge", IMAGE_MARKS, is_image, read_image, Release("GSV-Cities, or a unified data set")),
    Format("SelaVPR++", SELAVPR_MARKS, is_selavpr, read_selavpr, Release("unified data set", "MIT")),
    Format("EDTformer", EDTFORMER_MARKS, is_edtformer, read_edtformer, Release("GSV-Cities")),
    Format("deep VG benchmark", FIRST_LAYERS, is_vg_benchmark, read_vg_benchmark, Release("Pitts30k or MSLS")),
    Format(
        "CosPlace or EigenPlaces", FIRST_LAYERS, is_cosplace, read_cosplace, Release("SF-XL", "MIT, of EigenPlaces")
    ),
    Format("Divide&Classify", FIRST_LAYERS, is_divide_and_classify, read_divide_and_classify, Release("SF-XL")),
    Format("OpenIBL or WAKD", OPENIBL_MARKS, is_openibl, read_openibl, Release("Pitts30k", "MIT, of OpenIBL")),
    Format("pytorch-NetVlad", PYTORCH_NETVLAD_MARKS, is_pytorch_netvlad, read_pytorch_netvlad, Release("Pitts30k")),
    Format(
        "MegaLoc",
        MEGALOC_MARKS,
        is_megaloc,
        read_megaloc,
        Release("SF-XL, GSV-Cities, MSLS, MegaScenes, ScanNet", "MIT"),
    ),
    Format("SALAD or CliqueMining", SALAD_MARKS, is_salad, read_salad, Release("GSV-Cities; CliqueMining also MSLS")),
    Format("BoQ", BOQ_MARKS, is_boq, read_boq, Release("GSV-Cities", "MIT")),
    Format("MixVPR or GSV-Cities", MIXVPR_MARKS, is_mixvpr, read_mixvpr, Release("GSV-Cities")),
    Format("OpenVPRLab", OPENVPRLAB_MARKS, is_openvprlab, read_openvprlab, Release("GSV-Cities", "MIT")),
    Format("DINOv2", (), is_dinov2, read_dinov2, Release("LVD-142M", "Apache-2.0", "Apache-2.0")),
)
"""The first row that recognizes a file or folder reads it."""
_OF_OTHERS = re.compile(r"aggregation\.(\d|conv\.)|backbone\.(0|dino|frozen_layers|unfrozen_layers|model|net)\.").match
"""Matches a numbered layer of the head of CosPlace and published ProGEO, the convolution of other NetVLADs, and the
first layers of backbones of programs."""


def release_of(program: str) -> Release:
    """Return what is known of a program's published weights, by the name of its row or, as in `A or B`, one of two."""
    rows = (row for row in FORMATS if program == row.name or program in row.name.split(" or "))
    return next((row.release for row in rows), Release())


def open_source(path: Path, choices: Choices) -> Source:
    """Prepare a file or folder for `read_encoder`; nothing is read yet."""
    return Source(path, {mark for row in FORMATS for mark in row.marks}, choices.weights_in)


def read_encoder(source: Source, choices: Choices) -> ConvertedEncoder:
    """Detect the format of a file or folder of weights, and convert it to an encoder.

    The format is detected from parameter names, or from the configuration beside the weights.

    Raises:
        FileNotFoundError: a configuration or the weights are missing.
        ValueError: an unknown format, missing or unexpected keys, or `choices` that do not apply to the format.
    """
    named_by_us = {"backbone", "aggregation", "pooling", "projection"}
    if source.prefixes and source.prefixes <= named_by_us and not any(map(_OF_OTHERS, source.state)):
        raise ValueError(
            f"{source.path} has the names of an encoder of progeo, which needs no import: give its folder, with the "
            f"model.json, to progeo.load_encoder and to the other commands."
        )
    for row in FORMATS:
        if row.recognizes(source):
            try:
                converted = replace(row.reads(source, choices), program=row.name)
            except ValueError as error:
                named = str(source.folder) in str(error)
                raise ValueError(str(error) if named else f"{source.path}: {error}") from None
            _check_choices(converted, choices)
            return _with_chosen_pixels(converted, choices)
    raise _unknown(source)


def _unknown(source: Source) -> Exception:
    """Return the error for a file or folder of no known format."""
    path, prefixes = source.path, source.prefixes
    if path.is_dir():
        return FileNotFoundError(f"{path} holds no CLIP: neither {OPEN_CLIP_CONFIG} nor {TRANSFORMERS_CONFIG}.")
    if {"vision_model", "text_model"} & prefixes:
        return ValueError(f"{path} is of a CLIP of Hugging Face: give the folder of it and its config.json.")
    return ValueError(
        f"{path} has no known format: its names begin with {', '.join(sorted(prefixes)[:5])}. Known are "
        f"{', '.join(row.name for row in FORMATS)}."
    )


def _with_chosen_pixels(converted: ConvertedEncoder, choices: Choices) -> ConvertedEncoder:
    """Replace the pixel statistics and the interpolation of an encoder by those that the user set, if any."""
    chosen, spec = chosen_statistics(None, choices.mean, choices.std), converted.encoder.spec
    spec = replace(spec, resize=choices.resize or spec.resize)
    if chosen is not None:
        spec, converted = replace(spec, mean=chosen.mean, std=chosen.std), replace(converted, has_pixel_statistics=True)
    return replace(converted, encoder=restore_encoder(spec, converted.encoder.state_dict()))


def _check_choices(converted: ConvertedEncoder, choices: Choices) -> None:
    """Refuse user settings that do not apply to the architecture."""
    spec = converted.encoder.spec
    if choices.normalized is not None and choices.normalized != spec.normalized:
        raise ValueError(f"`normalized`: the descriptors of {spec.architecture} are always L2-normalized, omit it.")
    if choices.quickgelu is not None and spec.family != "open_clip":
        raise ValueError(f"`quickgelu`: {spec.architecture} is not a CLIP, omit it.")
