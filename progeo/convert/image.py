"""Import encoders of ImAge: a DINOv2 as `backbone.*`, and the learned tokens that are inserted into its own."""

from dataclasses import replace

from progeo.convert.converted_encoder import Choices, ConvertedEncoder, convert_encoder, tensor_named
from progeo.convert.dinov2 import find_dinov2
from progeo.convert.source import Source
from progeo.models.backbones import FAMILIES
from progeo.models.backbones.position_embedding import as_height_width
from progeo.models.encoder import EncoderSpec
from progeo.models.pixel_statistics import NORMALIZATIONS

_TOKENS = "learnable_aggregation_tokens"
IMAGE_MARKS = (_TOKENS,)
_FAMILY = "aggregation_tokens"
_IMAGE_SIZE = 322
_BLOCK = 8


def is_image(source: Source) -> bool:
    """Return whether a file has the parameter names of ImAge."""
    return _TOKENS in source.state


def read_image(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of ImAge; for errors see `find_dinov2` and `convert_encoder`."""
    image_size = choices.image_size or _IMAGE_SIZE
    dinov2 = find_dinov2(source.found, "backbone.", image_size)
    tokens = tensor_named(source.state, _TOKENS, 3)
    architecture = f"{dinov2.architecture}+{tokens.shape[1]}@{_BLOCK}"
    FAMILIES[_FAMILY].check_rebuilt(architecture, dinov2.configuration)
    mean, std = NORMALIZATIONS["imagenet"]
    spec = EncoderSpec(
        family=_FAMILY,
        architecture=architecture,
        image_size=as_height_width(image_size),
        descriptor_dim=tokens.numel(),
        mean=mean,
        std=std,
        aggregation="token",
        interpolation=FAMILIES[_FAMILY].interpolation(architecture),
        configuration=dinov2.configuration,
    )
    remark = f"The file does not give the block that the tokens are inserted before: {_BLOCK} is taken, as published."
    return convert_encoder(
        spec,
        replace(dinov2.found, remarks=(*dinov2.found.remarks, remark)),
        their_name=lambda ours: ours.replace("backbone.aggregation_tokens", _TOKENS),
    )
