"""Import encoders of OpenVPRLab: DINOv2 as `backbone.dino.*`, or a ResNet in a frozen and a trained part.

The parts are `backbone.frozen_layers.<number>.*` and `backbone.unfrozen_layers.<number>.*`, which begin with number 0.
"""

from functools import partial

from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.gsv_cities import DINOV2_MARK, convert_gsv
from progeo.convert.source import Source

_RESNET_MARKS = ("backbone.frozen_layers.0.0.weight", "backbone.unfrozen_layers.0.0.weight")
OPENVPRLAB_MARKS = (*_RESNET_MARKS, DINOV2_MARK)
_FROZEN = "backbone.frozen_layers."
_FIRST = {"conv1": 0, "bn1": 1}
"""Numbers in the layer 0; `layer1` and so on have numbers of their own."""


def is_openvprlab(source: Source) -> bool:
    """Return whether a file has the parameter names of OpenVPRLab."""
    return not source.state.keys().isdisjoint(OPENVPRLAB_MARKS)


def read_openvprlab(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of OpenVPRLab; for errors see `convert_gsv`."""
    frozen = {name.removeprefix(_FROZEN).partition(".")[0] for name in source.state if name.startswith(_FROZEN)}
    name = partial(_resnet_name, num_frozen=len(frozen))
    return convert_gsv(source, choices, resnet_name=name, image_sizes=(322, 320), resize="bicubic")


def _resnet_name(ours: str, num_frozen: int) -> str:
    module, layer, rest = ours.split(".", 2)
    number = 0 if layer in _FIRST else int(layer.removeprefix("layer"))
    part = "frozen_layers" if number < num_frozen else "unfrozen_layers"
    number -= 0 if number < num_frozen else num_frozen
    inner = f"{_FIRST[layer]}." if layer in _FIRST else ""
    return f"{module}.{part}.{number}.{inner}{rest}"
