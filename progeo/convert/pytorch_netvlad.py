"""Import encoders of pytorch-NetVlad: a VGG16 as `encoder.<number>.*`, NetVLAD as `pool.*`."""

from progeo.convert.converted_encoder import Choices, ConvertedEncoder
from progeo.convert.netvlad import NETVLAD_IMAGE_SIZE, convert_netvlad
from progeo.convert.numbered_convnets import find_backbone
from progeo.convert.source import Source

PYTORCH_NETVLAD_MARKS = ("pool.centroids",)
_BIAS = "pool.conv.bias"


def is_pytorch_netvlad(source: Source) -> bool:
    """Return whether a file has the parameter names of pytorch-NetVlad."""
    return {"encoder", "pool"} <= source.prefixes


def read_pytorch_netvlad(source: Source, choices: Choices) -> ConvertedEncoder:
    """Convert an encoder of pytorch-NetVlad.

    Raises:
        ValueError: a NetVLAD with a bias; for further errors see `convert_encoder`.
    """
    if _BIAS in source.state:
        raise ValueError(
            f"{source.path} holds {_BIAS}: assignments of NetVLAD cannot have a bias here, import one trained without "
            f"--vladv2."
        )
    return convert_netvlad(
        source.found,
        backbone=find_backbone(source.state, "encoder."),
        netvlad="pool.",
        image_size=choices.image_size or NETVLAD_IMAGE_SIZE,
    )
