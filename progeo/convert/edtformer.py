"""Import encoders of EDTformer: a DINOv2 with adapters as `backbone.*`, and a decoder with learned queries."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, convert_encoder, tensor_named
from progeo.convert.dinov2 import find_dinov2
from progeo.convert.source import Source
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS

_LAYER = "decoder.layers.{}.multihead_attn.in_proj_weight"
EDTFORMER_MARKS = (_LAYER.format(0),)
_FAMILY = "lopa"
_IMAGE_SIZE = 322
_NAMES = {
    "aggregation.layers.": "decoder.layers.",
    "aggregation.": "",
    ".down.": ".D_fc1.",
    ".up.": ".D_fc2.",
}
"""Parts of names, ours and those in the file, which are replaced in this order."""


def is_edtformer(source: Source) -> bool:
    """Return whether a file has the parameter names of EDTformer."""
    return {*EDTFORMER_MARKS, "queries"} <= source.state.keys()


def read_edtformer(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of EDTformer; for errors see `find_dinov2` and `convert_encoder`."""
    state, image_size = source.state, choices.image_size or _IMAGE_SIZE
    dinov2 = find_dinov2(source.found, "backbone.", image_size)
    options = {
        "num_queries": tensor_named(state, "queries", 3).shape[1],
        "num_layers": next(count for count in range(1, len(state) + 1) if _LAYER.format(count) not in state),
        "channels": len(tensor_named(state, "channel_proj.weight", 2)),
        "rows": len(tensor_named(state, "row_proj.weight", 2)),
    }
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family=_FAMILY,
        architecture=dinov2.architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=options["channels"] * options["rows"],
        mean=mean,
        std=std,
        aggregation="edtformer",
        aggregation_options=options,
        interpolation=FAMILIES[_FAMILY].interpolation(dinov2.architecture),
        configuration=dinov2.configuration,
    )
    return convert_encoder(spec, dinov2.found, their_name=_their_name)


def _their_name(ours: str) -> str:
    for mine, theirs in _NAMES.items():
        ours = ours.replace(mine, theirs)
    return ours
