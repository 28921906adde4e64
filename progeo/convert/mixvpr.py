"""Import encoders of MixVPR and of GSV-Cities, with Conv-AP: a ResNet as `backbone.model.*`, and `aggregator.*`."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.gsv_cities import convert_gsv
from progeo.convert.source import Source

MIXVPR_MARKS = ("backbone.model.conv1.weight",)
_IMAGE_SIZE = 320


def is_mixvpr(source: Source) -> bool:
    """Return whether a file has the parameter names of MixVPR and GSV-Cities."""
    return set(MIXVPR_MARKS) <= source.state.keys()


def read_mixvpr(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of MixVPR or GSV-Cities; for errors see `convert_gsv`."""
    return convert_gsv(
        source, choices, resnet_name=_resnet_name, image_sizes=(_IMAGE_SIZE, _IMAGE_SIZE), resize="bilinear"
    )


def _resnet_name(ours: str) -> str:
    return ours.replace("backbone.", "backbone.model.", 1)
