"""Import CLIPs of open_clip: folders of the Hugging Face Hub with their configuration, and files alone."""

from typing import get_args

from progeo.convert.clip_encoder import ClipProperties, convert_clip
from progeo.convert.configurations import MIN_STD, read_configuration
from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.hugging_face import TRANSFORMERS_CONFIG
from progeo.convert.source import Source
from progeo.image_files import Resize
from progeo.models.backbones.clip_configurations import parse_configuration
from progeo.models.clip_files import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, is_of_openai


def is_open_clip(source: Source) -> bool:
    """Return whether a folder or file has a configuration of open_clip, or a file has its parameter names.

    A folder that also has a configuration of transformers must have weights of open_clip.
    """
    return _is_configured(source) or ("visual" in source.prefixes and not is_of_openai(source.state))


def read_open_clip(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert a CLIP of open_clip, with the activation and preprocessing of its configuration, if there is one.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: the configuration is not one of open_clip; for further errors see `convert_clip`.
    """
    properties = _properties(source) if _is_configured(source) else ClipProperties()
    return convert_clip(source.weights(OPEN_CLIP_WEIGHTS), choices, properties)


def _is_configured(source: Source) -> bool:
    if not (source.folder / OPEN_CLIP_CONFIG).is_file():
        return False
    if not source.path.is_dir():
        return source.path.name in OPEN_CLIP_WEIGHTS
    return source.holds_weights(OPEN_CLIP_WEIGHTS) or not (source.path / TRANSFORMERS_CONFIG).is_file()


def _properties(source: Source) -> ClipProperties:
    """Read the configuration; missing values get the defaults of open_clip."""
    config = read_configuration(source.folder / OPEN_CLIP_CONFIG)
    pixels = config.part("preprocess_cfg")
    return ClipProperties(
        configuration=parse_configuration(config.values.get("model_cfg"), str(config.path)),
        mean=pixels.color("mean", 0),
        std=pixels.color("std", MIN_STD),
        resize=pixels.choice("interpolation", {each: each for each in get_args(Resize)}, "bicubic"),
    )
