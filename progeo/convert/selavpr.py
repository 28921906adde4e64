"""Import encoders of SelaVPR++: a DINOv2 with adapters as `backbone.*`, and GeM between two linear layers.

Of a network with two branches, that of floating-point descriptors is imported; that of bits is skipped.
"""

import re

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, convert_encoder, tensor_named
from progeo.convert.dinov2 import find_dinov2
from progeo.convert.source import Source
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS

_ADAPTER = "backbone.adapters.0.branch1.conv.weight"
_BITS_ADAPTER = "backbone.adapters_hashing.0.branch1.conv.weight"
SELAVPR_MARKS = (_ADAPTER, _BITS_ADAPTER)
_OF_BITS = ("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4.")
_FAMILY = "multiconv_adapters"
_IMAGE_SIZE = 322
_HEAD = {
    "aggregation.p": "aggregation.1.p",
    "aggregation.local_linear.": "linear1.",
    "aggregation.linear.": "linear2.",
}
_ADAPTERS = {
    ".down.": ".D_fc1.",
    ".up.": ".D_fc2.",
    ".branches.one.": ".branch1.",
    ".branches.three.": ".branch2.",
    ".branches.five.": ".branch3.",
    ".norm.": ".bn.",
}
"""Parts of the names of an adapter, ours and those in the file."""


def is_selavpr(source: Source) -> bool:
    """Return whether a file has the adapters of SelaVPR++."""
    return not source.state.keys().isdisjoint(SELAVPR_MARKS)


def read_selavpr(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of SelaVPR++.

    Raises:
        ValueError: a network of bits alone, or an aggregation other than GeM; for further errors see `find_dinov2` and
            `convert_encoder`.
    """
    if _ADAPTER not in source.state:
        raise ValueError("The descriptors of this network are bits only: import one with floating-point descriptors.")
    if "linear2.weight" not in source.state:
        raise ValueError("The aggregation of this network is not GeM: import one trained with --aggregation gem.")
    image_size = choices.image_size or _IMAGE_SIZE
    dinov2 = find_dinov2(source.found, "backbone.", image_size)
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family=_FAMILY,
        architecture=dinov2.architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=len(tensor_named(source.state, "linear2.weight", 2)),
        mean=mean,
        std=std,
        aggregation="gem",
        aggregation_options={"local_linear": True},
        interpolation=FAMILIES[_FAMILY].interpolation(dinov2.architecture),
        configuration=dinov2.configuration,
    )
    return convert_encoder(spec, dinov2.found, their_name=_their_name, skipped_prefixes=_OF_BITS)


def _their_name(ours: str) -> str:
    is_adapter = re.match(r"backbone\.adapters\.\d+", ours) is not None
    for mine, theirs in (_ADAPTERS if is_adapter else _HEAD).items():
        ours = ours.replace(mine, theirs)
    return ours
