"""Import MegaLoc: DINOv2 as `backbone.*` or `backbone.model.*`, SALAD as `aggregator.agg.*`, and a linear layer."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.salad import convert_salad
from progeo.convert.source import Source

MEGALOC_MARKS = ("aggregator.agg.dust_bin",)


def is_megaloc(source: Source) -> bool:
    """Return whether a file has the parameter names of MegaLoc."""
    return set(MEGALOC_MARKS) <= source.state.keys()


def read_megaloc(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert MegaLoc, of its first release or as `model.safetensors`; for errors see `convert_salad`.

    The code of the latter exchanges rows and columns of the position embedding of images that are not square, with
    which the weights were not trained; here they are as in the first release.
    """
    is_first = any(name.startswith("backbone.model.") for name in source.state)
    return convert_salad(
        source.found,
        choices,
        backbone="backbone.model." if is_first else "backbone.",
        salad="aggregator.agg.",
        linear="aggregator.linear.",
    )
