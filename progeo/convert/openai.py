"""Import CLIPs of OpenAI: TorchScript archives and state dicts, which hold `OPENAI_NUMBERS`."""

from progeo.convert.clip_encoder import ClipProperties, convert_clip
from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.source import Source
from progeo.models.clip_files import is_of_openai
from progeo.models.pixel_statistics import NORMALIZATIONS


def is_openai(source: Source) -> bool:
    """Return whether a file holds the weights and the numbers of OpenAI's CLIP."""
    return "visual" in source.prefixes and is_of_openai(source.state)


def read_openai(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert a CLIP of OpenAI, with QuickGELU and its pixels: bicubic, of CLIP's mean and std; see `convert_clip`."""
    mean, std = NORMALIZATIONS["clip"]
    return convert_clip(source.found, choices, ClipProperties(quickgelu=True, mean=mean, std=std, resize="bicubic"))
