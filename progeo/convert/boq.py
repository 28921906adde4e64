"""Import encoders of BoQ: DINOv2 as `backbone.dino.*` or a ResNet as `backbone.net.<number>.*`, and `aggregator.*`."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.gsv_cities import DINOV2_MARK, convert_gsv
from progeo.convert.source import Source

_RESNET_MARK = "backbone.net.0.weight"
BOQ_MARKS = (_RESNET_MARK, DINOV2_MARK)
_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
"""Of a ResNet, by their numbers."""


def is_boq(source: Source) -> bool:
    """Return whether a file has the parameter names of BoQ, which OpenVPRLab shares for DINOv2."""
    has_boq = "aggregator.proj_c.weight" in source.state
    return _RESNET_MARK in source.state or (has_boq and DINOV2_MARK in source.state)


def read_boq(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of BoQ; for errors see `convert_gsv`."""
    return convert_gsv(source, choices, resnet_name=_resnet_name, image_sizes=(322, 384), resize="bicubic")


def _resnet_name(ours: str) -> str:
    module, layer, rest = ours.split(".", 2)
    return f"{module}.net.{_LAYERS.index(layer)}.{rest}"
