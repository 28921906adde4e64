"""Import encoders of CosPlace and EigenPlaces, which share their names: `backbone.<number>.*` and `aggregation.*`."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, head_name, tensor_named
from progeo.convert.numbered_convnets import convert_numbered
from progeo.convert.source import Source

_IMAGE_SIZE = 512


def is_cosplace(source: Source) -> bool:
    """Return whether a file has the parameter names of CosPlace and EigenPlaces."""
    return {"backbone", "aggregation"} <= source.prefixes


def read_cosplace(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of CosPlace or EigenPlaces; for errors see `convert_encoder`."""
    return convert_numbered(
        source.found,
        aggregation="gem",
        descriptor_dim=len(tensor_named(source.state, "aggregation.3.weight", 2)),
        image_size=choices.image_size or _IMAGE_SIZE,
        head=head_name,
    )
